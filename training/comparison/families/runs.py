"""Rows of families: a run of the pipeline for each preset and seed, all made alike, and its ranks.

A preset says what belongs to a family: codebook, network, masks, losses, decoding. Everything else
is that of the first: data, item vectors, CPU minutes, seeds, validation users. No row has a
neighbour prior. Runs are in `<out>/families`. Knows families by the presets it is given, no others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

from service.bundles import DecodingDefaults
from service.decoding import Decoder, Order, Retrieval, Schedule
from training.comparison.finished_run import FinishedRun
from training.comparison.paper_tables import reseeded
from training.comparison.ranked_systems import RankedSystems
from training.comparison.table import FamilyFacts, Row
from training.config import RunConfig, ScheduleConfig
from training.data import thin
from training.errors import ConfigError, TrainingError
from training.evaluation import SystemRanks, draw_windows, milliseconds_by_turns
from training.pipeline import family_of_run
from training.stages import written_whole

FIRST = "Unmask"  # the configured run, unless its preset stands for a system of the papers
DROPPED = (0.25, 0.5, 0.75)
BATCHES = (1, 8)
HORIZON = 2  # MaskGR was compared with TIGER at two items
GRAPHS = ("encoder.onnx", "decoder.onnx")
# MaskGR compares them; the search from left to right is also the only one of its public code.
ORDERS: tuple[Order, ...] = ("random", "left_to_right")
NAME = re.compile(r"[A-Za-z0-9_-]+")
OF_FIT = ("minutes", "validation_users", "threads", "seed")
OF_EVALUATION = ("exclude_seen", "schedule_users", "timing_users", "batch")


@dataclass(frozen=True)
class FamilyRun:
    """A finished run, what its fit took, and the ranks of its data set.

    name: of the preset
    cpu_minutes: None in records from before they were kept
    vectors: SHA-256 of the items' vectors
    """

    name: str
    finished: FinishedRun
    ranked: RankedSystems
    seed: int
    dropped: float
    steps: int
    cpu_minutes: float | None
    clock_minutes: float
    vectors: str

    def decoding(self, point: Point) -> DecodingDefaults:
        """The setting of a point."""
        decoding = self.finished.decoding(point.asked, shipped=point.shipped)
        order, retrieval = self._order(point), point.retrieval
        asked = {"order": order or decoding.order, "retrieval": retrieval or decoding.retrieval}
        return decoding.model_copy(update=asked)

    def ranks(self, point: Point) -> SystemRanks:
        """Ranks of all test users, without a prior."""
        return self.ranked.unmask(
            self.finished,
            point.asked,
            prior=False,
            both=False,
            name=f"family-{self.name.lower()}",
            order=self._order(point),
            retrieval=point.retrieval,
            shipped=point.shipped,
        )

    def facts(self, point: Point) -> FamilyFacts:
        """What rows say of a point, but for its times."""
        retrieval = self.decoding(point).retrieval
        return FamilyFacts(
            seed=self.seed,
            family=self.finished.bundle.manifest.family,
            schedule=point.asked.params(self.num_subspaces),
            calls=0 if retrieval == "dense" else self.finished.schedule(point.asked).nfe,
            order=point.order or "",
            retrieval=retrieval,
            dropped=self.dropped,
            steps=self.steps,
            cpu_minutes=self.cpu_minutes,
            clock_minutes=self.clock_minutes,
        )

    @property
    def retrievals(self) -> tuple[Retrieval, ...]:
        """What may find items beside what the bundle chose: all, where there is a dense head."""
        return get_args(Retrieval) if self.finished.bundle.manifest.dense else ()

    def widths(self, horizon: int) -> list[int | None]:
        """m_par for several items together: of as many calls as a SID has positions, then of the
        others that make different schedules, most calls first. None, one after another, is last.
        """
        if self.finished.bundle.manifest.max_horizon < horizon:
            return [None]
        positions = horizon * self.num_subspaces
        calls = (self.num_subspaces, *range(positions, 0, -1))
        return [*dict.fromkeys(-(-positions // number) for number in calls), None]

    @property
    def autoregressive(self) -> bool:
        return self.finished.bundle.manifest.autoregressive

    @property
    def num_subspaces(self) -> int:
        return self.finished.bundle.catalogue.num_subspaces

    def _order(self, point: Point) -> Order | None:
        """That of the point, or the one that the bundle chose, where both rank alike."""
        default = self.finished.bundle.manifest.decoding
        same = default.ranking == self.finished.plain.ranking
        return point.order or (default.order if same and not point.shipped else None)


@dataclass(frozen=True)
class Point:
    """How a run is asked. shipped: at its schedule, with all that the bundle chose beside it"""

    asked: ScheduleConfig
    shipped: bool = False
    order: Order | None = None
    retrieval: Retrieval | None = None


def schedule_of_calls(num_subspaces: int, calls: int) -> ScheduleConfig:
    """The schedule of exactly so many denoiser calls: the narrowest parallel steps that reach it.

    Every parallel step fills ceil(num_subspaces / calls) positions, and as many single ones come
    before them as make up the number. For 8 positions: (0, 8), (0, 4), (0, 3), (0, 2), (2, 2),
    (4, 2), (6, 2), (0, 1).
    """
    m_par = -(-num_subspaces // calls)
    if m_par == 1:
        return ScheduleConfig(r_warm=0, m_par=1)
    for r_warm in range(num_subspaces, -1, -1):
        schedule = Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)
        if schedule.nfe == calls:
            return ScheduleConfig(r_warm=r_warm, m_par=m_par)
    raise ValueError(f"{num_subspaces} positions cannot be filled in {calls} calls")


def alike(config: RunConfig, first: RunConfig) -> RunConfig:
    """A preset's own family on the data, vectors, time, seeds and users of the first one."""
    fit = {name: getattr(first.fit, name) for name in OF_FIT}
    evaluation = {name: getattr(first.evaluation, name) for name in OF_EVALUATION}
    return first.model_copy(
        update={
            "codebook": config.codebook.model_copy(update={"seed": first.codebook.seed}),
            "model": config.model,
            "masking": config.masking,
            "fit": config.fit.model_copy(update=fit),
            "evaluation": config.evaluation.model_copy(update=evaluation),
            "neighbours": first.neighbours.model_copy(update={"weights": (0.0,)}),
            "bundle": config.bundle,
        }
    )


