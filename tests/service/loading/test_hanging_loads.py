"""A load that hangs stops nothing else: bundles are swapped, items change, another load starts."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import PATIENCE_S, service_process, wait_until
from tiny_bundle import NUM_ITEMS, write_tiny_bundle

from service.batching.lanes import Engine
from service.bundles.bundle import Bundle
from service.errors import BundleConflict, BundleLoadTimedOut
from service.http.error_map import status_and_body
from service.loading.loaded_bundles import LoadedBundle, LoadedBundles
from service.telemetry.interpreter_pauses import NEVER
from service.telemetry.metrics import Metrics

ADMIN = {"Authorization": "Bearer an-admin-key"}
SOON_S = 0.05  # until a load of these tests is given up


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hanging")
    for version in "123":
        write_tiny_bundle(folder / "hanging" / version, name="hanging", version=version)
    return folder


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """The event that a hanging disk waits for."""
    event = threading.Event()
    yield event
    event.set()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


def loader(go_on: threading.Event, hanging: str) -> Callable[[Path], LoadedBundle]:
    def load(path: Path) -> LoadedBundle:
        if path.name in hanging:
            assert go_on.wait(60)
        bundle = Bundle.load(path)
        return LoadedBundle(bundle, Engine(bundle.decoder.decode), path)

    return load


async def two_in_memory(loaded_bundles: LoadedBundles, store: Path) -> None:
    await loaded_bundles.start(store / "hanging" / "1")
    await loaded_bundles.load(store / "hanging" / "2", "hanging@2")


def test_bundles_are_swapped_and_items_change_while_a_load_hangs(
    store: Path, go_on: threading.Event
) -> None:
    async def story() -> None:
        loaded_bundles = LoadedBundles(loader(go_on, "3"), Metrics())
        await two_in_memory(loaded_bundles, store)
        loading = asyncio.create_task(loaded_bundles.load(store / "hanging" / "3", "hanging@3"))
        await asyncio.sleep(0)
        assert (await loaded_bundles.activate("hanging@2")).ref == "hanging@2"
        await loaded_bundles.change(lambda bundle: bundle.without_items(["item-5"]))
        assert loaded_bundles.active.bundle.catalogue.num_items == NUM_ITEMS - 1
        assert (await loaded_bundles.rollback()).ref == "hanging@1"
        assert loaded_bundles.active.bundle.catalogue.num_items == NUM_ITEMS - 1
        await loaded_bundles.unload("hanging@2")
        with pytest.raises(BundleConflict, match="another bundle is being loaded") as refused:
            await loaded_bundles.load(store / "hanging" / "2", "hanging@2")
        assert refused.value.code == "bundle_busy"
        go_on.set()
        assert (await loading).ref == "hanging@3"
        assert loaded_bundles.candidate is not None
        assert loaded_bundles.candidate.bundle.catalogue.num_items == NUM_ITEMS  # `replay` follows

    run(story())


def test_a_bundle_may_be_activated_while_items_change(store: Path, go_on: threading.Event) -> None:
    async def story() -> None:
        loaded_bundles = LoadedBundles(loader(go_on, ""), Metrics())
        await two_in_memory(loaded_bundles, store)

        def change(bundle: Bundle) -> Bundle:
            assert go_on.wait(60)
            return bundle.without_items(["item-5"])

        changing = asyncio.create_task(loaded_bundles.change(change))
        await asyncio.sleep(0)
        await loaded_bundles.activate("hanging@2")
        await loaded_bundles.unload("hanging@1")
        go_on.set()
        await changing
        assert loaded_bundles.active.ref == "hanging@2"
        assert loaded_bundles.active.bundle.catalogue.num_items == NUM_ITEMS - 1
        assert [one.ref for one in loaded_bundles.all] == [
            "hanging@2"
        ]  # what was unloaded stays so

    run(story())


def test_a_load_is_given_up_and_another_one_may_begin(store: Path, go_on: threading.Event) -> None:
    async def story() -> None:
        before = gc.get_threshold()
        loaded_bundles = LoadedBundles(loader(go_on, "23"), Metrics(), SOON_S)
        loaded_bundles._threads.limit_s = 60
        await loaded_bundles.start(store / "hanging" / "1")
        loaded_bundles._threads.limit_s = SOON_S
        for version in "23":
            with pytest.raises(BundleLoadTimedOut, match="was not loaded in"):
                await loaded_bundles.load(store / "hanging" / version, f"hanging@{version}")
            assert gc.get_threshold() == before  # a load that was given up changes nothing here
        assert NEVER not in before
        # Threads cannot be killed, so only a few may hang.
        with pytest.raises(BundleConflict, match="2 loads that were given up still hang") as full:
            await loaded_bundles.load(store / "hanging" / "2", "hanging@2")
        assert full.value.code == "bundle_busy"
        go_on.set()
        while loaded_bundles._threads.num_given_up:
            await asyncio.sleep(0.01)
        assert [one.ref for one in loaded_bundles.all] == ["hanging@1"]  # a late result is dropped
        loaded_bundles._threads.limit_s = 60
        assert (await loaded_bundles.load(store / "hanging" / "2", "hanging@2")).ref == "hanging@2"

    run(story())


def test_a_load_that_is_given_up_is_a_504() -> None:
    error = BundleLoadTimedOut("the bundle was not loaded in 600 s")
    status, body = status_and_body(error, "an id")
    assert (status, body.error.code, body.error.retryable) == (504, "bundle_load_timeout", False)


def test_a_process_with_a_load_that_hangs_goes_on_and_ends(
    store: Path, redis_url: str, tmp_path: Path
) -> None:
    """Its network is so slow that priming takes many minutes."""
    slow = store / "hanging" / "slow"
    write_tiny_bundle(slow, name="hanging", version="slow", created_at="2025", work=2500)
    with ThreadPoolExecutor(1) as pool:
        with service_process(
            tmp_path,
            bundles_dir=store,
            bundle="hanging@1",
            redis_url=redis_url,
            admin_keys="an-admin-key",
            shutdown_timeout_s=0,
        ) as service:
            service.client.headers.update(ADMIN)

            def admin(path: str, body: Any = None) -> httpx.Response:
                return service.client.post(f"/admin/{path}", json=body, timeout=120)

            def is_busy() -> bool:  # one that is active is not loaded again
                return admin("bundles/hanging@1/load", {}).status_code == 409

            assert admin("bundles/hanging@2/load", {}).status_code == 200
            loading = pool.submit(admin, "bundles/hanging@slow/load", {})
            wait_until(is_busy)
            assert admin("bundles/hanging@2/activate").status_code == 200
            assert admin("bundles/rollback").status_code == 200
            assert admin("bundles/hanging@2/unload").status_code == 200
            assert admin("items", {"remove": ["item-5"]}).json()["removed"] == 1
            info = service.client.get("/info").json()["bundle"]
            assert (info["num_items"], info["num_items_in_bundle"]) == (NUM_ITEMS - 1, NUM_ITEMS)
            for one in service.client.get("/models").json()["residents"]:
                assert (len(one["digest"]), one["is_signed"]) == (64, False)
                assert one["family"] == "mdgr"
            assert not loading.done()
        assert service.wait() == -signal.SIGTERM
        assert loading.exception() or loading.result().status_code >= 500
