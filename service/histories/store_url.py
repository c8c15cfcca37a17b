"""The address of the history store as text: one server, a cluster, or sentinels that know it.

`redis://`, `rediss://` and `unix://` name one server. `redis+cluster://user:pass@h1:p1,h2:p2` names
some nodes of a cluster. `redis+sentinel://user:pass@h1:p1,h2:p2/name/db` names the sentinels that
watch the servers called `name`. The credentials are those of the servers. Sentinels with their own
password get it by `?sentinel_password=`. What is not understood is refused, never ignored. A URL
may hold a password, so errors repeat no part of it except the names of options. Opens no
connection.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

ONE_SERVER = ("redis", "rediss", "unix")
DEFAULT_PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}
ESCAPE = "special characters of a password must be percent-encoded"
MAX_DB = 2**31 - 1
DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)
# redis-py knows more options. These are useful to somebody and cannot break the service.
CHOICES = {
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_check_hostname": ("true", "false"),
}
TLS_OPTIONS = {*CHOICES, "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password"}
SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
OWN_SETTINGS = {
    "socket_timeout": "UNMASK_REDIS_TIMEOUT_MS",
    "socket_connect_timeout": "UNMASK_REDIS_TIMEOUT_MS",
    "timeout": "UNMASK_REDIS_TIMEOUT_MS",
    "max_connections": "UNMASK_REDIS_POOL_SIZE",
}
OPTION_NAME = re.compile(r"[a-z_]{1,40}", re.ASCII)

Kind = Literal["server", "cluster", "sentinel"]


class Node(NamedTuple):
    """Where a server or a sentinel listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class StoreUrl:
    """A parsed URL. `seeds` are nodes of the cluster, or the sentinels; empty for one server."""

    kind: Kind
    text: str = field(repr=False)
    seeds: tuple[Node, ...] = ()
    service_name: str = ""
    scheme: str = "redis"
    credentials: str = field(default="", repr=False)
    db: int = 0
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def of_server(self, node: Node) -> str:
        """The URL of one server of the cluster, or of one that the sentinels watch."""
        return f"{self.scheme}://{self.credentials}{node}/{self.db}?{self._tls_options}"

    def of_sentinel(self, node: Node) -> str:
        """The URL of one of the sentinels."""
        options = dict(self.options)
        user = quote(options.get("sentinel_username", ""), safe="")
        password = quote(options.get("sentinel_password", ""), safe="")
        credentials = f"{user}:{password}@" if password else ""
        return f"{self.scheme}://{credentials}{node}/0?{self._tls_options}"

    @property
    def _tls_options(self) -> str:
        return urlencode({k: v for k, v in self.options if k in TLS_OPTIONS})


def parse_store_url(text: str) -> StoreUrl:
    """Parse a URL. Raises ValueError with half a sentence on what is wrong, without the value."""
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError(
            "it has a space, a line break or a control character in it; such characters of a "
            "password must be percent-encoded"
        )
    scheme, kind = _scheme_and_kind(text)
    try:
        parts = urlsplit(text)
        credentials, at, hosts = parts.netloc.rpartition("@")
        seeds = tuple(_node(host, DEFAULT_PORTS[kind]) for host in hosts.split(","))
    except ValueError:
        raise ValueError(f"its hosts and ports cannot be read; {ESCAPE}") from None
    if "@" in parts.path + parts.query + parts.fragment and scheme != "unix":
        raise ValueError(f"its hosts end too early; {ESCAPE}")
    if "#" in text:
        raise ValueError(f"a # ends it too early; {ESCAPE}")
    options = _options(parts.query, scheme, kind)
    if kind == "server":
        _check_server(scheme, hosts, parts.path, options)
        return StoreUrl(kind, text)
    if "" in hosts.split(","):
        raise ValueError("a host is missing before or after one of its commas")
    service_name, _, db = parts.path.strip("/").partition("/")
    if kind == "cluster" and service_name not in ("", "0"):
        raise ValueError("a cluster has no databases: nothing may follow its hosts")
    if kind == "sentinel" and (not service_name or not _is_db(db or "0")):
        raise ValueError("it must end in /<service-name> or /<service-name>/<db>")
    return StoreUrl(
        kind,
        text,
        seeds,
        unquote(service_name),
        scheme,
        credentials + at,
        int(db or 0),
        tuple(options.items()),
    )


