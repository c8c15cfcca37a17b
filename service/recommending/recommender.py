"""The story of one request: history in, items out. Read `Recommender.recommend` first.

Uses item ids outside and catalogue rows inside. Knows nothing of HTTP or Redis commands. The
MicroBatcher decodes. Times are seconds of time.monotonic() until they are reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from weakref import WeakKeyDictionary

from service.batching import Answer, Engine, MicroBatcher
from service.decoding import Decoded, Job
from service.errors import (
    DeadlineExceeded,
    DecodeFailed,
    HistoryUnavailable,
    InvalidRequest,
    ItemNotFound,
    RecommendationNotFound,
)
from service.histories import AnswerMemory, HistoryStore, RememberedAnswer
from service.loading import LoadedBundle, LoadedBundles
from service.recommending.assembly import (
    assembled,
    assembled_sequences,
    degraded_reasons,
    shortfalls,
    timings_ms,
)
from service.recommending.experiment import DEFAULT, PINNED, Experiment, Variant
from service.recommending.explaining import Sought, check_is_traced, explanation
from service.recommending.item_search import ItemPages
from service.recommending.jobs import Inputs, UserHistory
from service.recommending.planning import (
    Plan,
    beams_needed,
    explained_rungs,
    fixed_plan,
    plan_in_time,
)
from service.recommending.rules import rules_of
from service.recommending.shadow import Shadow
from service.schemas import (
    DegradedReason,
    ExplainRequest,
    ExplainResponse,
    Fallback,
    RecommendRequest,
    RecommendResponse,
    UsedHistory,
    UsedVariant,
)
from service.telemetry import Metrics, uuid7

MAX_ITEMS_BEFORE = 1000


@dataclass(frozen=True)
class Policy:
    """The rules for requests that say nothing else. See `service.settings`."""

    default_timeout_s: float
    slo_s: float
    fallback: Fallback
    adaptive_schedule: bool


@dataclass(frozen=True)
class Assignment:
    """The bundle that answers a request, its variant if there is one, and the variant's label."""

    loaded_bundle: LoadedBundle
    variant: Variant | None
    label: str


