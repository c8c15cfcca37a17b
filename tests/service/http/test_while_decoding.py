"""What happens to requests while a batch is being decoded, which takes as long as a test needs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from started_lifecycle import HeldDecoding, Story, tell

from service.lifecycle import Lifecycle

BODY = {"user_id": "x", "history": ["item-1"]}
REFUSED = {"reason": "queue_full"}


@pytest.fixture
def bundle(bundles_dir: Path) -> Path:
    return bundles_dir / "tiny" / "1"


def test_a_full_queue_is_a_429(
    redis_url: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        held = HeldDecoding(lifecycle, monkeypatch)
        first = await held.first(client)
        refused = await client.post("/recommend", json=BODY)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        error = refused.json()["error"]
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        sample = lifecycle.metrics.registry.get_sample_value
        assert sample("unmask_rejected_total", REFUSED) == 1
        held.go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/recommend", json=BODY)).status_code == 200

    tell(story, redis_url=redis_url, bundle=bundle, max_queue_rows=10)


def late(fallback: bool, monkeypatch: pytest.MonkeyPatch) -> Story:
    """A request whose time is up while it is being decoded."""

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        held = HeldDecoding(lifecycle, monkeypatch)
        answer = await client.post("/recommend", json=BODY | {"timeout_ms": 1000})
        assert held.is_held.is_set()
        held.go_on.set()
        body = answer.json()
        if fallback:
            assert (answer.status_code, body["degraded_reasons"]) == (200, ["deadline"])
            assert body["served_by"] == "popular"
        else:
            assert answer.status_code == 504
            assert body["error"]["code"] == "deadline_exceeded"
            assert body["error"]["retryable"] is False

    return story


def test_a_deadline_is_a_504(redis_url: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(late(False, monkeypatch), redis_url=redis_url, bundle=bundle)


def test_with_fallback_all_popular_items_answer_instead(
    redis_url: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(late(True, monkeypatch), redis_url=redis_url, bundle=bundle, fallback="all")


def test_a_client_that_leaves_takes_its_job_along(
    redis_url: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beams are free again: a queue of ten rows takes the next request."""

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        held = HeldDecoding(lifecycle, monkeypatch)
        leaves = await held.first(client)
        assert (await client.post("/recommend", json=BODY)).status_code == 429
        leaves.cancel()
        await asyncio.wait([leaves])
        sample = lifecycle.metrics.registry.get_sample_value

        def count(outcome: str) -> float:
            labels = {"bundle": "tiny@1", "variant": "default", "outcome": outcome}
            return sample("unmask_recommend_requests_total", labels) or 0

        while not count("cancelled"):
            await asyncio.sleep(0.01)
        waits = await held.next(client)
        assert held.num_waiting == 1
        held.go_on.set()
        assert (await waits).status_code == 200
        assert (count("cancelled"), count("ok")) == (1, 1)

    tell(story, redis_url=redis_url, bundle=bundle, over_a_socket=True, max_queue_rows=10)


def test_a_batch_does_not_stop_health_checks(
    redis_url: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        held = HeldDecoding(lifecycle, monkeypatch)
        first = await held.first(client)
        assert (await client.get("/health/live")).status_code == 200
        assert not first.done()
        held.go_on.set()
        assert (await first).status_code == 200

    tell(story, redis_url=redis_url, bundle=bundle, over_a_socket=True)
