"""What is wrong with the history store: its own reason, in words, with what to do, logged once.

A sentence holds no password and nothing of a user. Of the store's own words, only the name of a
command is repeated. Trouble is logged when it begins and when it ends, not at every call.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

CALM_S = 10.0  # a trouble not seen for so long is over when the store answers
RIGHTS = "give it the rights that docs/how-to/operate.md lists under History store"
TOO_OLD = (
    "it lacks what the service needs: Redis 7.0 or newer, or Valkey, and no proxy that speaks only "
    "a part of its language"
)
COMMAND = re.compile(r"'([a-z_|]{1,40})' command", re.ASCII | re.IGNORECASE)

NO_REDIS = "what answers at its address does not speak as Redis does: correct the URL"

# By the first word of the store's reply.
BY_CODE = {
    "OOM": "its memory is full and it may not drop keys, so it takes no writes: "
    "give it more memory (maxmemory)",
    "READONLY": "it is a replica and takes no writes: the URL must lead to the primary",
    "MISCONF": "it cannot save its data, so it takes no writes: look at its disk and its log",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write, so it takes no writes: "
    "bring them back",
    "LOADING": "it is reading its data after a start: wait",
    "NOAUTH": "it wants a password: the URL must have one, redis://user:password@host",
    "WRONGPASS": "the user name or the password of the URL is wrong, or the user is switched off: "
    "correct it; special characters must be percent-encoded",
    "CLUSTERDOWN": "its cluster is down: look at CLUSTER INFO on its nodes",
    "MASTERDOWN": "it is a replica without its primary: bring that back",
    "MOVED": "it is a node of a cluster: the URL must start with redis+cluster://",
    "CROSSSLOT": "it is a node of a cluster: the URL must start with redis+cluster://",
    "BUSY": "it is busy with a script of another program: SCRIPT KILL ends it",
    "WRONGTYPE": "a key that starts with unmask: holds what this service did not write: "
    "give the service a database of its own, or remove that key",
}
# By a part of the reply, when the first word says nothing.
BY_TEXT = {
    "DB index is out of range": "it has no database of that number: correct the end of the URL",
    "SELECT is not allowed in cluster": BY_CODE["MOVED"],
    "without any password": "it has no password, and the URL has one: take it out",
    "max number of clients": "it has as many clients as it takes: raise its maxclients",
    "ompiling script": TOO_OLD,
    "acl_check_cmd": TOO_OLD,
    "nknown command": TOO_OLD,
    "Invalid RESP version": NO_REDIS,  # redis-py, of a greeting that is none
}
BY_ERRNO = {
    errno.ECONNREFUSED: "nothing listens at its address: is it running, is the address right?",
    errno.ENOENT: "its socket, or a file of a certificate, is not there",
    errno.EACCES: "its socket, or a file of a certificate, may not be opened by this user",
    errno.EMFILE: "this process has no file descriptors left",
    errno.EHOSTUNREACH: "there is no way to its address: look at the network",
    errno.ENETUNREACH: "there is no way to its address: look at the network",
}
HUNG_UP = (
    "it closes connections: does it speak TLS (rediss://), want a certificate of the client "
    "(ssl_certfile), does something between end them?"
)

log = structlog.get_logger()


def reason_of(error: BaseException) -> str:
    """The part of a sentence that follows "the history store has trouble:"."""
    chain = list(_chain(error))
    found = next((reason for one in chain if (reason := _reason_of_one(one))), None)
    if not found and any(isinstance(one, RedisConnectionError | OSError) for one in chain):
        found = HUNG_UP
    return found or f"it answered with an error, {type(error).__name__} {_code(error)}".rstrip()


def rights_reason(commands: list[str]) -> str:
    """Like `reason_of`, for commands that the store's user may not run."""
    return f"its user may not run {', '.join(sorted(commands)).lower()}: {RIGHTS}"


def _reason_of_one(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        what = error.verify_message
        return (
            f"its certificate is not accepted ({what}): see ssl_ca_certs in docs/how-to/operate.md"
        )
    if isinstance(error, ssl.SSLError):
        if "CERTIFICATE_REQUIRED" in str(error.reason):
            return (
                "it wants a certificate of the client: see ssl_certfile in docs/how-to/operate.md"
            )
        return f"TLS fails ({error.reason}): rediss:// is for a port with TLS, redis:// for others"
    if isinstance(error, socket.gaierror):
        return "the name of its host is not known: is it right, does DNS answer?"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "it did not answer within UNMASK_REDIS_TIMEOUT_MS: is it slow, stopped or far away?"
    if isinstance(error, OSError):
        return BY_ERRNO.get(error.errno or 0)
    if isinstance(error, UnicodeDecodeError):
        return BY_CODE["WRONGTYPE"]
    if isinstance(error, InvalidResponse):
        return NO_REDIS
    if type(error) is RedisError:  # raised by service.histories.connections
        return str(error)
    if isinstance(error, RedisError):
        return _reason_of_reply(error)
    return None


def _reason_of_reply(error: RedisError) -> str | None:
    code, text = _code(error), str(error)
    if code == "NOPERM" or "ACL failure" in text or "executing the script can't" in text:
        if "key" in text and "command" not in text:
            return f"its user may not use keys that start with unmask: {RIGHTS}"
        return rights_reason(COMMAND.findall(text) or ["a command of a script"])
    if code in BY_CODE:
        return BY_CODE[code]
    return next((reason for part, reason in BY_TEXT.items() if part in text), None)


def _code(error: BaseException) -> str:
    """The first word of the store's reply; empty if there was no reply."""
    code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return code if code.isascii() and code.isupper() and code.isalpha() else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes. redis-py wraps the error of a socket in its own."""
    yield error
    below = error.__cause__ or error.__context__
    if below is not None:
        yield from _chain(below)


class Troubles:
    """The store's present troubles. For one event loop.

    clock: seconds, never going back
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}  # by reason, when it was seen last

    def seen(self, reason: str) -> None:
        """A call failed for that reason."""
        if reason not in self._last:
            log.warning("history_store_trouble", reason=reason)
        self._last[reason] = self._clock()

    def answered(self) -> None:
        """A call succeeded. This says nothing about other calls: some may still fail."""
        if not self._last:
            return
        before = self._clock() - CALM_S
        for reason in [reason for reason, at in self._last.items() if at < before]:
            del self._last[reason]
            log.info("history_store_trouble_over", reason=reason)
