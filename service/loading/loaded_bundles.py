"""The bundles in memory: the active one, the one before it, a candidate, those of an experiment.

Loading verifies and primes in a thread while requests are answered; one at a time, and one that
takes too long is given up. Activating, rolling back and unloading swap references at once, whatever
is being loaded. A request keeps the resident it began with, so no answer mixes two. Knows nothing
of requests or HTTP.
"""

from __future__ import annotations

import asyncio
import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from service.batching import Engine
from service.bundles import Bundle, DecodingDefaults, ladder_of
from service.errors import BundleConflict, BundleInvalid, BundleLoadTimedOut, NotReady
from service.loading.patience import Impatience, Patience
from service.schemas import Role
from service.telemetry import Metrics, made_to_stay

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Resident:
    """A bundle in memory, ready to serve. ladder: see `service.bundles.ladder`."""

    bundle: Bundle
    engine: Engine
    ladder: tuple[DecodingDefaults, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ladder", ladder_of(self.bundle.manifest))  # frozen

    @property
    def ref(self) -> str:
        """name@version."""
        return self.bundle.manifest.ref

    def changed(self, bundle: Bundle) -> Resident:
        """The same with items that came or went; what was learnt of its speed stays."""
        return Resident(bundle, Engine(bundle.decoder.decode, self.engine.latency))


class Residents:
    """Call everything in the event loop.

    load: makes a resident of a bundle's folder, in a thread; raises BundleInvalid or
        ProviderUnavailable
    load_timeout_s: how long that is waited for
    shadow_fraction: share of the requests that the candidate answers too, unseen
    """

    def __init__(
        self, load: Callable[[Path], Resident], metrics: Metrics, load_timeout_s: float = 600
    ) -> None:
        self._load = load
        self._patience = Patience(load_timeout_s)
        self._metrics = metrics
        self._active: Resident | None = None
        self.previous: Resident | None = None
        self.candidate: Resident | None = None
        self.shadow_fraction = 0.0
        self.of_experiment: dict[str, Resident] = {}
        self._is_loading = False
        self._changing = asyncio.Lock()

    @property
    def active(self) -> Resident:
        """Raises NotReady while there is none."""
        if self._active is None:
            raise NotReady("the service is starting; try again in a second")
        return self._active

    @property
    def has_active(self) -> bool:
        return self._active is not None

    @property
    def all(self) -> list[Resident]:
        """Each once."""
        named = [self._active, self.previous, self.candidate, *self.of_experiment.values()]
        return list(dict.fromkeys(resident for resident in named if resident is not None))

    def roles(self, resident: Resident) -> list[Role]:
        """What a resident is in memory for."""
        named: list[tuple[Role, Resident | None]] = [
            ("active", self._active),
            ("previous", self.previous),
            ("candidate", self.candidate),
            ("experiment", self.of_experiment.get(resident.ref)),
        ]
        return [role for role, one in named if one is resident]

    def of(self, ref: str) -> Resident:
        """Raises BundleConflict for a bundle that is not in memory."""
        for resident in self.all:
            if resident.ref == ref:
                return resident
        raise BundleConflict(f"{ref} is not in memory; load it first", code="bundle_not_loaded")

    async def start(self, path: Path) -> None:
        """Load the first bundle and activate it.

        Raises BundleInvalid, BundleLoadTimedOut or ProviderUnavailable.
        """
        with self._one_load():
            self._swap(await self._loaded(path))

    async def load(self, path: Path, ref: str, *, shadow_fraction: float = 0.0) -> Resident:
        """Load a bundle as the candidate, in the place of the one there is.

        Nothing changes when that fails. Raises BundleInvalid, BundleLoadTimedOut,
        ProviderUnavailable, BundleConflict.
        """
        with self._one_load():
            resident = await self._there(path, ref)
            if resident is not self._active:
                self.candidate, self.shadow_fraction = resident, shadow_fraction
            return resident

    async def load_for_experiment(self, path: Path, ref: str) -> None:
        """Load a bundle that stays. Raises as `start`."""
        with self._one_load():
            self.of_experiment[ref] = await self._there(path, ref)

    async def activate(self, ref: str) -> Resident:
        """Swap to a bundle in memory. Raises BundleConflict."""
        with self._counted("activate"):
            resident = self.of(ref)
            if resident is not self._active:
                self._swap(resident)
            return resident

    async def rollback(self) -> Resident:
        """Swap back to the bundle before. Raises BundleConflict."""
        with self._counted("rollback"):
            if self.previous is None:
                raise BundleConflict(
                    "there is no previous bundle in memory", code="no_previous_bundle"
                )
            resident = self.previous
            self._swap(resident)
            return resident

    async def unload(self, ref: str) -> None:
        """Forget a bundle, except the active one. Raises BundleConflict."""
        with self._counted("unload"):
            resident = self.of(ref)
            if resident is self._active or resident.ref in self.of_experiment:
                raise BundleConflict(f"{ref} is in use; activate another one", code="bundle_in_use")
            if resident is self.previous:
                self.previous = None
            if resident is self.candidate:
                self.candidate, self.shadow_fraction = None, 0.0

    async def change(self, change: Callable[[Bundle], Bundle]) -> None:
        """Replace every bundle in memory by one with other items, all at once or none.

        One that comes meanwhile stays as it is. change: runs in a thread; what it raises is raised.
        """
        async with self._changing:
            with self._counted("change_items"):
                before = self.all
                make = _made_to_stay(lambda: [change(one.bundle) for one in before])[0]
                changed = await Patience(None).wait_for(make)
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

    def _changed(self, resident: Resident, bundle: Bundle) -> Resident:
        if bundle is resident.bundle:
            return resident
        changed = resident.changed(bundle)
        is_new = bundle.decoder is not resident.bundle.decoder
        return self._trimmed(changed) if is_new else changed

    def _swap(self, resident: Resident) -> None:
        """No await here: a request sees the one or the other."""
        self._active, self.previous = resident, self._active
        if resident is self.candidate:
            self.candidate, self.shadow_fraction = None, 0.0
        self._show()
        log.info("bundle_activated", bundle=resident.ref)

    def _show(self) -> None:
        info = self._metrics.bundle_info
        info.clear()
        manifest = self.active.bundle.manifest
        info.labels(manifest.name, manifest.version).set(1)

    async def _there(self, path: Path, ref: str) -> Resident:
        """The bundle of that name and version, loaded if it is not in memory."""
        found = [resident for resident in self.all if resident.ref == ref]
        resident = found[0] if found else await self._loaded(path)
        if resident.ref != ref:
            raise BundleInvalid(f"the manifest of {ref} says that it is {resident.ref}")
        return resident

    async def _loaded(self, path: Path) -> Resident:
        with self._metrics.bundle_load.time():
            load, stay = _made_to_stay(lambda: self._load(path))
            try:
                resident = self._trimmed(await self.in_time(load))
            finally:
                stay.give_up()
            await asyncio.to_thread(_trim)  # what loading took beside what it made
            return resident

    async def in_time(self, make: Callable[[], T]) -> T:
        """What `make` returns, which looks into the store and may hang.

        Raises what it raises, BundleLoadTimedOut, or BundleConflict.
        """
        try:
            return await self._patience.wait_for(make)
        except TimeoutError:
            raise BundleLoadTimedOut(
                f"the bundle was not loaded in {self._patience.limit_s:g} s and is given up: look "
                "at the disk it is on, or raise UNMASK_LOAD_TIMEOUT_S"
            ) from None
        except Impatience:
            raise BundleConflict(
                f"{self._patience.num_given_up} loads that were given up still hang; mend the disk "
                "they read, or restart the process",
                code="bundle_busy",
            ) from None

    def _trimmed(self, resident: Resident) -> Resident:
        """A resident whose memory goes back to the system when the last batch is done with it."""
        weakref.finalize(resident.bundle.decoder, _trim_soon, asyncio.get_running_loop())
        return resident

    @contextmanager
    def _one_load(self) -> Iterator[None]:
        """It takes long and is not waited for."""
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


def _made_to_stay(make: Callable[[], T]) -> tuple[Callable[[], T], made_to_stay]:
    """`make`, the garbage collector not looking at what it makes; and how to give that up."""
    stay = made_to_stay()

    def make_to_stay() -> T:
        with stay:
            return make()

    return make_to_stay, stay


def _trim_soon(loop: asyncio.AbstractEventLoop) -> None:
    """Called when a decoder goes, just before its arrays do."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.run_in_executor, None, _trim)


def _trim() -> None:
    """Give freed memory back to the system; the allocator would keep it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, musl has not
        libc.malloc_trim(0)