class FamilyTables:
    """The rows of the tables of families.

    presets: of the families beside the first, by name
    first: the name of the configured run
    swept: whether the table of denoiser calls is asked for too: all that is timed takes turns
    Raises ConfigError when a preset's family cannot be trained so, before anything is.
    """

    def __init__(
        self,
        config: RunConfig,
        presets: Mapping[str, RunConfig],
        ranked: RankedSystems,
        out: Path,
        *,
        seeds: int,
        swept: bool,
        first: str = FIRST,
    ) -> None:
        for name in presets:
            if name.lower() in (FIRST.lower(), first.lower()) or not NAME.fullmatch(name):
                raise ConfigError(
                    f"--family: {name} is no name for a row beside {first}; give the preset's file "
                    f"another one, of letters, digits and -"
                )
        self.first = first
        self.configs = {
            name: alike(one, config) for name, one in {first: config, **presets}.items()
        }
        for name, one in self.configs.items():
            family = family_of_run(one)
            try:
                family.check_run(one)
            except ConfigError as error:
                raise ConfigError(f"family {name}: {error}") from error
        self.ranked, self.out = ranked, out / "families"
        self.seeds, self.swept = seeds, swept
        self._runs: dict[tuple[str, int, float], FamilyRun] = {}

    def run(self, name: str, number: int = 0, dropped: float = 0.0) -> FamilyRun:
        """The run of a preset with seeds raised by `number`, on thinned data. It is made once."""
        key = (name, number, dropped)
        if key not in self._runs:
            found = self._runs[key] = self._made(name, number, dropped)
            first = self.run(self.first, number, dropped)
            if found.vectors != first.vectors:
                raise TrainingError(
                    f"family {name} learnt from other item vectors than {self.first}, so the two "
                    f"cannot be compared; remove {self.out} and run the command again"
                )
        return self._runs[key]

    def rows(self) -> Iterator[Row]:
        """Each family at the setting that its bundle chose on validation users, seed by seed.

        A network with a dense head has a row for each retrieval too, all else as it chose.
        """
        for number in range(self.seeds):
            first: SystemRanks | None = None
            for name in self.configs:
                run = self.run(name, number)
                for point in self._as_chosen(run):
                    ranks = run.ranks(point)
                    yield self._row(run, point, ranks, first)
                    first = first or ranks

    def sweep(self) -> Iterator[Row]:
        """Each family at every number of calls; then with other orders, a call a position.

        The reference is the family itself at its most calls.
        """
        for number in range(self.seeds):
            for name in self.configs:
                run = self.run(name, number)
                *fewer, most = self._points(run)
                reference = run.ranks(most)
                yield self._row(run, most, reference, None)
                for point in reversed(fewer):
                    yield self._row(run, point, run.ranks(point), reference)
                for order in () if run.autoregressive else ORDERS:
                    point = replace(most, order=order)
                    yield self._row(run, point, run.ranks(point), reference)

    def several_items(self) -> Iterator[Row]:
        """The last two items of users, asked for together and one after another, by each family.

        Rows have no reference: a user has two places, and the table pairs users.
        """
        for number in range(self.seeds):
            for name in self.configs:
                run = self.run(name, number)
                default = Point(run.finished.default, shipped=True, retrieval="generate")
                for m_par in run.widths(HORIZON):
                    ranks = run.ranked.sequences(
                        run.finished, HORIZON, m_par, name=f"family-{name.lower()}"
                    )
                    facts = replace(
                        run.facts(default),
                        horizon=HORIZON,
                        chained=m_par is None,
                    )
                    if m_par is None:
                        facts = replace(facts, calls=HORIZON * facts.calls)
                    else:
                        calls = -(-HORIZON * run.num_subspaces // m_par)
                        facts = replace(facts, schedule=(0, m_par), calls=calls)
                    how = "one after another, " if m_par is None else ""
                    setting = f"{HORIZON} items, {how}{facts.schedule}, seed {run.seed}"
                    yield Row(name, setting, ranks, facts=facts)

    def density(self) -> Iterator[Row]:
        """Each family with all training interactions, then with less; compared with itself."""
        for number in range(self.seeds):
            for name in self.configs:
                whole: SystemRanks | None = None
                for dropped in (0.0, *DROPPED):
                    run = self.run(name, number, dropped)
                    point = Point(run.finished.default, shipped=True)
                    ranks = run.ranks(point)
                    yield self._row(run, point, ranks, whole)
                    whole = whole or ranks

    def _points(self, run: FamilyRun) -> list[Point]:
        """Of every number of calls that the family can have, fewest first."""
        most = run.num_subspaces
        calls = [most] if run.autoregressive else range(1, most + 1)
        return [Point(schedule_of_calls(most, number)) for number in calls]

    def _as_chosen(self, run: FamilyRun) -> list[Point]:
        """The setting that the bundle chose; then with each retrieval, if it has a dense head."""
        chosen = Point(run.finished.default, shipped=True)
        return [chosen, *(replace(chosen, retrieval=one) for one in run.retrievals)]

    def _row(
        self, run: FamilyRun, point: Point, ranks: SystemRanks, reference: SystemRanks | None
    ) -> Row:
        facts = run.facts(point)
        if run.seed == self.configs[self.first].fit.seed and not run.dropped:
            facts = replace(facts, milliseconds=self._milliseconds.get((run.name, point)))
        setting = str(facts.schedule) + f", {point.order}" * (point.order is not None)
        setting += f", {100 * run.dropped:.0f} % dropped" * (run.dropped > 0)
        name = run.name + f", {point.retrieval}" * (point.retrieval is not None)
        return Row(name, f"{setting}, seed {run.seed}", ranks, reference, facts=facts)

    def _made(self, name: str, number: int, dropped: float) -> FamilyRun:
        config, ranked, prefix = self.configs[name], self.ranked, ""
        if number:
            config = reseeded(config, number)
            prefix += f"seed-{config.fit.seed}-"
        if dropped:
            prefix += f"density-{100 * dropped:.0f}-"
            ranked = replace(ranked, dataset=thin(ranked.dataset, dropped))
        ranked = replace(ranked, prefix=prefix)
        folder = self.out / f"{prefix}{name.lower()}"
        console = self.ranked.store.console
        console.print(f"family {prefix}{name}", style="bold", markup=False)
        finished = FinishedRun.of(config, ranked.dataset, folder, console)
        fit, codebook = (
            json.loads((folder / f"{stage}.json").read_text()) for stage in ("fit", "codebook")
        )
        cpu_seconds = fit.get("cpu_seconds")
        return FamilyRun(
            name,
            finished,
            ranked,
            config.fit.seed,
            dropped,
            steps=fit["step"],
            cpu_minutes=None if cpu_seconds is None else cpu_seconds / 60,
            clock_minutes=fit["seconds_fitting"] / 60,
            vectors=codebook["files"]["vectors.npy"]["sha256"],
        )

    @cached_property
    def _milliseconds(self) -> dict[tuple[str, Point], tuple[float, float]]:
        """Of a request, for each batch size: of every family and, if asked, number of calls.

        All are timed in one process by turns. Kept on disk until one of them changes.
        """
        points: list[tuple[str, Point]] = []
        asked: list[tuple[Decoder, DecodingDefaults]] = []
        said: list[object] = [self.ranked.key]
        evaluation = self.configs[self.first].evaluation
        for name in self.configs:
            run = self.run(name)
            bundle = run.finished.bundle
            decoder = replace(bundle.decoder, prior=None)
            for point in (*self._as_chosen(run), *(self._points(run) if self.swept else ())):
                points.append((name, point))
                asked.append((decoder, run.decoding(point)))
                graphs = [bundle.manifest.files[file].sha256 for file in GRAPHS]
                said.append([name, graphs, run.decoding(point).model_dump()])
        said.append([evaluation.timing_users, evaluation.exclude_seen])
        key = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        file = self.out / "milliseconds.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        if found.get("key") != key:
            windows = draw_windows(
                self.ranked.dataset.split.validation, evaluation.timing_users, seed=0
            )
            medians = [
                milliseconds_by_turns(
                    asked, windows, batch=batch, exclude_seen=evaluation.exclude_seen
                ).tolist()
                for batch in BATCHES
            ]
            found = {"key": key, "milliseconds": list(zip(*medians, strict=True))}
            with written_whole(file) as opened:
                opened.write(json.dumps(found).encode())
        return {
            point: (alone, of_eight)
            for point, (alone, of_eight) in zip(points, found["milliseconds"], strict=True)
        }
