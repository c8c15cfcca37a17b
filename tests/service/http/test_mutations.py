"""Requests with a change in them: each is answered in the one documented way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import Service, service_process, wait_until

from loadtest.mutate import CHANGES, Answer, fault, mutate, mutated

NUM_REQUESTS = 3000  # `python -m loadtest.mutate` sends 100,000


@pytest.fixture(scope="module")
def service(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service_process(
        tmp_path_factory.mktemp("mutations"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=redis_url,
    ) as service:
        yield service


def test_what_was_changed_is_answered_in_the_one_way(service: Service) -> None:
    outcome = asyncio.run(mutate(str(service.client.base_url), NUM_REQUESTS, 17, 8))
    assert outcome.failures == []
    assert sum(outcome.statuses.values()) == NUM_REQUESTS
    assert set(outcome.changes) == {change.__name__ for change in CHANGES}
    assert set(outcome.statuses) >= {200, 204, 400, 404, 405, 413, 415, 422, 431}
    # Each kind must have something to show.
    assert all(outcome.statuses[status] > NUM_REQUESTS / 100 for status in (200, 400, 405, 422))
    wait_until(lambda: service.samples()["unmask_inflight_requests"] == 0)
    assert service.stderr == ""
    answer = service.recommend(user_id="x", history=["item-1"])
    assert (answer.status_code, answer.json()["served_by"]) == (200, "model")


def test_the_same_seed_sends_the_same() -> None:
    assert [mutated(1, n) for n in range(100)] == [mutated(1, n) for n in range(100)]
    assert [mutated(1, n) for n in range(100)] != [mutated(2, n) for n in range(100)]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Answer(200, {"x-request-id": "a"}, b"{}"), None),
        (Answer(200, {}, b"{}"), "no X-Request-ID"),
        (Answer(500, {}, b""), "status 500"),
        (Answer(400, {"x-request-id": "a", "content-type": "text/plain"}, b"no"), "as text/plain"),
        (
            Answer(400, {"x-request-id": "a", "content-type": "application/json"}, b"{}"),
            "not the one error body",
        ),
    ],
)
def test_a_wrong_answer_is_noticed(answer: Answer, found: str | None) -> None:
    fault_found = fault(answer, has_body=True)
    assert fault_found is None if found is None else found in (fault_found or "")
