"""From settings to a service that answers, and back: history store, bundles, decode thread.

`running` starts and stops everything. The port is already open meanwhile. Until all parts are
there, `not_ready` says what is missing. When a part cannot start, the process ends: `failure` holds
the reason, and `on_failure` is called. `done_command` runs a command on the store alone. Knows
nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import gc
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import structlog

from service.batching import Engine, LatencyModel, MicroBatcher
from service.bundles import Bundle, configured_path, existing_path, reference_at, stored_path
from service.errors import (
    EmbeddedStoreFailed,
    HistoryUnavailable,
    NotReady,
    SettingsInvalid,
    StartError,
    UnmaskError,
)
from service.histories import (
    AnswerMemory,
    EmbeddedValkey,
    RedisHistoryStore,
    Trending,
    command_parser,
    parse_store_url,
    reached_store,
    run_command,
    url_at,
)
from service.loading import (
    InAllWorkers,
    ItemChanges,
    LoadedBundle,
    LoadedBundles,
    TimedThreads,
    Workers,
    prime,
)
from service.recommending import (
    Experiment,
    Policy,
    Recommender,
    Shadow,
    check_defaults,
    load_experiment,
)
from service.settings import DAY_S, HOUR_S, Settings, load_settings, wrong
from service.tasks import Backoff, ended
from service.telemetry import Metrics, measure_loop_lag, traces_if_asked, watched_gc

VERSION = version("unmask")
LOOK_EVERY_S = 10.0
MOST_LOOKS = 60  # between two tries to follow a bundle that fails: ten minutes
COMMAND_TIMEOUT_S = 30.0  # of one call of a command; nobody waits for a page

log = structlog.get_logger()


def done_command(arguments: Sequence[str]) -> str:
    """Run a command on the store, see `service.histories.transfer`; returns what was done.

    The store is the one of the settings; an embedded one may be that of a running service.
    Raises SettingsInvalid, EmbeddedStoreFailed, HistoryUnavailable or TransferFailed.
    """
    asked = command_parser().parse_args(arguments)
    settings = load_settings()
    check_stores(settings)
    if not (settings.redis_url or settings.history_dir.is_dir() or asked.command == "load"):
        raise EmbeddedStoreFailed(
            f"there is no store in {settings.history_dir}: set UNMASK_REDIS_URL or "
            "UNMASK_HISTORY_DIR as for the service"
        )
    return asyncio.run(_done_in_store(asked, settings))


async def _done_in_store(asked: Namespace, settings: Settings) -> str:
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        if settings.redis_url:
            url = settings.redis_url.get_secret_value()
        else:
            url = await stack.enter_async_context(reached_store(settings.history_dir, metrics))
        store = connected(url, settings, metrics, timeout_s=COMMAND_TIMEOUT_S)
        stack.push_async_callback(store.close)
        return await run_command(
            asked,
            store,
            history_cap=settings.history_cap,
            history_event_types=settings.history_event_types,
            event_log_days=settings.event_log_days,
            negative_event_types=settings.negative_event_types,
        )


def connected(
    url: str, settings: Settings, metrics: Metrics, *, timeout_s: float
) -> RedisHistoryStore:
    """The history store at that address."""
    replica_url = settings.redis_replica_url
    return RedisHistoryStore(
        url,
        metrics,
        timeout_s=timeout_s,
        pool_size=settings.redis_pool_size,
        history_cap=settings.history_cap,
        history_ttl_s=settings.history_ttl_s,
        event_log_s=settings.event_log_days * DAY_S,
        replica_url=replica_url.get_secret_value() if replica_url else None,
        replica_reads=settings.redis_replica_reads,
    )


class Lifecycle:
    """The parts of one process, and whether they are there yet."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        check_stores(settings)
        self.settings = settings
        self.metrics = metrics
        self.workers = Workers.of_environment(metrics)
        self.traces = traces_if_asked()
        self.draining = False
        self.failure: StartError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.configured: str | None = None  # name@version that UNMASK_BUNDLE names
        self.followed: str | None = None  # the last of these that was activated for that
        self.experiment: Experiment | None = None
        self.loaded_bundles = LoadedBundles(self._load, metrics, settings.load_timeout_s)
        self.in_all = InAllWorkers(self.workers, self.loaded_bundles, self)
        self._starting: str | None = "starting"
        self._embedded: EmbeddedValkey | None = None
        self._histories: RedisHistoryStore | None = None
        self._answers: AnswerMemory | None = None
        self._changes: ItemChanges | None = None
        half_life_s = round(settings.trending_half_life_hours * HOUR_S)
        types = settings.trending_event_types
        self.trending = Trending(lambda: self.histories, metrics, types, half_life_s)
        self._batcher: MicroBatcher | None = None
        self._shadow: Shadow | None = None
        self._recommender: Recommender | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reload_wanted = asyncio.Event()
        self._reloading = asyncio.Lock()
        metrics.build_info.labels(VERSION).set(1)
        metrics.ready.set_function(lambda: not self.not_ready)
        metrics.draining.set_function(lambda: self.draining)
        metrics.bundle_config_drift.set_function(lambda: self.has_drifted)

    @property
    def recommender(self) -> Recommender:
        """Raises NotReady while there is none."""
        if self._recommender is None:
            raise NotReady("the service is starting; try again in a second")
        return self._recommender

    @property
    def histories(self) -> RedisHistoryStore:
        """Raises HistoryUnavailable while there is none."""
        if self._histories is None:
            raise HistoryUnavailable("the history store is starting; try again in a second")
        return self._histories

    @property
    def changes(self) -> ItemChanges:
        """Raises NotReady while there is no bundle to change."""
        if self._changes is None:
            raise NotReady("the service is starting; try again in a second")
        return self._changes

    @property
    def bundle(self) -> Bundle | None:
        """The active bundle; None until there is one."""
        return self.loaded_bundles.active.bundle if self.loaded_bundles.has_active else None

    @property
    def has_started(self) -> bool:
        return self._starting is None

    def stored_path(self, ref: str) -> Path:
        """The folder of name@version in the bundle store. Raises BundleNotFound."""
        return existing_path(self.settings.bundles_dir, ref)

    @property
    def has_drifted(self) -> bool:
        """Whether a restart would load another bundle than the active one."""
        return self.loaded_bundles.has_active and self.loaded_bundles.active.ref != self.configured

    @property
    def not_ready(self) -> list[str]:
        """Why no requests should come now; empty when they may come."""
        reasons = [self._starting] if self._starting else []
        reasons += self.not_live
        if self.draining:
            reasons.append("draining")
        if self.settings.fallback == "off" and self._histories and self._histories.is_down:
            reasons.append("history_unavailable")
        return reasons

    @property
    def not_live(self) -> list[str]:
        """Why a restart is needed; empty when it is not. Never depends on an external store."""
        reasons = []
        if self._batcher is not None and not self._batcher.is_alive:
            reasons.append("decode_thread_dead")
        if self._embedded is not None and self._embedded.is_failing:
            reasons.append("embedded_store_keeps_failing")
        return reasons

    async def erase(self, user_id: str) -> None:
        """Forget a user. Raises HistoryUnavailable."""
        if self._answers:
            await self._answers.forget(user_id)
        await self.histories.erase(user_id)

    def reload_soon(self) -> None:
        """Load and activate what UNMASK_BUNDLE names now. If that fails, the old bundle stays.

        It runs after the start, or after the reload that is running, because that one may have
        looked before the new bundle was there.
        """
        self._reload_wanted.set()

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self._reload()

    async def _reload(self) -> None:
        result = "failed"
        async with self._reloading:
            try:
                path, ref = await self.loaded_bundles.in_time(self._look)
                await self.loaded_bundles.load(path, ref)
                await self.changes.replay()
                await self.loaded_bundles.activate(ref)
                self.configured, self.followed, result = ref, ref, "done"
            except UnmaskError as error:
                log.error("reload_failed", reason=str(error), still=self.loaded_bundles.active.ref)
            except Exception:  # the next reload may succeed
                log.exception("reload_failed", still=self.loaded_bundles.active.ref)
            finally:
                self.metrics.bundle_operations.labels("reload", result).inc()

    async def _watch_configured(self) -> None:
        """Keep `configured` current: what a restart would load changes with the store.

        Each is followed once: who has rolled back since keeps that. A reload that failed is tried
        again, after ten seconds, twenty, and so on up to ten minutes.
        """
        backoff = Backoff(MOST_LOOKS)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self.workers.count > 1 and self.not_live:  # other workers answer /health/live
                self._fail(StartError(f"a worker has to be replaced: {self.not_live[0]}"))
            with suppress(UnmaskError, OSError):
                _, self.configured = await TimedThreads(None).wait_for(self._look)
            ref = self.configured
            if self.settings.follow_bundle and ref != self.followed and backoff.is_due(ref):
                await self._reload()  # nothing is looked up meanwhile, so once is enough
                if self.followed != self.configured:
                    backoff.failed(ref)

    def _look(self) -> tuple[Path, str]:
        """The folder and name@version that UNMASK_BUNDLE names. In a thread: disks may hang."""
        path = self._configured_path()
        return path, reference_at(path)

    def _configured_path(self) -> Path:
        return configured_path(self.settings.bundles_dir, self.settings.bundle)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start in the background; stop everything at the end."""
        if self.settings.redis_url is None and self.workers.number == 1:
            self._embedded = EmbeddedValkey(
                self.settings.history_dir, self.metrics, self.workers.store_socket
            )
        self._tasks = [asyncio.create_task(self._start())]
        try:
            with watched_gc(self.metrics):
                yield
        finally:
            await self._stop()

    async def _stop(self) -> None:
        await ended(self._tasks)
        for part in (self._shadow, self._batcher, self._answers, self.trending):
            if part:
                await part.stop()
        if self._histories:
            await self._histories.close()
        await self.workers.stop(self.settings.shutdown_timeout_s)
        if self._embedded:
            await self._embedded.stop()
        if self.traces:
            await asyncio.to_thread(self.traces.stop)

    async def _start(self) -> None:
        settings = self.settings
        try:
            await self.workers.start(self.in_all.handlers())
            if settings.experiment_file:
                self.experiment = load_experiment(settings.experiment_file)
            if self._embedded:
                self._starting = "starting_history_store"
                await self._embedded.start()
                self._tasks.append(asyncio.create_task(self._embedded.keep_running()))
            url = settings.redis_url.get_secret_value() if settings.redis_url else ""
            if self._embedded:
                url = self._embedded.url
            elif not url and (store_socket := self.workers.store_socket):  # the first worker's
                url = await url_at(store_socket)
            timeout_s = settings.redis_timeout_ms / 1000
            self._histories = connected(url, settings, self.metrics, timeout_s=timeout_s)
            try:
                await self._histories.check()  # opens a connection before a client waits
            except HistoryUnavailable:
                log.warning("history_store_unavailable", until_then="popular items, flagged")
            await self._load_bundles()
            self._serve()
            with suppress(HistoryUnavailable):  # `follow` will apply them later
                await self.changes.replay()
            gc.collect()
            gc.freeze()  # this covers all imported modules, too
            self._starting = None
            await self.in_all.follow_the_others()  # what they have done meanwhile
            self._tasks.append(asyncio.create_task(self._reload_when_wanted()))
            self.workers.is_ready()
            self.on_ready()
            active = self.loaded_bundles.active
            log.info("ready", bundle=active.ref, precision=active.bundle.precision)
        except StartError as error:
            self._fail(error)
        except Exception as error:
            log.exception("start_failed")
            self._fail(StartError(f"the start failed with {type(error).__name__}; see the log"))

    def _fail(self, error: StartError) -> None:
        self.failure = error
        self.on_failure()

    async def _load_bundles(self) -> None:
        self._starting = "loading_bundle"
        if (path := await self.in_all.first_path()) is None:
            path = await self.loaded_bundles.in_time(self._configured_path)
        await self.loaded_bundles.start(path)
        self.configured = self.followed = self.loaded_bundles.active.ref
        self.followed = await self.workers.first_answer("followed") or self.followed
        for variant in self.experiment.variants if self.experiment else ():
            if variant.bundle:
                path = stored_path(self.settings.bundles_dir, variant.bundle)
                await self.loaded_bundles.load_for_experiment(path, variant.bundle)

    def _load(self, path: Path) -> LoadedBundle:
        """Load, check and prime a bundle. Runs in a thread."""
        settings = self.settings
        until = time.monotonic() + settings.load_timeout_s
        bundle = Bundle.load(
            path,
            key=settings.bundle_key.get_secret_value() if settings.bundle_key else None,
            ort_threads=settings.ort_threads,
            provider=settings.provider,
            precision=settings.precision,
            encoder_cache=settings.encoder_cache,
            encoder_cache_mb=settings.encoder_cache_mb,
            shared=self.workers.folder,
        )
        check_defaults(settings.max_queue_rows, self.experiment, bundle)
        if self._starting:
            self._starting = "priming"
        latency = LatencyModel()
        prime(bundle, latency, until)
        if bundle.manifest.digest is None:
            cure = "promote it again, or write it again"
            log.warning("bundle_without_digest", bundle=bundle.manifest.ref, cure=cure)
        return LoadedBundle(bundle, Engine(bundle.decoder.decode, latency), path)

    def _serve(self) -> None:
        settings, metrics, histories = self.settings, self.metrics, self.histories
        self._batcher = MicroBatcher(
            metrics,
            max_queue_rows=settings.max_queue_rows,
            max_batch_requests=settings.max_batch_requests,
            max_batch_rows=settings.max_batch_rows,
            max_wait_s=settings.slo_ms / 1000,
            traces=self.traces,
        )
        self._batcher.start()
        self._answers = AnswerMemory(histories, metrics)
        self._answers.start()
        self.trending.start()
        self._shadow = Shadow(self.loaded_bundles, self._batcher, metrics)
        self._changes = ItemChanges(self.loaded_bundles, histories, settings.embedder_url)
        self._recommender = Recommender(
            self.loaded_bundles,
            histories,
            self._answers,
            self._batcher,
            metrics,
            Policy(
                settings.default_timeout_ms / 1000,
                settings.slo_ms / 1000,
                settings.fallback,
                settings.adaptive_schedule,
            ),
            self._shadow,
            self.experiment,
        )
        self._tasks += [
            asyncio.create_task(measure_loop_lag(metrics)),
            asyncio.create_task(self._changes.follow()),
            asyncio.create_task(self._watch_configured()),
        ]


def check_stores(settings: Settings) -> None:
    """Raise SettingsInvalid for history store URLs that cannot work, alone or together."""
    kinds = {}
    for name in ("redis_url", "redis_replica_url"):
        url = getattr(settings, name)
        try:
            kinds[name] = url and parse_store_url(url.get_secret_value()).kind
        except ValueError as error:
            raise SettingsInvalid(wrong(name, str(error))) from None
    if kinds["redis_replica_url"] and set(kinds.values()) != {"server"}:
        why = "it and UNMASK_REDIS_URL must each name one server"
        raise SettingsInvalid(wrong("redis_replica_url", why))
    if settings.redis_replica_reads and kinds["redis_url"] in (None, "server"):
        why = (
            "UNMASK_REDIS_URL must be redis+cluster:// or redis+sentinel://; the replica of one "
            "server is named by UNMASK_REDIS_REPLICA_URL"
        )
        raise SettingsInvalid(wrong("redis_replica_reads", why))
