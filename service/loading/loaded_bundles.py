"""The bundles in memory: the active one, the previous one, a candidate, those of an experiment.

Loading verifies and primes a bundle in a thread while requests are answered. Only one load runs at
a time, and a load that takes too long is given up. Activating, rolling back and unloading swap
references at once, even while a bundle is being loaded. A request keeps the bundle it began with,
so no answer mixes two bundles. Knows nothing of requests or HTTP.
"""

from __future__ import annotations

import asyncio
import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from service.batching import Engine
from service.bundles import Bundle, DecodingDefaults, ladder_of
from service.errors import BundleConflict, BundleInvalid, BundleLoadTimedOut, NotReady
from service.loading.timed_threads import TimedThreads, TooManyHangingThreads
from service.schemas import Role
from service.telemetry import Metrics, hidden_from_gc

T = TypeVar("T")
TRIM_DELAY_S = 1.0  # after a decoder is deleted, so that its arrays are, however busy the machine

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class LoadedBundle:
    """A bundle in memory, ready to serve.

    path:   the folder that it was read from
    ladder: see `service.bundles.ladder`
    """

    bundle: Bundle
    engine: Engine
    path: Path
    ladder: tuple[DecodingDefaults, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ladder", ladder_of(self.bundle.manifest))  # it is frozen

    @property
    def ref(self) -> str:
        """name@version."""
        return self.bundle.manifest.ref

    def changed(self, bundle: Bundle) -> LoadedBundle:
        """The same bundle with other items, or other hidden ones. Its speed is still known."""
        if bundle.decoder is self.bundle.decoder:
            return LoadedBundle(bundle, self.engine, self.path)
        engine = Engine(bundle.decoder.decode, self.engine.latency)
        return LoadedBundle(bundle, engine, self.path)


class LoadedBundles:
    """Call everything in the event loop.

    load: makes a LoadedBundle of a bundle's folder, in a thread; raises BundleInvalid or
        ProviderUnavailable
    load_timeout_s: how long a load may take
    shadow_fraction: share of the requests that the candidate answers too, unseen
    """

    def __init__(
        self, load: Callable[[Path], LoadedBundle], metrics: Metrics, load_timeout_s: float = 600
    ) -> None:
        self._load = load
        self._threads = TimedThreads(load_timeout_s)
        self._metrics = metrics
        self._active: LoadedBundle | None = None
        self.previous: LoadedBundle | None = None
        self.candidate: LoadedBundle | None = None
        self.shadow_fraction = 0.0
        self.of_experiment: dict[str, LoadedBundle] = {}
        self._is_loading = False
        self._changing = asyncio.Lock()

    @property
    def active(self) -> LoadedBundle:
        """Raises NotReady while no bundle is active."""
        if self._active is None:
            raise NotReady("the service is starting; try again in a second")
        return self._active

    @property
    def has_active(self) -> bool:
        return self._active is not None

    @property
    def all(self) -> list[LoadedBundle]:
        """All bundles in memory, each once."""
        named = [self._active, self.previous, self.candidate, *self.of_experiment.values()]
        return list(dict.fromkeys(loaded for loaded in named if loaded is not None))

    def roles(self, loaded: LoadedBundle) -> list[Role]:
        """What a bundle is in memory for."""
        named: list[tuple[Role, LoadedBundle | None]] = [
            ("active", self._active),
            ("previous", self.previous),
            ("candidate", self.candidate),
            ("experiment", self.of_experiment.get(loaded.ref)),
        ]
        return [role for role, one in named if one is loaded]

    def of(self, ref: str) -> LoadedBundle:
        """The bundle in memory with that name@version. Raises BundleConflict if there is none."""
        for loaded in self.all:
            if loaded.ref == ref:
                return loaded
        named = ", ".join(loaded.ref for loaded in self.all) or "nothing"
        message = f"{ref} is not in memory; load it first (what is there: {named})"
        raise BundleConflict(message, code="bundle_not_loaded")

    async def start(self, path: Path) -> None:
        """Load the first bundle and activate it.

        Raises BundleInvalid, BundleLoadTimedOut or ProviderUnavailable.
        """
        with self._one_load():
            self._swap(await self._loaded(path))

    async def load(self, path: Path, ref: str, *, shadow_fraction: float = 0.0) -> LoadedBundle:
        """Load a bundle as the candidate. It replaces the candidate that is there.

        When that fails, nothing changes. Raises BundleInvalid, BundleLoadTimedOut,
        ProviderUnavailable, BundleConflict.
        """
        with self._one_load():
            loaded = await self._in_memory_or_loaded(path, ref)
            if loaded is not self._active:
                if self.candidate not in (None, loaded):
                    log.warning("candidate_replaced", was=self.candidate.ref, now=ref)
                self.candidate, self.shadow_fraction = loaded, shadow_fraction
            return loaded

    async def load_for_experiment(self, path: Path, ref: str) -> None:
        """Load a bundle that stays in memory. Raises what `start` raises."""
        with self._one_load():
            self.of_experiment[ref] = await self._in_memory_or_loaded(path, ref)

    async def activate(self, ref: str) -> LoadedBundle:
        """Swap to a bundle in memory. Raises BundleConflict."""
        with self._counted("activate"):
            loaded = self.of(ref)
            if loaded is not self._active:
                self._swap(loaded)
            return loaded

    async def rollback(self) -> LoadedBundle:
        """Swap back to the previous bundle. Raises BundleConflict."""
        with self._counted("rollback"):
            if self.previous is None:
                raise BundleConflict(
                    "there is no previous bundle in memory", code="no_previous_bundle"
                )
            loaded = self.previous
            self._swap(loaded)
            return loaded

    async def unload(self, ref: str) -> None:
        """Remove a bundle from memory, except the active one. Raises BundleConflict."""
        with self._counted("unload"):
            loaded = self.of(ref)
            if loaded is self._active or loaded.ref in self.of_experiment:
                raise BundleConflict(f"{ref} is in use; activate another one", code="bundle_in_use")
            if loaded is self.previous:
                self.previous = None
            if loaded is self.candidate:
                self.candidate, self.shadow_fraction = None, 0.0

    async def change(self, change: Callable[[Bundle], Bundle]) -> None:
        """Replace every bundle in memory by one with other items: all at once, or none.

        A bundle that is loaded meanwhile stays as it is. change: runs in a thread; what it raises
        is raised.
        """
        async with self._changing:
            with self._counted("change_items"):
                before = self.all
                make = _hidden_from_gc(lambda: [change(one.bundle) for one in before])[0]
                changed = await TimedThreads(None).wait_for(make)
                after = {
                    one: self._changed(one, bundle)
                    for one, bundle in zip(before, changed, strict=True)
                }
                self._active = self._active and after.get(self._active, self._active)
                self.previous = self.previous and after.get(self.previous, self.previous)
                self.candidate = self.candidate and after.get(self.candidate, self.candidate)
                self.of_experiment = {
                    ref: after.get(one, one) for ref, one in self.of_experiment.items()
                }

    def _changed(self, loaded: LoadedBundle, bundle: Bundle) -> LoadedBundle:
        if bundle is loaded.bundle:
            return loaded
        changed = loaded.changed(bundle)
        is_new = bundle.decoder is not loaded.bundle.decoder
        return self._trimmed(changed) if is_new else changed

    def _swap(self, loaded: LoadedBundle) -> None:
        """There is no await here, so a request sees either the old or the new bundle."""
        self._active, self.previous = loaded, self._active
        if loaded is self.candidate:
            self.candidate, self.shadow_fraction = None, 0.0
        self._show()
        log.info("bundle_activated", bundle=loaded.ref)

    def _show(self) -> None:
        info = self._metrics.bundle_info
        info.clear()
        manifest = self.active.bundle.manifest
        info.labels(manifest.name, manifest.version).set(1)

    async def _in_memory_or_loaded(self, path: Path, ref: str) -> LoadedBundle:
        """The bundle of that name and version, loaded if it is not in memory."""
        found = [loaded for loaded in self.all if loaded.ref == ref]
        loaded = found[0] if found else await self._loaded(path)
        if loaded.ref != ref:
            raise BundleInvalid(f"the manifest of {ref} says that it is {loaded.ref}")
        return loaded

    async def _loaded(self, path: Path) -> LoadedBundle:
        with self._metrics.bundle_load.time():
            load, hidden = _hidden_from_gc(lambda: self._load(path))
            try:
                loaded = self._trimmed(await self.in_time(load))
            finally:
                hidden.give_up()
            await asyncio.to_thread(_trim)  # memory that loading used beside its result
            return loaded

    async def in_time(self, make: Callable[[], T]) -> T:
        """Run `make`, which reads the bundle store and may hang; returns its result.

        Raises what `make` raises, BundleLoadTimedOut, or BundleConflict.
        """
        try:
            return await self._threads.wait_for(make)
        except TimeoutError:
            raise BundleLoadTimedOut(
                f"the bundle was not loaded in {self._threads.limit_s:g} s and is given up: look "
                "at the disk it is on, or raise UNMASK_LOAD_TIMEOUT_S"
            ) from None
        except TooManyHangingThreads:
            raise BundleConflict(
                f"{self._threads.num_given_up} loads that were given up still hang; mend the disk "
                "they read, or restart the process",
                code="bundle_busy",
            ) from None

    def _trimmed(self, loaded: LoadedBundle) -> LoadedBundle:
        """The same, but its memory goes back to the system when the last batch is done with it."""
        weakref.finalize(loaded.bundle.decoder, _trim_soon, asyncio.get_running_loop())
        return loaded

    @contextmanager
    def _one_load(self) -> Iterator[None]:
        """A load takes long. A second one does not wait for it, but is refused."""
        if self._is_loading:
            self._metrics.bundle_operations.labels("load", "refused").inc()
            message = "another bundle is being loaded; wait for it"
            raise BundleConflict(message, code="bundle_busy")
        self._is_loading = True
        try:
            with self._counted("load"):
                yield
        finally:
            self._is_loading = False

    @contextmanager
    def _counted(self, operation: str) -> Iterator[None]:
        result = "failed"
        try:
            yield
            result = "done"
        finally:
            self._metrics.bundle_operations.labels(operation, result).inc()


def _hidden_from_gc(make: Callable[[], T]) -> tuple[Callable[[], T], hidden_from_gc]:
    """`make`, with its result hidden from the garbage collector; and the block, to give it up."""
    hidden = hidden_from_gc()

    def make_hidden() -> T:
        with hidden:
            return make()

    return make_hidden, hidden


def _trim_soon(loop: asyncio.AbstractEventLoop) -> None:
    """Called when a decoder is deleted, just before its arrays are."""
    if not loop.is_closed():
        trim = partial(loop.run_in_executor, None, _trim)
        loop.call_soon_threadsafe(loop.call_later, TRIM_DELAY_S, trim)


def _trim() -> None:
    """Give freed memory back to the system. The allocator would keep it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, musl does not
        libc.malloc_trim(0)
