"""What operators change while the service runs, done in every worker of the port.

An operation is done here first, then the other workers are told; it returns when all have done it.
A worker that starts later takes over what the others have in memory. Knows nothing of HTTP, nor of
how workers reach each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypedDict

import structlog

from service.errors import HistoryUnavailable, NotReady, RequestError, StartError
from service.loading.item_changes import ItemChanges
from service.loading.loaded_bundles import LoadedBundle, LoadedBundles
from service.loading.workers import Handler, Workers
from service.schemas import ItemsRequest, ItemsResponse

LOAD_S = 3600.0  # how long other workers may load; each gives up by itself before

log = structlog.get_logger()


class InMemory(TypedDict):
    """What a worker has in memory. Of a role: name@version and folder; None = nothing."""

    active: tuple[str, str]
    previous: tuple[str, str] | None
    candidate: tuple[str, str] | None
    shadow_fraction: float


class Process(Protocol):
    """What an operation needs of the process.

    draining: whether it has been told to stop
    followed: the bundle that was last activated because UNMASK_BUNDLE named it
    """

    draining: bool
    followed: str | None

    @property
    def has_started(self) -> bool:
        """Whether it has all that an operation needs."""
        ...

    @property
    def changes(self) -> ItemChanges:
        """Raises NotReady while there is no bundle to change."""
        ...

    def stored_path(self, ref: str) -> Path:
        """The folder of name@version in the bundle store. Raises BundleNotFound."""
        ...


class InAllWorkers:
    """Operations on the bundles of all workers."""

    def __init__(self, workers: Workers, loaded_bundles: LoadedBundles, process: Process) -> None:
        self._workers = workers
        self._bundles = loaded_bundles
        self._process = process

    async def load(self, ref: str, *, shadow_fraction: float = 0.0) -> None:
        """Load a bundle of the bundle store as the candidate.

        Raises what `LoadedBundles.load` raises, and BundleNotFound.
        """
        async with self._workers.alone("load", wait=False):
            await self._load(ref, shadow_fraction)
            await self._workers.tell(
                "load", within_s=LOAD_S, ref=ref, shadow_fraction=shadow_fraction
            )

    async def activate(self, ref: str) -> None:
        """Answer from a bundle in memory. Raises BundleConflict."""
        async with self._workers.alone("swap"):
            await self._bundles.activate(ref)
            await self._workers.tell("activate", ref=ref)

    async def rollback(self) -> None:
        """Answer from the bundle before the active one. Raises BundleConflict."""
        async with self._workers.alone("swap"):
            before = await self._bundles.rollback()
            await self._workers.tell("activate", ref=before.ref)

    async def unload(self, ref: str) -> None:
        """Remove a bundle from memory. Raises BundleConflict."""
        async with self._workers.alone("swap"):
            await self._bundles.unload(ref)
            await self._workers.tell("unload", ref=ref)

    async def change_items(self, request: ItemsRequest) -> ItemsResponse:
        """Change items, see `ItemChanges.change`."""
        response = await self._process.changes.change(request)
        await self._workers.tell("replay")
        return response

    async def drain(self) -> None:
        """Be not ready from now on, but go on answering."""
        self._process.draining = True
        await self._workers.tell("drain")

    async def _load(self, ref: str, shadow_fraction: float) -> None:
        path = await self._bundles.in_time(lambda: self._process.stored_path(ref))
        await self._bundles.load(path, ref, shadow_fraction=shadow_fraction)
        await self._process.changes.replay()

    # --- what other workers tell ------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """What other workers may tell this one. Each raises NotReady until it has started."""

        async def activate(ref: str) -> None:
            await self._bundles.activate(ref)

        async def drain() -> None:
            self._process.draining = True

        async def in_memory() -> InMemory:
            return self._in_memory()

        async def followed() -> str | None:
            return self._process.followed

        handlers: dict[str, Handler] = {
            "load": self._load,
            "activate": activate,
            "unload": self._bundles.unload,
            "replay": lambda: self._process.changes.replay(),
            "drain": drain,
            "in_memory": in_memory,
            "followed": followed,
        }
        return {name: self._if_started(do) for name, do in handlers.items()}

    def _if_started(self, do: Handler) -> Callable[..., Awaitable[Any]]:
        async def done(**arguments: object) -> object:
            if not self._process.has_started:
                raise NotReady("the worker is starting")
            return await do(**arguments)

        return done

    def _in_memory(self) -> InMemory:
        def named(one: LoadedBundle) -> tuple[str, str]:
            return one.ref, str(one.path.absolute())

        bundles = self._bundles
        return InMemory(
            active=named(bundles.active),
            previous=named(bundles.previous) if bundles.previous else None,
            candidate=named(bundles.candidate) if bundles.candidate else None,
            shadow_fraction=bundles.shadow_fraction,
        )

    async def first_path(self) -> Path | None:
        """The folder of the bundle that the other workers answer from; None if there are none."""
        others: InMemory | None = await self._workers.first_answer("in_memory")
        return Path(others["active"][1]) if others else None

    async def follow_the_others(self) -> None:
        """Have in memory what the other workers have, if some are ready. Raises StartError."""
        others: InMemory | None = await self._workers.first_answer("in_memory")
        if others is None:
            return
        for role in ("previous", "active", "candidate"):
            if not (named := others[role]):
                continue
            ref, path = named
            try:
                await self._bundles.load(Path(path), ref, shadow_fraction=others["shadow_fraction"])
                if role != "candidate":
                    await self._bundles.activate(ref)
            except (StartError, RequestError) as error:
                if role == "active":
                    raise StartError(f"the bundle of the other workers: {error}") from error
                log.warning("not_as_the_others", role=role, bundle=ref, reason=str(error))
        with suppress(HistoryUnavailable):  # `follow` will apply them later
            await self._process.changes.replay()
