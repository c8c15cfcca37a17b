"""POST /trending: what many users had lately, in its order, by the rules of every list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from running_valkey import Server, running
from started_lifecycle import tell
from tiny_bundle import write_tiny_bundle

from service.histories.background import trending
from service.lifecycle import Lifecycle

ADMIN = {"Authorization": "Bearer an-admin-key"}
BRANDS = ("Acme", "Best", "Cosy")
USERS_OF = {"item-150": 5, "item-9": 4, "item-151": 3, "item-12": 2, "item-77": 1}


def attributes(row: int) -> dict[str, Any]:
    return {"brand": (BRANDS[row % 3],), "price": row / 4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trending") / "tiny" / "1"
    write_tiny_bundle(folder, attributes=attributes)
    return folder


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are written at once, and read for each request."""
    monkeypatch.setattr(trending, "REST_S", 0.0)
    monkeypatch.setattr(trending, "FRESH_S", -1.0)


async def send(client: httpx.AsyncClient, users_of: dict[str, int], **fields: Any) -> None:
    """Each event twice: a click, and another one of the same user."""
    for item_id, num_users in users_of.items():
        events = [
            {
                "event_id": f"{item_id} {again}",
                "user_id": f"trending-{number}",
                "item_id": item_id,
                "event_type": "click",
                **fields,
            }
            for number in range(num_users)
            for again in range(2)
        ]
        answer = await client.post("/events", json={"events": events})
        assert answer.json()["accepted"] == 2 * num_users, answer.text


async def asked(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/trending", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert [item["rank"] for item in found["items"]] == [*range(1, len(found["items"]) + 1)]
    return found


async def counted(client: httpx.AsyncClient, num_items: int) -> dict[str, Any]:
    """The answer once so many items have been counted."""
    while True:
        found = await asked(client, k=100)
        if sum(item["recent_users"] is not None for item in found["items"]) >= num_items:
            return found


def ids(found: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in found["items"]]


def test_what_many_users_had_lately_comes_first(redis_url: str, bundle: Path) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        empty = await asked(client, k=3)
        assert ids(empty) == ["item-0", "item-1", "item-2"]  # the most popular ones
        assert [item["recent_users"] for item in empty["items"]] == [None] * 3
        await send(client, USERS_OF)
        await send(client, {"item-1": 50}, event_type="view")  # enters no history
        await counted(client, len(USERS_OF))

        found = await asked(client, k=7)
        assert ids(found) == [*USERS_OF, "item-0", "item-1"]
        counts = [item["recent_users"] for item in found["items"]]
        assert counts == [5, 4, 3, 2, 1, None, None]
        assert (found["half_life_hours"], found["degraded"]) == (8000, False)
        assert "categories" not in found["items"][0]

        changed = {"hide": [{"item_id": "item-9"}], "remove": ["item-12", "item-0"]}
        answer = await client.post("/admin/items", json=changed, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        rest = ["item-150", "item-151", "item-77", "item-1", "item-2", "item-3"]
        assert ids(await asked(client, k=6)) == rest
        assert ids(await asked(client, k=3, exclude_items=["item-150", "item-1", "none"])) == [
            *("item-151", "item-77", "item-2")
        ]
        best = await asked(client, k=3, filter={"brand": ["Best"]}, metadata=True)
        assert ids(best) == ["item-151", "item-1", "item-4"]
        assert best["items"][0]["attributes"] == {"brand": ["Best"], "price": 37.75}
        capped = await asked(client, k=4, max_per={"brand": 1})
        assert ids(capped) == ["item-150", "item-151", "item-77"]
        assert capped["warnings"][0].startswith("max_per: 3 items")
        none = await asked(client, filter={"brand": ["Acne"]})
        assert (ids(none), len(none["warnings"])) == ([], 1)

        undone = {"undo": ["item-12", "item-0"], "unhide": ["item-9"]}
        await client.post("/admin/items", json=undone, headers=ADMIN)
        assert ids(await asked(client, k=6)) == [*USERS_OF, "item-0"]
        for body, param in (({"filter": {"size": ["L"]}}, "filter.size"), ({"user_id": "u"}, "")):
            refused = await client.post("/trending", json=body)
            assert refused.status_code == 422
            assert param in refused.json()["error"]["param"]
        refused = await client.post("/trending", json={"max_per": {"price": 1}})
        assert refused.json()["error"]["param"] == "max_per.price"

    tell(
        story,
        redis_url=redis_url,
        bundle=bundle,
        admin_keys=["an-admin-key"],
        trending_half_life_hours=8000,
    )


def test_other_event_types_count_if_a_setting_says_so(redis_url: str, bundle: Path) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        await send(client, {"item-5": 2})
        await send(client, {"item-6": 1}, event_type="view", user_id="trending-v")
        assert ids(await counted(client, 1))[0] == "item-6"

    types = {"trending_event_types": ["view"], "trending_half_life_hours": 8001}
    tell(story, redis_url=redis_url, bundle=bundle, **types)


def test_none_counts_if_a_setting_says_so(redis_url: str, bundle: Path) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        await send(client, {"item-8": 2})
        found = await asked(client, k=1)
        assert ids(found) == ["item-0"]
        assert "UNMASK_TRENDING_EVENT_TYPES" in found["warnings"][0]

    types = {"trending_event_types": [], "trending_half_life_hours": 8002}
    tell(story, redis_url=redis_url, bundle=bundle, **types)


@pytest.mark.parametrize("fallback", ["history", "off"])
def test_without_the_store_the_answer_says_so(tmp_path: Path, bundle: Path, fallback: str) -> None:
    valkey = Server(tmp_path, {"save": '""'})

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        await send(client, {"item-7": 2})
        await counted(client, 1)
        valkey.kill()
        away = await client.post("/trending", json={"k": 2})
        assert away.status_code == 200
        assert ids(away.json()) == ["item-7", "item-0"]  # what was read before
        assert away.json()["degraded_reasons"] == ["history_unavailable"]
        assert away.headers["X-Unmask-Degraded"] == "history_unavailable"

        lifecycle.trending._read = {}  # as after a start
        away = await client.post("/trending", json={"k": 1})
        if fallback == "off":
            assert away.status_code == 503
            assert away.json()["error"]["code"] == "history_unavailable"
        else:
            assert (ids(away.json()), away.json()["degraded"]) == (["item-0"], True)

    with running(valkey):
        tell(story, redis_url=valkey.url, bundle=bundle, fallback=fallback)
