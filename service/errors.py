"""Errors of the service. Each message is one sentence that says what is wrong or what to do.

UnmaskError
├── TransferFailed            a file cannot be read or written; a command ends with status 1
├── StartError                the process ends: exit status 1 (2 for settings), sentence on stderr
│   ├── SettingsInvalid       a flag or an UNMASK_ variable is wrong
│   ├── BundleInvalid         the bundle is missing, damaged, or not readable by this release
│   ├── BundleLoadTimedOut    reading or priming the bundle took too long
│   ├── ProviderUnavailable   ONNX Runtime cannot run the graphs where UNMASK_PROVIDER says
│   ├── EmbeddedStoreFailed   the embedded Valkey cannot run in its folder
│   └── PortUnavailable       another program listens there, or this one may not
└── RequestError              one request gets no answer; http/error_map.py has its status
    ├── MalformedUrl          the path or the query cannot be read as text
    ├── UnsupportedMedia      the body is not JSON in UTF-8 as it is
    ├── InvalidRequest        a value is out of bounds for the active bundle
    ├── Unauthenticated       the key is missing or wrong
    ├── Forbidden             the key is not an administrator's
    ├── ItemNotFound          the active bundle has no such item
    ├── MapNotFound           the active bundle has no map of its catalogue
    ├── RecommendationNotFound  the answer to continue from is not remembered
    ├── BundleNotFound        the store has no such bundle
    ├── BundleConflict        the bundles in memory do not allow that now
    ├── NotReady              no bundle is loaded yet, or the decode thread is gone
    ├── Overloaded            too much is waiting, or being answered
    ├── DeadlineExceeded      the request's time is up
    ├── ClientDisconnected    nobody waits for the answer any more
    ├── HistoryUnavailable    the history store did not answer in time
    ├── EmbedderUnavailable   the embedder of new items' titles did not answer
    ├── EmbedderUnfit         the embedder refuses, or answers with something other than embeddings
    └── DecodeFailed          decoding this job raised
"""


class UnmaskError(Exception):
    """Base class. `str(error)` is the sentence."""


class TransferFailed(UnmaskError):
    """A command's file cannot be read or written."""


class StartError(UnmaskError):
    """The service cannot start. The operator has to change something."""


class SettingsInvalid(StartError):
    """A flag or an UNMASK_ variable is wrong."""


class BundleInvalid(StartError):
    """The bundle is missing, damaged, or not readable by this release."""


class BundleLoadTimedOut(StartError):
    """Reading or priming the bundle took longer than UNMASK_LOAD_TIMEOUT_S."""


class ProviderUnavailable(StartError):
    """ONNX Runtime cannot run the graphs where UNMASK_PROVIDER says."""


class EmbeddedStoreFailed(StartError):
    """The embedded Valkey cannot run in its folder."""


class PortUnavailable(StartError):
    """Another program listens on the port, or this one may not."""


class RequestError(UnmaskError):
    """One request gets no answer. Other requests are not affected."""


class MalformedUrl(RequestError):
    """The path or the query cannot be read as text."""


class UnsupportedMedia(RequestError):
    """The body is of another type, in another charset, or compressed."""


class InvalidRequest(RequestError):
    """The value of `param` is out of bounds for the active bundle."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class Unauthenticated(RequestError):
    """The key is missing or wrong. `challenge` says how to send one, as WWW-Authenticate does."""

    def __init__(self, message: str, *, challenge: str = "Bearer") -> None:
        super().__init__(message)
        self.challenge = challenge


class Forbidden(RequestError):
    """The key is not an administrator's."""


class ItemNotFound(RequestError):
    """The active bundle has no such item."""


class MapNotFound(RequestError):
    """The active bundle has no map of its catalogue."""


class RecommendationNotFound(RequestError):
    """The answer to continue from is not remembered: not any more, or never."""


class BundleNotFound(RequestError):
    """The store has no such bundle."""


class BundleConflict(RequestError):
    """The bundles in memory do not allow that now. `code` is that of the error body."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class NotReady(RequestError):
    """No bundle is loaded yet, or the decode thread is gone. `reason` is a metric's label."""

    reason = "not_ready"


class Overloaded(RequestError):
    """Too much is waiting, or being answered. `reason` is a metric's label."""

    def __init__(self, message: str, *, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The request's time is up."""


class ClientDisconnected(RequestError):
    """Nobody waits for the answer any more."""


class HistoryUnavailable(RequestError):
    """The history store did not answer in time."""


class EmbedderUnavailable(RequestError):
    """The embedder of new items' titles did not answer, or has too much to do. Try again."""


class EmbedderUnfit(RequestError):
    """The embedder refuses, or answers with something other than embeddings.

    Trying again does not help until somebody changes the embedder or the settings.
    """


class DecodeFailed(RequestError):
    """Decoding this job raised."""