class Recommender:
    """Answers requests from the bundles in memory."""

    def __init__(
        self,
        loaded_bundles: LoadedBundles,
        histories: HistoryStore,
        answers: AnswerMemory,
        batcher: MicroBatcher,
        metrics: Metrics,
        policy: Policy,
        shadow: Shadow,
        experiment: Experiment | None = None,
    ) -> None:
        self._loaded_bundles = loaded_bundles
        self._histories = histories
        self._answers = answers
        self._batcher = batcher
        self._metrics = metrics
        self._policy = policy
        self._shadow = shadow
        self._experiment = experiment
        self._begun: set[tuple[str, str]] = set()  # bundles and labels that metrics know
        # Of requests that say nothing of decoding, by the number of beams that they need.
        self._usual: WeakKeyDictionary[LoadedBundle, dict[int, Plan]] = WeakKeyDictionary()

    def assign(self, request: RecommendRequest) -> Assignment:
        """Choose the bundle and variant that answer, by the running experiment. Raises NotReady."""
        assignment = self._assignment(request)
        begun = assignment.loaded_bundle.ref, assignment.label
        if begun not in self._begun:
            self._begun.add(begun)
            self._metrics.begin_outcomes(*begun)
        return assignment

    def _assignment(self, request: RecommendRequest) -> Assignment:
        loaded = self._loaded_bundles.active
        if request.pins_decoding:
            return Assignment(loaded, None, PINNED)
        if self._experiment is None:
            return Assignment(loaded, None, DEFAULT)
        # These get no variant's decoding, so they count for none.
        if request.schedule == "auto" or request.horizon > 1:
            return Assignment(loaded, None, PINNED)
        variant = self._experiment.variant_of(request.user_id)
        if variant.bundle:
            of_variant = self._loaded_bundles.of(variant.bundle)
            if not _is_like(of_variant, loaded, request):
                return Assignment(loaded, None, PINNED)
            loaded = of_variant
        return Assignment(loaded, variant, variant.name)

    async def recommend(
        self,
        request: RecommendRequest,
        assignment: Assignment,
        received: float,
        *,
        in_bulk: bool = False,
    ) -> RecommendResponse:
        """The k best items for a user. Popular items when there is no history to work with.

        With a horizon above 1, the k best sequences of so many items.
        received: when the request arrived; the deadline counts from then
        in_bulk: one of many requests of one call; the call has a deadline, but no SLO
        Raises InvalidRequest, Overloaded, DeadlineExceeded, DecodeFailed, NotReady,
        RecommendationNotFound, or HistoryUnavailable when nothing else can answer.
        """
        sought = await self._sought(request, assignment, received, in_bulk=in_bulk)
        loaded, inputs = assignment.loaded_bundle, sought.inputs
        if sought.answer:
            num_items = loaded.bundle.catalogue.num_items
            count_decoded(self._metrics, sought.answer.decoded, sought.plan, num_items)
        response = self._answered(request, assignment, sought, received)
        self._observe(response, is_filtered=bool(request.filter), in_bulk=in_bulk)
        items, sequences = response.items, response.sequences
        if len(items if sequences is None else sequences) < request.k:
            num_items = loaded.bundle.catalogue.num_items
            needed = request.k if sequences is None else request.horizon
            reason = inputs.short_because(needed, num_items, is_capped=bool(request.max_per))
            self._metrics.short_lists.labels(reason).inc()
        self._remember(response, sought.history, assignment.label)
        if sought.answer:
            self._shadow.follow(request, sought.history, response)
        return response

    async def preview(
        self, request: RecommendRequest, ref: str, received: float
    ) -> RecommendResponse:
        """What the bundle in memory with that name@version would answer, for operators to look at.

        No user gets it: nothing is remembered, no metric counts it as an answer, no experiment and
        no shadow has a part in it. Raises BundleConflict, and what `recommend` raises.
        """
        assignment = Assignment(self._loaded_bundles.of(ref), None, PINNED)
        sought = await self._sought(request, assignment, received)
        answer = self._answered(request, assignment, sought, received)
        return answer.model_copy(update={"experiment": None})

    async def explain(
        self, request: ExplainRequest, assignment: Assignment, received: float, pages: ItemPages
    ) -> ExplainResponse:
        """How an item comes to its rank in the answer to this request, or why it has none.

        The answer is the same that `recommend` would give. It is not remembered, and no metric
        counts it as one. `pages` makes it. Raises what `recommend` raises, and ItemNotFound.
        """
        loaded = assignment.loaded_bundle
        rows = loaded.bundle.catalogue.rows_of([request.item_id]).tolist()
        if not rows:
            raise ItemNotFound("the bundle that answers has no such item")
        asked = request.model_copy(update={"explain": False})  # of all its items
        sought = await self._sought(asked, assignment, received, trace=True)
        response = self._answered(asked, assignment, sought, received)
        # A search that was late has popular items for an answer, which can be told of all the same.
        async with _Until(sought.deadline if sought.answer else float("inf")):
            explained = await pages.made(
                lambda: explanation(asked, loaded.bundle, rows[0], sought, response)
            )
        total_ms = round(1000 * (time.monotonic() - received), 3)
        timings = {**response.timings_ms, "total": total_ms}
        return explained.model_copy(update={"timings_ms": timings})

    async def _sought(
        self,
        request: RecommendRequest,
        assignment: Assignment,
        received: float,
        *,
        in_bulk: bool = False,
        trace: bool = False,
    ) -> Sought:
        """What is found for a request. trace: whether any row can be followed afterwards"""
        loaded = assignment.loaded_bundle
        rules = rules_of(request, loaded.bundle)
        timeout_s = self._policy.default_timeout_s
        deadline = received + (request.timeout_ms / 1000 if request.timeout_ms else timeout_s)
        due = deadline if in_bulk else min(deadline, received + self._policy.slo_s)
        plan = self._plan(request, assignment, due, in_bulk=in_bulk)
        if trace:
            check_is_traced(plan)
        engine, width = loaded.engine, plan.decoding.beam_width
        self._batcher.admit(
            engine, plan.work, width, deadline, in_bulk=in_bulk, horizon=plan.horizon
        )
        stages: dict[str, float] = {}
        reasons: list[DegradedReason] = []
        async with _Until(deadline):
            with _timed(stages, "history"):
                history = await self._history_of(request)
            inputs = await Inputs.look_up(request, history, loaded.bundle, rules)
        answer, explored, jobs = None, None, list[Job]()
        if len(inputs.history):
            try:
                async with _Until(deadline):
                    jobs = inputs.jobs(request, plan, trace=trace)
                    answer, explored = await self._answers_to(jobs, engine, deadline, in_bulk)
            except (DecodeFailed, DeadlineExceeded) as error:
                if self._policy.fallback != "all":
                    raise
                reasons.append("decode_failed" if isinstance(error, DecodeFailed) else "deadline")
        reasons += degraded_reasons(history, inputs, plan, answer)
        return Sought(plan, history, inputs, jobs, answer, explored, reasons, stages, deadline)

    def _answered(
        self, request: RecommendRequest, assignment: Assignment, sought: Sought, received: float
    ) -> RecommendResponse:
        """The answer to a request, from what was found for it."""
        bundle, inputs, answer = assignment.loaded_bundle.bundle, sought.inputs, sought.answer
        with _timed(sought.stages, "map"):
            items, sequences = [], None
            found, new = (one.decoded if one else None for one in (answer, sought.explored))
            if request.horizon > 1:
                sequences = assembled_sequences(request, bundle, inputs, found)
            else:
                items = assembled(request, bundle, inputs, found, new)
            said = shortfalls(request, bundle, inputs, found, len(items))
        history = sought.history
        return RecommendResponse(
            recommendation_id=str(uuid7()),
            user_id=request.user_id,
            served_by="model" if answer else "popular",
            degraded=bool(sought.reasons),
            degraded_reasons=sought.reasons,
            warnings=[*inputs.hints, *said],
            bundle=assignment.loaded_bundle.ref,
            experiment=self._used_variant(assignment.label),
            items=items,
            sequences=sequences,
            decoding=sought.plan.used(answer.decoded.nfe) if answer else None,
            history=UsedHistory(
                source=history.source,
                length=len(history.item_ids),
                unknown_items=len(history.item_ids) - len(inputs.history),
            ),
            timings_ms=timings_ms(sought.stages, answer, time.monotonic() - received),
        )

    async def _answers_to(
        self, jobs: Sequence[Job], engine: Engine, deadline: float, in_bulk: bool
    ) -> tuple[Answer, Answer | None]:
        """The answers to one or two jobs, which may be decoded together."""
        submit = partial(self._batcher.submit, engine, deadline=deadline, in_bulk=in_bulk)
        if len(jobs) == 1:
            return await submit(jobs[0]), None
        tasks = [asyncio.create_task(submit(job)) for job in jobs]
        try:
            first, second = await asyncio.gather(*tasks)
            return first, second
        finally:
            for task in tasks:  # if one failed, nobody waits for the other
                task.cancel()

    def _used_variant(self, label: str) -> UsedVariant | None:
        return UsedVariant(name=self._experiment.name, variant=label) if self._experiment else None

    def _plan(
        self, request: RecommendRequest, assignment: Assignment, due: float, *, in_bulk: bool
    ) -> Plan:
        """due: when "auto" should have its answer. Users in an experiment get its decoding."""
        loaded, variant = assignment.loaded_bundle, assignment.variant
        manifest = loaded.bundle.manifest
        is_adaptive = self._policy.adaptive_schedule and self._experiment is None
        is_fixed = request.pins_decoding or not is_adaptive or request.horizon > 1
        if request.schedule != "auto" and is_fixed:
            if not (request.pins_decoding or variant or request.explain or request.horizon > 1):
                plans = self._usual.setdefault(loaded, {})
                needed = beams_needed(request)
                if needed not in plans:
                    plans[needed] = fixed_plan(request, manifest.decoding, manifest)
                return plans[needed]
            asked = variant.decoding if variant else {}
            return fixed_plan(request, manifest.decoding.model_copy(update=asked), manifest)

        def seconds(plan: Plan) -> float:
            """Waiting counts three times.

            The gate closes at half the SLO. Faster schedules must be chosen before that.
            """
            width = plan.decoding.beam_width
            forecast = self._batcher.forecast(loaded.engine, plan.work, width, in_bulk=in_bulk)
            return forecast.total_s + (0 if in_bulk else 2 * forecast.wait_s)

        within_s = due - time.monotonic()
        ladder = explained_rungs(loaded.ladder) if request.explain else loaded.ladder
        num_beams = beams_needed(request)
        return plan_in_time(ladder, manifest.num_subspaces, num_beams, seconds, within_s)

    async def _history_of(self, request: RecommendRequest) -> UserHistory:
        user_id, after = request.user_id, request.after
        try:
            if after is not None:
                stored, shown = await self._histories.read_page(user_id, after)
                shown = shown or self._answers.pending(user_id, after)
                if shown is None:
                    raise RecommendationNotFound(
                        "this user's answer is not remembered (for a day, and the last 20); "
                        "ask without `after`"
                    )
                if len(shown.before) + len(shown.item_ids) > MAX_ITEMS_BEFORE:
                    message = f"the pages before hold more than {MAX_ITEMS_BEFORE} items"
                    raise InvalidRequest(message, param="after")
                if request.history is not None:
                    return UserHistory("request", request.history, shown, stored.refused)
                return UserHistory("store", stored.history, shown, stored.refused)
            if request.history is not None:
                return UserHistory("request", request.history)
            stored = await self._histories.read(user_id)
            return UserHistory("store", stored.history, refused=stored.refused)
        except HistoryUnavailable:
            if self._policy.fallback == "off" or after is not None:
                raise
            return UserHistory("unavailable", [])

    def _remember(self, response: RecommendResponse, history: UserHistory, label: str) -> None:
        """Remember the answer, for the attribution of events and for a next page."""
        shown = RememberedAnswer(
            response.recommendation_id,
            response.bundle,
            label,
            response.item_ids,
            history.before,
        )
        self._answers.note(response.user_id, shown)

    def _observe(self, response: RecommendResponse, *, is_filtered: bool, in_bulk: bool) -> None:
        metrics, history = self._metrics, response.history
        timings_s = {stage: ms / 1000 for stage, ms in response.timings_ms.items()}
        metrics.filtered_requests.inc(is_filtered)
        if response.decoding and response.decoding.adjusted:
            metrics.schedule_adjusted.inc()
        total_s = timings_s.pop("total")
        if not in_bulk:
            metrics.recommend_duration.labels(response.served_by).observe(total_s)
        for stage, seconds in timings_s.items():
            metrics.stage_duration.labels(stage).observe(seconds)
        for reason in response.degraded_reasons:
            metrics.fallbacks.labels(reason).inc()
        metrics.history_length.labels(history.source).observe(history.length)
        metrics.unknown_history_items.inc(history.unknown_items)
        metrics.items_returned.observe(len(response.item_ids))
        metrics.explored_items.inc(sum(item.explored for item in response.items))


