"""The bundles in memory: the active one, the one before it, a candidate, those of an experiment.

Loading verifies and primes in a thread while requests are answered; activating and rolling back
swap one reference. A request keeps the resident it began with, so no answer mixes two. At most one
operation at a time. Knows nothing of requests or HTTP.
"""

from __future__ import annotations

import asyncio
import ctypes
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from service.bundle import Bundle
from service.errors import BundleConflict, BundleInvalid, NotReady
from service.ladder import ladder_of
from service.lanes import Engine
from service.manifest import DecodingDefaults
from service.metrics import Metrics
from service.operator_schemas import Role
from service.pauses import made_to_stay

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Resident:
    """A bundle in memory, ready to serve. ladder: see `service.ladder`."""

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
    shadow_fraction: share of the requests that the candidate answers too, unseen
    """

    def __init__(self, load: Callable[[Path], Resident], metrics: Metrics) -> None:
        self._load = load
        self._metrics = metrics
        self._active: Resident | None = None
        self.previous: Resident | None = None
        self.candidate: Resident | None = None
        self.shadow_fraction = 0.0
        self.of_experiment: dict[str, Resident] = {}
        self._running: str | None = None  # the operation
        self._ended = asyncio.Event()

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
        """Load the first bundle and activate it. Raises BundleInvalid or ProviderUnavailable."""
        async with self._operation("load"):
            self._swap(await self._loaded(path))

    async def load(self, path: Path, ref: str, *, shadow_fraction: float = 0.0) -> Resident:
        """Load a bundle as the candidate, in the place of the one there is.

        Nothing changes when that fails. Raises BundleInvalid, ProviderUnavailable, BundleConflict.
        """
        async with self._operation("load"):
            resident = await self._there(path, ref)
            if resident is not self._active:
                self.candidate, self.shadow_fraction = resident, shadow_fraction
            return resident

    async def load_for_experiment(self, path: Path, ref: str) -> None:
        """Load a bundle that stays. Raises BundleInvalid or ProviderUnavailable."""
        async with self._operation("load"):
            self.of_experiment[ref] = await self._there(path, ref)

    async def activate(self, ref: str) -> Resident:
        """Swap to a bundle in memory. Raises BundleConflict."""
        async with self._operation("activate"):
            resident = self.of(ref)
            if resident is not self._active:
                self._swap(resident)
            return resident

    async def rollback(self) -> Resident:
        """Swap back to the bundle before. Raises BundleConflict."""
        async with self._operation("rollback"):
            if self.previous is None:
                raise BundleConflict(
                    "there is no previous bundle in memory", code="no_previous_bundle"
                )
            resident = self.previous
            self._swap(resident)
            return resident

    async def unload(self, ref: str) -> None:
        """Forget a bundle, except the active one. Raises BundleConflict."""
        async with self._operation("unload"):
            resident = self.of(ref)
            if resident is self._active or resident.ref in self.of_experiment:
                raise BundleConflict(f"{ref} is in use; activate another one", code="bundle_in_use")
            if resident is self.previous:
                self.previous = None
            if resident is self.candidate:
                self.candidate, self.shadow_fraction = None, 0.0

    async def change(self, change: Callable[[Bundle], Bundle]) -> None:
        """Replace every bundle in memory by one with other items, all at once or none.

        change: runs in a thread; what it raises is raised. Raises BundleConflict.
        """
        async with self._operation("change_items"):
            before = self.all
            changed = await _in_thread(lambda: [change(one.bundle) for one in before])
            after = {
                one: self._changed(one, bundle) for one, bundle in zip(before, changed, strict=True)
            }
            self._active = self._active and after[self._active]
            self.previous = self.previous and after[self.previous]
            self.candidate = self.candidate and after[self.candidate]
            self.of_experiment = {ref: after[one] for ref, one in self.of_experiment.items()}

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
            resident = self._trimmed(await _in_thread(lambda: self._load(path)))
            await asyncio.to_thread(_trim)  # what loading took beside what it made
            return resident

    def _trimmed(self, resident: Resident) -> Resident:
        """A resident whose memory goes back to the system when the last batch is done with it."""
        weakref.finalize(resident.bundle.decoder, _trim_soon, asyncio.get_running_loop())
        return resident

    @asynccontextmanager
    async def _operation(self, operation: str) -> AsyncIterator[None]:
        """One at a time: a load takes long and is not waited for, the others take a second."""
        count = self._metrics.bundle_operations.labels
        while self._running is not None:
            if self._running == "load":
                count(operation, "refused").inc()
                message = "another bundle is being loaded; wait for it"
                raise BundleConflict(message, code="bundle_busy")
            await self._ended.wait()
        self._running = operation
        self._ended.clear()
        result = "failed"
        try:
            yield
            result = "done"
        finally:
            self._running = None
            self._ended.set()
            count(operation, result).inc()


async def _in_thread(make: Callable[[], T]) -> T:
    """As asyncio.to_thread, whose futures refer to each other and keep what was made until the
    garbage collector comes by, which it does not for what is made to stay.
    """
    made: list[T] = []

    def make_to_stay() -> None:
        with made_to_stay():
            made.append(make())

    await asyncio.to_thread(make_to_stay)
    return made.pop()


def _trim_soon(loop: asyncio.AbstractEventLoop) -> None:
    """Called when a decoder goes, just before its arrays do."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.run_in_executor, None, _trim)


def _trim() -> None:
    """Give freed memory back to the system; the allocator would keep it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, musl has not
        libc.malloc_trim(0)
