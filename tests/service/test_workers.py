"""Several workers on one port, as real processes: `UNMASK_WORKERS=2`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running_service import PATIENCE_S, Service, service_process, wait_until
from steady_load import steady_load
from tiny_bundle import EMBEDDING_DIMS, write_tiny_bundle

ADMIN = {"Authorization": "Bearer of-an-operator"}
BODY = {"user_id": "x", "history": ["item-1", "item-2"], "k": 5}
NUM_CONNECTIONS = 8


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers, with an embedded Valkey. The last test ends them."""
    folder = tmp_path_factory.mktemp("workers")
    for version, offset in (("1", 0), ("2", 50)):
        write_tiny_bundle(folder / "store" / "tiny" / version, version=version, offset=offset)
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as stack:
        patched.setenv("PYTHONUNBUFFERED", "1")  # as in the images: a line must still be one write
        service = stack.enter_context(
            service_process(
                folder,
                bundles_dir=folder / "store",
                bundle="tiny@1",
                admin_keys="of-an-operator",
                workers=2,
            )
        )
        wait_until(lambda: service.samples()["unmask_workers"] == 2)
        wait_until(lambda: len(ready_workers(service)) == 2)
        yield service


def ready_workers(service: Service) -> list[int]:
    """The numbers of the workers that have said that they are ready, one for each time."""
    lines = [json.loads(line) for line in service.stdout.splitlines()]
    return [line["worker"] for line in lines if line["event"] == "ready"]


def pid_of(service: Service, number: int) -> int:
    """The process that is this worker."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            told = re.search(r'_UNMASK_WORKER=.*?"number": (\d+)', (folder / "environ").read_text())
            if parent == service.process.pid and told and int(told[1]) == number:
                return int(folder.name)
    raise AssertionError(f"no worker {number}: {service.stdout} {service.stderr}")


@contextlib.contextmanager
def clients(service: Service) -> Iterator[list[httpx.Client]]:
    """Clients with a connection each; together they reach every worker."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(httpx.Client(base_url=service.client.base_url, timeout=PATIENCE_S))
            for _ in range(NUM_CONNECTIONS)
        ]


def answers_of(service: Service) -> list[dict[str, object]]:
    """What each of several connections gets, without what is never twice the same."""
    with clients(service) as connections:
        said = [client.post("/recommend", json=BODY) for client in connections]
        assert [one.status_code for one in said] == [200] * len(said)
        kept = ("items", "bundle", "served_by", "decoding")
        return [{name: one.json()[name] for name in kept} for one in said]


def counts_of(service: Service) -> dict[str, float]:
    """All that is counted, and so never falls."""
    return {
        name: value
        for name, value in service.samples().items()
        if re.search(r"(_total|_count|_bucket|_sum)(\{|$)", name)
    }


def test_all_workers_answer_and_answer_the_same(two: Service) -> None:
    first, *others = answers_of(two)
    assert all(other == first for other in others)
    lines = [json.loads(line) for line in two.stdout.splitlines()]
    asked = [line for line in lines if line.get("route") == "/recommend"]
    assert {line["worker"] for line in asked} == {1, 2}
    assert len({line["user_hash"] for line in asked}) == 1


def test_metrics_of_any_worker_are_those_of_all(two: Service) -> None:
    name = 'unmask_http_requests_total{method="POST",route="/recommend",status="200"}'
    answers_of(two)
    before = two.samples()[name]
    answers_of(two)
    with clients(two) as connections:
        for client in connections:
            text = client.get("/metrics").text
            assert f"{name} {before + NUM_CONNECTIONS}" in text
            assert "unmask_workers 2.0" in text
            assert 'unmask_bundle_info{name="tiny",version="1"} 1.0' in text


def test_an_item_that_is_added_at_one_is_there_in_all(two: Service) -> None:
    item = {"item_id": "fresh", "title": "Fresh", "embedding": [1.0] * EMBEDDING_DIMS}
    added = two.client.post("/admin/items", json={"add": [item]}, headers=ADMIN)
    assert (added.status_code, added.json()["added"]) == (200, 1), added.text
    asked = BODY | {"candidates": ["fresh"], "k": 1}
    with clients(two) as connections:
        for client in connections:
            said = client.post("/recommend", json=asked).json()
            assert [one["item_id"] for one in said["items"]] == ["fresh"]


def test_a_swap_reaches_all_and_loses_no_request(two: Service) -> None:
    before = answers_of(two)[0]

    def ask(client: httpx.Client, _: int) -> None:
        assert client.post("/recommend", json=BODY).status_code == 200

    with steady_load(two.client.base_url, [ask] * 4, pause_s=0.02):
        for operation in ("load", "activate"):
            body = {} if operation == "load" else None
            path = f"/admin/bundles/tiny@2/{operation}"
            answer = two.client.post(path, json=body, headers=ADMIN)
            assert answer.status_code == 200, answer.text
        first, *others = answers_of(two)
        assert first["bundle"] == "tiny@2"
        assert first["items"] != before["items"]
        assert all(other == first for other in others)
        rolled_back = two.client.post("/admin/bundles/rollback", headers=ADMIN)
        assert rolled_back.status_code == 200, rolled_back.text
        assert answers_of(two) == [before] * NUM_CONNECTIONS


def test_a_worker_that_is_killed_is_replaced_by_one_like_the_others(two: Service) -> None:
    answer, counts = answers_of(two)[0], counts_of(two)
    num_ready = len(ready_workers(two))
    os.kill(pid_of(two, 2), signal.SIGKILL)
    while len(ready_workers(two)) == num_ready:
        with contextlib.suppress(httpx.TransportError):  # a connection of the dead worker
            now = counts_of(two)
            assert {name for name in counts if now[name] < counts[name]} == set()
        time.sleep(0.05)
    assert ready_workers(two)[-1] == 2
    wait_until(lambda: two.samples()["unmask_workers"] == 2)
    assert answers_of(two) == [answer] * NUM_CONNECTIONS
    now = counts_of(two)
    assert {name for name in counts if now[name] < counts[name]} == set()
    assert "worker_ended" in two.stdout


def test_sigterm_ends_all(two: Service) -> None:
    workers = [pid_of(two, number) for number in (1, 2)]
    two.process.send_signal(signal.SIGTERM)
    assert two.wait() == -signal.SIGTERM
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert two.stderr == ""
    assert all(json.loads(line)["event"] for line in two.stdout.splitlines())


def test_what_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    with service_process(tmp_path, wait=False, bundle=tmp_path / "none", workers=2) as service:
        assert service.wait() == 1
    assert service.stderr.count("unmask: ") == 1
    assert str(tmp_path / "none") in service.stderr