def _is_like(one: LoadedBundle, active: LoadedBundle, request: RecommendRequest) -> bool:
    """Whether a bundle takes what the active one would: a request must not fail for a variant."""
    ours, theirs = one.bundle.manifest, active.bundle.manifest
    types = ours.filters, theirs.filters
    same_filters = all(types[0].get(name) == types[1].get(name) for name in request.attributes)
    same_retrieval = ours.decoding.retrieval == theirs.decoding.retrieval
    return same_filters and (same_retrieval or not request.explain)


def count_decoded(metrics: Metrics, decoded: Decoded, plan: Plan, num_items: int) -> None:
    """Count what the search did for an answer, and whether its rows are valid and distinct."""
    found = decoded.rows.tolist()
    lists = found if decoded.rows.ndim == 2 else [found]  # a sequence must be distinct in itself
    metrics.nfe.observe(decoded.nfe)
    metrics.nfe_saved.inc(plan.work.calls - decoded.nfe)
    metrics.survivors.observe(decoded.survivors)
    metrics.invalid_sids.inc(
        sum(len(rows) - len({row for row in rows if 0 <= row < num_items}) for rows in lists)
    )


class _Until:
    """Raises DeadlineExceeded when the deadline has passed while its block waits.

    A class, because it is entered for every request, and a generator takes longer.
    """

    __slots__ = ("_timeout",)

    def __init__(self, deadline: float) -> None:
        self._timeout = asyncio.timeout(deadline - time.monotonic())

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed") from None
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded("the deadline passed") from None


@contextmanager
def _timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        stages[stage] = time.perf_counter() - started