def _scheme_and_kind(text: str) -> tuple[str, Kind]:
    scheme, separator, _ = text.partition("://")
    if separator and scheme in ONE_SERVER:
        return scheme, "server"
    scheme, _, kind = scheme.partition("+")
    if separator and scheme in ("redis", "rediss"):
        if kind == "cluster":
            return scheme, "cluster"
        if kind == "sentinel":
            return scheme, "sentinel"
    raise ValueError(
        "it must start with redis://, rediss:// or unix://, or with redis+cluster:// or "
        "redis+sentinel:// (rediss+...: with TLS)"
    )


def _node(text: str, default_port: int) -> Node:
    parts = urlsplit(f"//{text}")
    if parts.port == 0:
        raise ValueError
    return Node(parts.hostname or "localhost", parts.port or default_port)


def _check_server(scheme: str, hosts: str, path: str, options: dict[str, str]) -> None:
    if scheme == "unix":
        if hosts or not path.strip("/"):
            raise ValueError("the path of its socket must follow three slashes: unix:///path")
    elif "," in hosts:
        raise ValueError(
            "it names several hosts: redis+cluster:// is for the nodes of a cluster, "
            "redis+sentinel:// for sentinels"
        )
    elif path.strip("/") and not _is_db(path.removeprefix("/").removesuffix("/")):
        raise ValueError("it must end in the number of a database, as in redis://host:6379/0")
    elif path.strip("/") and "db" in options:
        raise ValueError("it names a database twice, at its end and as an option")


def _options(query: str, scheme: str, kind: Kind) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    if len(pairs) != len(query.split("&")) and query:
        raise ValueError(f"its options must be name=value with & between; {ESCAPE}")
    known = {"db", "username", "password"} if kind == "server" else set()
    known |= SENTINEL_OPTIONS if kind == "sentinel" else set()
    found: dict[str, str] = {}
    for name, value in pairs:
        what = f"its option {name}" if OPTION_NAME.fullmatch(name) else "one of its options"
        if name in OWN_SETTINGS:
            raise ValueError(f"{what} belongs into {OWN_SETTINGS[name]}")
        if name in TLS_OPTIONS and not scheme.startswith("rediss"):
            raise ValueError(f"{what} is for TLS: it must start with rediss")
        if name not in known | TLS_OPTIONS:
            names = ", ".join(sorted(known | TLS_OPTIONS))
            raise ValueError(f"{what} is not known; there are {names}")
        if not value or name in found:
            raise ValueError(f"{what} {'is given twice' if value else 'has no value'}")
        _check_value(name, value, what)
        found[name] = value
    if "ssl_keyfile" in found and "ssl_certfile" not in found:
        raise ValueError("its option ssl_keyfile needs ssl_certfile")
    _check_files(found)
    return found


def _check_files(options: dict[str, str]) -> None:
    """Read the certificates now. At the first connection it would be too late."""
    context = ssl.create_default_context()
    try:
        if "ssl_ca_certs" in options:
            what = "ssl_ca_certs must be a file of certificates in PEM form"
            context.load_verify_locations(options["ssl_ca_certs"])
        if "ssl_certfile" in options:
            what = (
                "ssl_certfile and ssl_keyfile must be files of a certificate and its key in PEM "
                "form; ssl_password is that of the key"
            )
            key, password = options.get("ssl_keyfile"), options.get("ssl_password", "")
            context.load_cert_chain(options["ssl_certfile"], key, lambda: password)
    except OSError:  # SSLError is one too
        raise ValueError(f"its option {what}") from None


def _check_value(name: str, value: str, what: str) -> None:
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{what} must be {' or '.join(CHOICES[name])}")
    if name == "db" and not _is_db(value):
        raise ValueError(f"{what} must be the number of a database")


def _is_db(text: str) -> bool:
    return bool(DIGITS.fullmatch(text)) and int(text) <= MAX_DB
