"""Faults of everything except the store: descriptors, bundles, clients, the end of the service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from clients import PATIENCE_S, within_patience
from running_service import Service, wait_until
from stage import ADMIN, Stage
from steady_load import steady_load

LIMIT = 160  # descriptors
FLOOD = 400
STALLED = 64
BYSTANDERS = 16
ATTACKER = "127.0.0.2"  # another peer than the clients
BODY = b'{"user_id": "x", "history": ["item-1"], "k": 3}'
HEAD = (
    b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "unknown method": b"BREW /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a raw byte in the path": b"GET /caf\xe9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is not UTF-8": b"GET /users/%ff/history HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": b"GET /health/live HTTP/1.1\r\nHost x\r\n\r\n",
    "two lengths": b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\nab",
    "a length that is no number": b"POST /recommend HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: x\r\n\r\n",
    "a chunk that is no number": b"POST /recommend HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "a head of 100 KB": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
}


@contextlib.contextmanager
def connections(service: Service, number: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Connections from another address, on each of which this was sent."""
    address = (service.client.base_url.host, service.client.base_url.port)
    with contextlib.ExitStack() as opened:
        result = []
        for _ in range(number):
            one = opened.enter_context(
                socket.create_connection(address, PATIENCE_S, source_address=(ATTACKER, 0))
            )
            one.sendall(data)
            result.append(one)
        yield result


