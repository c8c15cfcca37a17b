"""The address of the history store as text: one server, a cluster, or sentinels that know it.

`redis://`, `rediss://` and `unix://` name one server; `redis+cluster://user:pass@h1:p1,h2:p2` some
nodes of a cluster; `redis+sentinel://user:pass@h1:p1,h2:p2/name/db` the sentinels that watch the
servers called `name`. Credentials are those of the servers; sentinels with a password of their own
are given it by `?sentinel_password=`. No error repeats any part of a URL: it may hold a password.
Opens no connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

ONE_SERVER = ("redis", "rediss", "unix")
DEFAULT_PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}
ESCAPE = "special characters of a password must be percent-encoded"


class Node(NamedTuple):
    """Where a server, or a sentinel, listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class StoreUrl:
    """A parsed URL. `seeds` are nodes of the cluster or the sentinels; one server has none."""

    kind: Literal["server", "cluster", "sentinel"]
    text: str = field(repr=False)
    seeds: tuple[Node, ...] = ()
    service_name: str = ""
    scheme: str = "redis"
    credentials: str = field(default="", repr=False)
    db: int = 0
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def of_server(self, node: Node) -> str:
        """The URL of one server of the cluster, or of those that the sentinels watch."""
        options = {k: v for k, v in self.options if not k.startswith("sentinel_")}
        return f"{self.scheme}://{self.credentials}{node}/{self.db}?{urlencode(options)}"

    def of_sentinel(self, node: Node) -> str:
        """The URL of one of the sentinels."""
        options = dict(self.options)
        user = quote(options.get("sentinel_username", ""), safe="")
        password = quote(options.get("sentinel_password", ""), safe="")
        credentials = f"{user}:{password}@" if password else ""
        return f"{self.scheme}://{credentials}{node}/0"


def parse_store_url(text: str) -> StoreUrl:
    """Raises ValueError with half a sentence that says what is wrong, without the value."""
    scheme, kind = _scheme_and_kind(text)
    try:
        parts = urlsplit(text)
        credentials, at, hosts = parts.netloc.rpartition("@")
        seeds = tuple(_node(host, DEFAULT_PORTS[kind]) for host in hosts.split(","))
    except ValueError:
        raise ValueError(f"its hosts and ports cannot be read; {ESCAPE}") from None
    if "@" in parts.path + parts.query + parts.fragment and scheme != "unix":
        raise ValueError(f"its hosts end too early; {ESCAPE}")
    if kind == "server":
        return StoreUrl(kind, text)
    service_name, _, db = parts.path.strip("/").partition("/")
    if kind == "cluster" and service_name not in ("", "0"):
        raise ValueError("a cluster has no databases: nothing may follow its hosts")
    if kind == "sentinel" and (not service_name or not (db or "0").isdecimal()):
        raise ValueError("it must end in /<service-name> or /<service-name>/<db>")
    return StoreUrl(
        kind,
        text,
        seeds,
        service_name,
        scheme,
        credentials + at,
        int(db or 0),
        tuple(parse_qsl(parts.query)),
    )


def _scheme_and_kind(text: str) -> tuple[str, Literal["server", "cluster", "sentinel"]]:
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
    return Node(parts.hostname or "localhost", parts.port or default_port)
