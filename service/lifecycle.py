"""From settings to a service that answers, and back: history store, bundle, decode thread.

Everything is started and stopped inside `running`, while the port is open already; until all is
there `not_ready` says what is missing. What cannot start ends the process: `failure` holds the
reason and `on_failure` is called. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import structlog
from numpy.typing import NDArray

from service.batching import MicroBatcher
from service.bundle import Bundle, bundle_path
from service.decoding import Job, Ranking, Schedule
from service.embedded_valkey import EmbeddedValkey
from service.errors import BundleInvalid, HistoryUnavailable, NotReady, SettingsInvalid, StartError
from service.history import HistoryStore, RedisHistoryStore
from service.metrics import Metrics
from service.recommender import Recommender
from service.settings import Settings

VERSION = version("unmask")
PRIMING_SIZES = (1, 2, 4, 8, 16)

log = structlog.get_logger()


class Lifecycle:
    """The parts of one process and whether they are there yet."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self.failure: StartError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._starting: str | None = "starting"
        self._histories: RedisHistoryStore | None = None
        self._batcher: MicroBatcher | None = None
        self._recommender: Recommender | None = None
        metrics.build_info.labels(VERSION).set(1)
        metrics.ready.set_function(lambda: not self.not_ready)

    @property
    def recommender(self) -> Recommender:
        """Raises NotReady while there is none."""
        if self._recommender is None:
            raise NotReady("the service is starting; try again in a second")
        return self._recommender

    @property
    def histories(self) -> HistoryStore:
        """Raises HistoryUnavailable while there is none."""
        if self._histories is None:
            raise HistoryUnavailable("the history store is starting; try again in a second")
        return self._histories

    @property
    def bundle(self) -> Bundle | None:
        """The bundle that is served, once there is one."""
        return self._recommender.bundle if self._recommender else None

    @property
    def not_ready(self) -> list[str]:
        """Why no requests should come now; empty when they should."""
        reasons = [self._starting] if self._starting else []
        if not self.is_live:
            reasons.append("decode_thread_dead")
        if self.draining:
            reasons.append("draining")
        return reasons

    @property
    def is_live(self) -> bool:
        """False when only a restart helps. Never depends on the history store."""
        return self._batcher is None or self._batcher.is_alive

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start in the background; stop everything at the end."""
        embedded = None
        if self.settings.redis_url is None:
            embedded = EmbeddedValkey(self.settings.history_dir)
        starting = asyncio.create_task(self._start(embedded))
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait([starting])
            if self._batcher:
                await self._batcher.stop()
            if self._histories:
                await self._histories.close()
            if embedded:
                await embedded.stop()

    async def _start(self, embedded: EmbeddedValkey | None) -> None:
        settings = self.settings
        try:
            if embedded:
                self._starting = "starting_history_store"
                await embedded.start()
                self._histories = self._connect(embedded.url)
            elif settings.redis_url:
                self._histories = self._connect(settings.redis_url.get_secret_value())
            try:
                await self.histories.read("")  # opens the first connection before a client waits
            except HistoryUnavailable:
                log.warning("history_store_unavailable", until_then="popular items, flagged")
            self._starting = "loading_bundle"
            with self.metrics.bundle_load.time():
                path = resolve_bundle(settings)
                bundle = await asyncio.to_thread(
                    Bundle.load,
                    path,
                    ort_threads=settings.ort_threads,
                    provider=settings.provider,
                    precision=settings.precision,
                    encoder_cache=settings.encoder_cache,
                )
                check_queue_size(settings, bundle)
                self._starting = "priming"
                await asyncio.to_thread(prime, bundle)
            self._recommender = self._serve(bundle, self.histories)
            gc.collect()
            gc.freeze()  # the catalogue stays as long as the process: no collection need look at it
            self._starting = None
            log.info("ready", bundle=bundle.manifest.ref, precision=bundle.precision)
        except StartError as error:
            self._fail(error)
        except Exception as error:
            log.exception("start_failed")
            self._fail(StartError(f"the start failed with {type(error).__name__}; see the log"))

    def _fail(self, error: StartError) -> None:
        self.failure = error
        self.on_failure()

    def _connect(self, url: str) -> RedisHistoryStore:
        settings = self.settings
        replica_url = settings.redis_replica_url
        return RedisHistoryStore(
            url,
            self.metrics,
            timeout_s=settings.redis_timeout_ms / 1000,
            pool_size=settings.redis_pool_size,
            history_cap=settings.history_cap,
            history_ttl_s=settings.history_ttl_s,
            replica_url=replica_url.get_secret_value() if replica_url else None,
            replica_reads=settings.redis_replica_reads,
        )

    def _serve(self, bundle: Bundle, histories: HistoryStore) -> Recommender:
        settings = self.settings
        self._batcher = MicroBatcher(
            bundle.decoder.decode,
            self.metrics,
            max_queue_rows=settings.max_queue_rows,
            max_batch_requests=settings.max_batch_requests,
            max_batch_rows=settings.max_batch_rows,
        )
        self._batcher.start()
        self.metrics.bundle_info.labels(bundle.manifest.name, bundle.manifest.version).set(1)
        return Recommender(
            bundle,
            histories,
            self._batcher,
            self.metrics,
            default_timeout_ms=settings.default_timeout_ms,
        )


def resolve_bundle(settings: Settings) -> Path:
    """The directory that `settings.bundle` means: name@version, a name's newest, or a path.

    Raises BundleInvalid when there is no such bundle.
    """
    reference, store = settings.bundle, settings.bundles_dir
    if "/" in reference:
        return Path(reference)
    if "@" in reference:
        return bundle_path(store, reference)
    versions: list[tuple[str, str]] = []  # created_at, version
    for manifest in (store / reference).glob("*/manifest.json"):
        if manifest.parent.name.startswith("."):  # being written
            continue
        try:
            created_at = str(json.loads(manifest.read_text())["created_at"])
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("bundle_skipped", manifest=str(manifest), reason="not readable")
            continue
        versions.append((created_at, manifest.parent.name))
    if not versions:
        raise BundleInvalid(
            f"there is no bundle {reference!r} in {store} with a readable manifest.json; "
            "set UNMASK_BUNDLE or UNMASK_BUNDLES_DIR"
        )
    return store / reference / max(versions)[1]


def check_queue_size(settings: Settings, bundle: Bundle) -> None:
    """Raise SettingsInvalid when the queue is too small for a single request of the default width.

    Every request would get 429.
    """
    width = bundle.manifest.decoding.beam_width
    if settings.max_queue_rows < width:
        raise SettingsInvalid(
            f"UNMASK_MAX_QUEUE_ROWS={settings.max_queue_rows} is below {width}, the default "
            f"beam_width of bundle {bundle.manifest.ref}; set it to {width} or more"
        )


def _rare_jobs(bundle: Bundle, history: NDArray[np.int32], width: int) -> list[Job]:
    """Jobs that need compiled code which the bundle's default schedule may not."""
    num_items, num_subspaces = bundle.catalogue.num_items, bundle.catalogue.num_subspaces
    schedules = [
        Schedule.from_params(
            num_subspaces=num_subspaces, r_warm=r_warm, m_par=min(m_par, num_subspaces)
        )
        for r_warm, m_par in [(0, 1), (0, 2), (0, num_subspaces), (1, 2), (1, num_subspaces)]
    ]
    few = np.arange(max(1, num_items // 4), dtype=np.int32)
    most = np.arange(max(1, num_items - num_items // 4), dtype=np.int32)
    return [
        Job(history, width, schedule, width, ranking=ranking, allowed=allowed)
        for schedule in schedules
        for ranking in get_args(Ranking)
        for allowed in (None, few, most)
    ]


def prime(bundle: Bundle) -> None:
    """Decode held-out histories in batches of the usual sizes, and one of the full history_length.

    No client meets a cold start, or a graph that takes shorter histories than the manifest says.
    Raises BundleInvalid when decoding fails.
    """
    manifest, defaults = bundle.manifest, bundle.manifest.decoding
    schedule = Schedule.from_params(
        num_subspaces=manifest.num_subspaces, r_warm=defaults.r_warm, m_par=defaults.m_par
    )
    width = defaults.beam_width
    decoder = replace(bundle.decoder, encoder_cache=0)  # every batch is to run the encoder
    histories = [bundle.catalogue.rows_of(user.history) for user in bundle.held_out[:16]]
    histories = [rows for rows in histories if len(rows)] or [np.zeros(1, np.int32)]
    batches = [[histories[i % len(histories)] for i in range(size)] for size in PRIMING_SIZES]
    batches.append([np.resize(histories[0], manifest.history_length)])  # repeats the rows
    try:
        for batch in batches:
            jobs = [
                Job(
                    rows,
                    width,
                    schedule,
                    width,
                    finish_rows=defaults.finish_rows,
                    ranking=defaults.ranking,
                )
                for rows in batch
            ]
            if batch is batches[-1]:  # requests may ask for what the default never calls
                jobs += _rare_jobs(bundle, batch[0], width)
            for job, answer in zip(jobs, decoder.decode(jobs)[0], strict=True):
                left = bundle.catalogue.num_items if job.allowed is None else len(job.allowed)
                if len(answer.rows) < min(width, left):
                    raise ValueError("a held-out user gets too few items")
                if not np.isfinite(answer.scores).all():
                    raise ValueError("a held-out user gets scores that are no numbers")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BundleInvalid(f"bundle {manifest.ref} cannot decode: {reason}") from error