def descriptors_used_up(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(
            redis_url=valkey.url, redis_pool_size=8, descriptors=(LIMIT // 2, LIMIT)
        ) as service,
        stage.clients(service, ends=True) as clients,
    ):
        lines = len(service.stdout.splitlines())
        for data in (b"", HEAD):
            with connections(service, FLOOD, data):
                wait_until(lambda: bool(stage.logged(service, "descriptors_used_up")))
                if not data:  # those that are idle make room for others
                    live = httpx.get(service.client.base_url.join("/health/live"), timeout=300)
                    stage.row.check("health is answered meanwhile", live.status_code == 200)
            stage.row.check("served when it is over", clients.reaches(stage.events // 2))
        quiet = ("request", "batch")
        told = [json.loads(line) for line in service.stdout.splitlines()[lines:]]
        told = [line for line in told if line["event"] not in quiet]
        stage.row.check("a few lines in the log", len(told) < 10 and service.stderr == "")
        hung_up = service.samples()["unmask_connections_hung_up_total"]
        stage.row.seen.append(f"{hung_up:.0f} idle connections closed, {len(told)} lines logged.")


def flipped_bit(stage: Stage) -> None:
    damaged = stage.bundles / "tiny" / "flipped"
    shutil.copytree(stage.bundles / "tiny" / "2", damaged)
    names = sorted(path.name for path in damaged.iterdir() if path.name != "manifest.json")
    manifest = damaged / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "2"', '"version": "flipped"'))
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        statuses: Counter[str] = Counter()
        for name in names:
            good = (damaged / name).read_bytes()
            flipped = bytearray(good)
            flipped[len(good) // 2] ^= 1
            (damaged / name).write_bytes(flipped)
            path = "/admin/bundles/tiny@flipped/load"
            answer = service.client.post(path, json={}, headers=ADMIN)
            statuses[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
            (damaged / name).write_bytes(good)
        stage.row.check("each is bundle_invalid", statuses == {"422 bundle_invalid": len(names)})
        stage.row.check("the active bundle stays", service.roles().get("tiny@1") == ["active"])
        clients.reaches(stage.events)
        stage.row.seen.append(f"{len(names)} files: {counted(statuses)}.")
    shutil.rmtree(damaged)


def load_that_hangs(stage: Stage) -> None:
    """One file of the bundle is a pipe that nobody writes to."""
    hanging = stage.bundles / "tiny" / "hanging"
    shutil.copytree(stage.bundles / "tiny" / "2", hanging)
    pipe = hanging / "codes.npy"
    pipe.unlink()
    os.mkfifo(pipe)
    url = "/admin/bundles/"
    answers: list[int] = []
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        for operation in ("load", "activate"):
            body = {"json": {}} if operation == "load" else {}
            done = service.client.post(f"{url}tiny@2/{operation}", headers=ADMIN, **body)
            assert done.status_code == 200, done.text

        def load() -> None:
            with httpx.Client(base_url=service.client.base_url, timeout=300) as client:
                got = client.post(f"{url}tiny@hanging/load", json={}, headers=ADMIN)
                answers.append(got.status_code)

        loading = threading.Thread(target=load)
        loading.start()
        clients.reaches(stage.events)
        back = service.client.post(f"{url}rollback", headers=ADMIN).status_code
        stage.row.check("rollback is not blocked", back == 200)
        forth = service.client.post(f"{url}tiny@2/activate", headers=ADMIN).status_code
        stage.row.check("activate is not blocked", forth == 200)
        with contextlib.suppress(OSError):  # nobody reads it: the load has been refused
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        loading.join(60)
        stage.row.check("the load ends in bundle_invalid", answers == [422])
        stage.row.seen.append(f"rollback {back}, activate {forth}, load {answers}.")
    shutil.rmtree(hanging)


def malformed_http(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        before = _errors_counted(service)
        statuses: Counter[str] = Counter()
        bare, sent = [], 0
        for name, data in MALFORMED.items():
            for _ in range(5):
                status, has_body = _answer_to(service, data)
                statuses[status] += 1
                sent += 1
                if not has_body:
                    bare.append(name)
        metered = round(_errors_counted(service) - before)
        stage.row.check("each is answered 4xx", all(s.startswith("4") for s in statuses))
        stage.row.check(f"the one error body (not: {', '.join(sorted(set(bare)))})", not bare)
        stage.row.check(f"all counted ({metered} of {sent})", metered == sent)
        clients.reaches(stage.events)
        stage.row.seen.append(f"{sent} requests: {counted(statuses)}.")


def _answer_to(service: Service, data: bytes) -> tuple[str, bool]:
    """The status, and whether the body is the service's own."""
    with connections(service, 1, data) as [connection]:
        received = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(1 << 16):
                received += part
                head, _, body = received.partition(b"\r\n\r\n")
                with contextlib.suppress(ValueError):
                    error = json.loads(body).get("error", {})
                    return head.split()[1].decode(), "request_id" in error
        status = received.split()[1].decode() if received else "closed"
        return status, False


def _errors_counted(service: Service) -> float:
    return sum(
        value
        for name, value in service.samples().items()
        if name.startswith("unmask_http_requests_total") and 'status="4' in name
    )


def stalled_bodies(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url, slo_ms=100) as service,
        stage.clients(service) as clients,
        connections(service, STALLED, HEAD + BODY[:-1]) as stalled,
    ):
        clients.reaches(stage.events)
        statuses: Counter[str] = Counter()

        def ask(_: int) -> int:
            body = {"user_id": "x", "history": ["item-1"], "k": 3}
            url = service.client.base_url.join("/recommend")
            return httpx.post(url, json=body, timeout=PATIENCE_S).status_code

        with ThreadPoolExecutor(BYSTANDERS) as pool:
            others = Counter(pool.map(ask, range(5 * BYSTANDERS)))
        stage.row.check("no other client is turned away", set(others) == {200})
        stage.row.seen.append(f"Other clients {counted(others)}.")
        for connection in stalled:
            connection.settimeout(PATIENCE_S)
            answer = connection.recv(1 << 16)
            statuses[answer.split()[1].decode() if answer else "closed"] += 1
        stage.row.check("stalled ones get 408 or 429", set(statuses) <= {"408", "429"})
        stage.row.seen.append(f"Stalled: {counted(statuses)}.")


def decode_overload(stage: Stage) -> None:
    """More requests than can be decoded, from many clients."""
    statuses: Counter[int] = Counter()

    def ask(client: httpx.Client, _: int) -> None:
        body = {"user_id": "x", "history": ["item-1"], "k": 3}
        statuses[client.post("/recommend", json=body).status_code] += 1

    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url, bundle="tiny@slow", slo_ms=100) as service,
    ):
        with steady_load(service.client.base_url, [ask] * 64):
            wait_until(lambda: statuses[429] + statuses[504] > 20 and statuses[200] > 3)
            live = {service.client.get("/health/live").status_code for _ in range(10)}
        body = {"user_id": "x", "history": ["item-1"]}
        recovered = within_patience(lambda: service.recommend(**body).status_code == 200)
    stage.row.check("200, 429 or 504 only", set(statuses) <= {200, 429, 504})
    stage.row.check("live", live == {200})
    stage.row.check("recovery without a restart", recovered)
    stage.row.seen.append(f"Recommendations {counted(statuses)}; live {sorted(live)}.")


def told_to_stop(stage: Stage) -> None:
    _ends(stage, signal.SIGTERM)


def killed(stage: Stage) -> None:
    _ends(stage, signal.SIGKILL)


def _ends(stage: Stage, how: signal.Signals) -> None:
    """The service ends and is started again with the same histories."""
    history = stage.folder / "history"
    with contextlib.ExitStack() as services:
        service = services.enter_context(stage.service("first", history_dir=history))
        with stage.clients(service, ends=True) as clients:
            service.process.send_signal(how)
            wait_until(lambda: service.process.poll() is not None)
            clients.pause()
            cut = {
                name: number
                for name, number in clients.seen["meanwhile"].items()
                if name.endswith("no answer")
            }
            if how == signal.SIGTERM:
                stage.row.check(f"no request is cut off ({cut})", not cut)
            clients.service = services.enter_context(stage.service("second", history_dir=history))
            clients.go_on()


def unwritable_folder(stage: Stage) -> None:
    """The folder of the store is removed, and restored while the store is started again."""
    history, away = stage.folder / "history", stage.folder / "away"
    with (
        stage.service(history_dir=history) as service,
        stage.clients(service) as clients,
    ):
        history.rename(away)
        os.kill(service.valkey_pid(), signal.SIGKILL)
        wait_until(lambda: bool(stage.logged(service, "embedded_store_down")))
        stage.row.check("events are refused", clients.meets(10, stage.events))
        away.rename(history)
        back = within_patience(lambda: bool(stage.logged(service, "embedded_store_started_again")))
        stage.row.check("it is started again", back)


def counted(numbers: Mapping[Any, int]) -> str:
    """`200: 5, 429: 1`"""
    return ", ".join(f"{name}: {numbers[name]}" for name in sorted(numbers))
