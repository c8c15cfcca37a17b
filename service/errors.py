"""Errors of the service. Each message is one sentence that says what is wrong or what to do.

UnmaskError
├── StartError                the process ends: exit status 1 (2 for settings), sentence on stderr
│   ├── SettingsInvalid       a flag or an UNMASK_ variable is wrong
│   ├── BundleInvalid         the bundle is missing, damaged, or not readable by this release
│   ├── ProviderUnavailable   ONNX Runtime cannot run the graphs where UNMASK_PROVIDER says
│   ├── EmbeddedStoreFailed   the embedded Valkey cannot run in its folder
│   └── PortUnavailable       another program listens there, or this one may not
└── RequestError              one request gets no answer; app.py has the table of HTTP statuses
    ├── InvalidRequest        a value is out of bounds for the bundle that is served
    ├── NotReady              no bundle is loaded yet, or the decode thread is gone
    ├── Overloaded            the decode queue is full
    ├── DeadlineExceeded      the request's time is up
    ├── ClientDisconnected    nobody waits for the answer any more
    ├── HistoryUnavailable    the history store did not answer in time
    └── DecodeFailed          decoding this job raised
"""


class UnmaskError(Exception):
    """Base class. `str(error)` is the sentence."""


class StartError(UnmaskError):
    """The service cannot start; the operator has to change something."""


class SettingsInvalid(StartError):
    """A flag or an UNMASK_ variable is wrong."""


class BundleInvalid(StartError):
    """The bundle is missing, damaged, or not readable by this release."""


class ProviderUnavailable(StartError):
    """ONNX Runtime cannot run the graphs where UNMASK_PROVIDER says."""


class EmbeddedStoreFailed(StartError):
    """The embedded Valkey cannot run in its folder."""


class PortUnavailable(StartError):
    """Another program listens on the port, or this one may not."""


class RequestError(UnmaskError):
    """One request gets no answer; the others are not affected."""


class InvalidRequest(RequestError):
    """The value of `param` is out of bounds for the bundle that is served."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NotReady(RequestError):
    """No bundle is loaded yet, or the decode thread is gone."""


class Overloaded(RequestError):
    """The decode queue is full."""


class DeadlineExceeded(RequestError):
    """The request's time is up."""


class ClientDisconnected(RequestError):
    """Nobody waits for the answer any more."""


class HistoryUnavailable(RequestError):
    """The history store did not answer in time."""


class DecodeFailed(RequestError):
    """Decoding this job raised."""
