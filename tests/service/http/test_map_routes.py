"""The routes of the map: what a client has is not sent again; what is asked wrongly is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import numpy as np
from started_lifecycle import tell
from tiny_bundle import NUM_ITEMS, tiny_catalogue, tiny_places, write_tiny_bundle

from service.lifecycle import Lifecycle


def numbers(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2")


def test_the_map_is_answered_once_and_then_known(redis_url: str, tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        first = await client.get("/map")
        assert first.headers["content-type"] == "application/json"
        assert first.headers["cache-control"] == "private, no-cache"
        body = first.json()
        assert body["bundle"] == "tiny@1"
        assert np.array_equal(numbers(body["places"]).reshape(-1, 2), tiny_places())
        assert len(body["item_ids"]) == NUM_ITEMS == body["num_items"]

        groups = await client.get("/map/groups?position=2&limit=7")
        assert numbers(groups.json()["groups"]).tolist() == tiny_catalogue().codes[:7, 2].tolist()

        for answer in (first, groups):
            for tag in (answer.headers["etag"], f'"other", W/{answer.headers["etag"]}'):
                known = await client.get(answer.request.url, headers={"If-None-Match": tag})
                assert (known.status_code, known.content) == (304, b"")
                assert known.headers["etag"] == answer.headers["etag"]
        changed = await client.get("/map?limit=3", headers={"If-None-Match": first.headers["etag"]})
        assert changed.json()["item_ids"] == ["item-0", "item-1", "item-2"]

        for url, param in (
            ("/map?limit=0", "limit"),
            ("/map?limit=50001", "limit"),
            ("/map?limit=1_0", "limit"),
            ("/map/groups", "position"),
            ("/map/groups?position=4", "position"),
            ("/map/groups?attribute=colour", "attribute"),
        ):
            refused = await client.get(url)
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), url

    path = write_tiny_bundle(tmp_path / "tiny", has_map=True)
    tell(story, redis_url=redis_url, bundle=path)


def test_a_bundle_without_a_map_says_so(redis_url: str, bundles_dir: Path) -> None:
    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        for url in ("/map", "/map/groups?position=0"):
            answer = await client.get(url)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "map_not_found")

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")
