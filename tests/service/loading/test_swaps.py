"""Bundles are swapped while clients ask: no request fails or mixes two, and memory is freed."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from running_service import Service, service_process, wait_until
from steady_load import Ask, steady_load
from tiny_bundle import edit_manifest, write_tiny_bundle

from service.batching.lanes import Engine
from service.bundles.bundle import Bundle
from service.decoding import Job, Schedule
from service.loading.loaded_bundles import LoadedBundle, LoadedBundles
from service.telemetry.metrics import Metrics

ADMIN = {"Authorization": "Bearer an-admin-key"}
REFS = ("swap@1", "swap@2", "swap@3")
SWAPS = 9
PAUSE_S = 0.02  # of each client, so that a load of a bundle gets on
K = 5
HISTORIES = [["item-20", "item-21"], ["item-3"], ["item-3", "item-40"]]
MODES: list[dict[str, Any]] = [
    {},
    {"r_warm": 0, "m_par": 4},
    {"explain": True, "metadata": True},
    {"schedule": "auto"},
]
BIG_ITEMS = 150_000  # of big@1
BIG_BYTES = 40 << 20  # what it takes at least
MAY_STAY = 0.35  # of it, where long-lived objects lie between its own


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bundles with different answers, a big one, and some folders that are no bundles."""
    folder = tmp_path_factory.mktemp("swaps")
    for number, ref in enumerate(REFS, start=1):
        name, version = ref.split("@")
        path = folder / name / version
        write_tiny_bundle(path, name=name, version=version, offset=5 * 2**number // 2, title=ref)
    write_tiny_bundle(folder / "big" / "1", name="big", num_items=BIG_ITEMS)

    def broken(version: str) -> Path:
        path = folder / "swap" / version
        write_tiny_bundle(path, name="swap", version=version, created_at="2025")
        return path

    flipped = broken("flipped") / "codes.npy"
    flipped.write_bytes(flipped.read_bytes()[:-1] + bytes([flipped.read_bytes()[-1] ^ 1]))
    cut = broken("cut") / "encoder.onnx"
    cut.write_bytes(cut.read_bytes()[:100])
    half = broken("half") / "manifest.json"
    half.write_text(half.read_text()[:200])
    edit(broken("future"), format_version=99)
    files = json.loads((broken("escaping") / "manifest.json").read_text())["files"]
    outside = folder / "outside.npy"
    shutil.copy(folder / "swap" / "escaping" / "codes.npy", outside)
    escaping = {("../../outside.npy" if n == "codes.npy" else n): f for n, f in files.items()}
    edit(folder / "swap" / "escaping", files=escaping)
    (folder / "swap" / "empty").mkdir()
    return folder


BROKEN = ("flipped", "cut", "half", "future", "escaping", "empty")


def edit(path: Path, **fields: Any) -> None:
    edit_manifest(path, lambda manifest: manifest.update(fields))


@contextmanager
def serving(store: Path, bundle: str, redis_url: str, folder: Path) -> Iterator[Service]:
    with service_process(
        folder, bundles_dir=store, bundle=bundle, redis_url=redis_url, admin_keys="an-admin-key"
    ) as service:
        service.client.headers.update(ADMIN)
        yield service


@pytest.fixture(scope="module")
def service(
    store: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Each test that uses it leaves swap@1 active and nothing else loaded, but for the last one."""
    with serving(store, "swap@1", redis_url, tmp_path_factory.mktemp("swapped")) as service:
        yield service


def admin(service: Service, path: str, body: Any = None) -> httpx.Response:
    """The first load of a big bundle may compile what small ones do not need."""
    return service.client.post(f"/admin/{path}", json=body, timeout=300)


Expected = dict[tuple[str, int, int], list[str]]


@pytest.fixture(scope="module")
def expected(store: Path) -> Expected:
    """The items of each bundle's answer to each history in each mode, from the decoder itself."""
    found: Expected = {}
    for ref in REFS:
        bundle = Bundle.load(store / ref.replace("@", "/"))
        for n, history in enumerate(HISTORIES):
            rows = bundle.catalogue.rows_of(history)
            for mode, fields in enumerate(MODES):
                r_warm, m_par = fields.get("r_warm", 2), fields.get("m_par", 2)
                schedule = Schedule.from_params(num_subspaces=4, r_warm=r_warm, m_par=m_par)
                job = Job(rows, K, schedule, 10, excluded=np.unique(rows))
                [decoded], _ = bundle.decoder.decode([job])
                items = [bundle.items[row].item_id for row in decoded.rows.tolist()]
                found[ref, n, mode] = items
    assert len({tuple(found[ref, 0, 0]) for ref in REFS}) == len(REFS)
    return found


def asking(expected: Expected, seen: set[str]) -> Ask:
    """Every answer comes completely from the bundle that it names. Single requests and batches."""

    def check(body: dict[str, Any], n: int, mode: int) -> None:
        ref = body["bundle"]
        items = [item["item_id"] for item in body["items"]]
        assert items == expected[ref, n, mode], (ref, n, mode)
        assert {item["title"] for item in body["items"]} == {f"{ref} of {one}" for one in items}
        assert body["degraded"] is False
        seen.add(ref)

    def ask(client: httpx.Client, count: int) -> None:
        n, mode = count % len(HISTORIES), count % len(MODES)
        requests = [
            {"user_id": "u", "k": K, "history": history, **MODES[mode]} for history in HISTORIES
        ]
        if count % 3:
            answer = client.post("/recommend", json=requests[n])
            assert answer.status_code == 200, answer.text
            assert answer.headers["X-Unmask-Bundle"] == answer.json()["bundle"]
            check(answer.json(), n, mode)
        else:
            answer = client.post("/recommend/batch", json={"requests": requests})
            for n, result in enumerate(answer.json()["results"]):
                assert result["status"] == 200, result
                check(result["response"], n, mode)

    return ask


@pytest.mark.parametrize("version", BROKEN)
def test_a_broken_bundle_changes_nothing(
    service: Service, expected: Expected, version: str
) -> None:
    """It is loaded while clients ask. Afterwards it cannot be activated either."""
    seen: set[str] = set()
    with steady_load(
        service.client.base_url, [asking(expected, seen)] * 2, pause_s=PAUSE_S
    ) as load:
        for _ in range(2):
            answer = admin(service, f"bundles/swap@{version}/load", {})
            code = "bundle_not_found" if version == "empty" else "bundle_invalid"
            assert answer.json()["error"]["code"] == code, answer.text
            assert answer.status_code == (404 if version == "empty" else 422)
        answer = admin(service, f"bundles/swap@{version}/activate")
        assert answer.json()["error"]["code"] == "bundle_not_loaded"
        answered = load.total
        wait_until(lambda: load.total > answered + 8 or load.has_failed)
    assert seen == {"swap@1"}
    assert service.roles() == {"swap@1": ["active"]}
    assert admin(service, "bundles/swap@2/load", {}).status_code == 200  # the place is free again
    assert admin(service, "bundles/swap@2/unload").status_code == 200


def test_one_bundle_is_loaded_at_a_time(service: Service, expected: Expected) -> None:
    """The big bundle takes a while, and meanwhile clients are answered."""
    with steady_load(
        service.client.base_url, [asking(expected, set())] * 2, pause_s=PAUSE_S
    ) as load:
        with ThreadPoolExecutor(1) as pool:
            refused: list[httpx.Response] = []

            def is_refused() -> bool:
                refused.append(admin(service, "bundles/swap@2/load", {}))
                return refused[-1].status_code == 409

            answered = load.total
            loading = pool.submit(admin, service, "bundles/big@1/load", {})
            while not is_refused():
                if loading.done():  # it came second, so it was refused
                    assert loading.result().status_code == 409
                    loading = pool.submit(admin, service, "bundles/big@1/load", {})
            assert refused[-1].json()["error"]["code"] == "bundle_busy"
            rollback = admin(service, "bundles/rollback")
            assert rollback.json()["error"]["code"] == "no_previous_bundle"
            assert loading.result().status_code == 200
        assert load.total > answered
    assert service.roles()["big@1"] == ["candidate"]
    assert admin(service, "bundles/big@1/unload").status_code == 200


def test_swaps_and_rollbacks_fail_and_mix_nothing(service: Service, expected: Expected) -> None:
    seen: set[str] = set()
    with steady_load(
        service.client.base_url, [asking(expected, seen)] * 4, pause_s=PAUSE_S
    ) as load:
        active, before = "swap@1", ""
        for swap in range(SWAPS):
            if swap % 3 == 2:
                assert admin(service, "bundles/rollback").status_code == 200
                active, before = before, active
            else:
                ref = next(ref for ref in REFS if ref not in (active, before))
                assert admin(service, f"bundles/{ref}/load", {}).status_code == 200
                assert admin(service, f"bundles/{ref}/activate").status_code == 200
                active, before = ref, active
            assert service.roles()[active] == ["active"]
            seen.clear()
            answered = load.total
            wait_until(lambda n=answered: load.total >= n + 12 or load.has_failed)  # type: ignore[misc]
            assert active in seen or load.has_failed
    assert service.stderr == ""


def test_memory_returns(store: Path, redis_url: str, tmp_path: Path) -> None:
    """Memory returns after a swap when nobody asks. The rounds show that losses do not add up.

    The first round makes things that stay, above all compiled code for so many items. They lie
    between things that are freed. The later rounds use that room.
    """

    with serving(store, "swap@1", redis_url, tmp_path) as service:

        def swap_to(ref: str) -> None:
            assert admin(service, f"bundles/{ref}/load", {}).status_code == 200
            assert admin(service, f"bundles/{ref}/activate").status_code == 200
            answer = service.recommend(user_id="u", history=["item-3"])
            assert answer.json()["bundle"] == ref

        def swap_back() -> None:
            assert admin(service, "bundles/rollback").status_code == 200
            assert admin(service, "bundles/big@1/unload").status_code == 200

        swap_to("swap@2")
        start = service.rss_bytes
        swap_to("big@1")
        swap_back()
        highest = []
        for _ in range(3):
            swap_to("big@1")
            loaded = service.rss_bytes
            highest.append(loaded)
            assert loaded - start > BIG_BYTES
            swap_back()
            most = loaded - (1 - MAY_STAY) * BIG_BYTES
            wait_until(lambda: service.rss_bytes < most)  # noqa: B023
        assert highest[-1] - highest[1] < MAY_STAY * BIG_BYTES


def test_memory_of_the_first_bundle_is_used_again(
    store: Path, redis_url: str, tmp_path: Path
) -> None:
    """It lies between things that stay, so not all of it is freed. But the next bundle uses it."""
    with serving(store, "big@1", redis_url, tmp_path) as service:
        assert service.recommend(user_id="u", history=["item-3"]).status_code == 200
        assert admin(service, "bundles/swap@1/load", {}).status_code == 200
        assert admin(service, "bundles/swap@1/activate").status_code == 200
        before = service.rss_bytes
        assert admin(service, "bundles/big@1/unload").status_code == 200
        assert admin(service, "bundles/big@1/load", {}).status_code == 200
        assert service.rss_bytes - before < 0.75 * BIG_BYTES


def test_the_garbage_collector_does_not_look_at_a_loaded_bundle(store: Path) -> None:
    async def run() -> None:
        def load(path: Path) -> LoadedBundle:
            bundle = Bundle.load(path)
            return LoadedBundle(bundle, Engine(bundle.decoder.decode), path)

        loaded_bundles = LoadedBundles(load, Metrics())
        await loaded_bundles.start(store / "swap" / "1")
        watched = {id(one) for one in gc.get_objects()}
        items = loaded_bundles.active.bundle.items
        assert not watched & {id(items), *map(id, items)}

    try:
        asyncio.run(run())
    finally:
        gc.unfreeze()
