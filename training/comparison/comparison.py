"""The paper's tables from one command: which systems are compared, in which order.

One run of the pipeline in `<out>/unmask`, and the baselines on the same split. On request there are
more seeds (`<out>/seeds`), ablations (`<out>/ablations`), other families (`<out>/families`) and
runs with training data left out (`<out>/density`) or items left out (`<out>/cold`). Ranks are kept
in `<out>/ranks`, so a second call continues where the first was cut off. The document is written
after every table. Knows nothing of fitting, ranking or layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from service.bundles import Manifest
from training.baselines import BERT4RecConfig, SASRecConfig, TextKNN, published_sasrec
from training.comparison.document import Comparison, Origin
from training.comparison.families import DROPPED, FIRST, FamilyTables, row_name, verdicts
from training.comparison.finished_run import FinishedRun
from training.comparison.given_systems import GivenSystem, find_system
from training.comparison.new_items import NewItems
from training.comparison.paper_tables import (
    ABLATIONS,
    ONE_CALL,
    PAPER,
    RANDOM_CHOICE,
    SCHEDULES,
    reseeded,
)
from training.comparison.ranked_systems import RankedSystems
from training.comparison.refit_table import RefitTable
from training.comparison.rivals import COUNTING, MEMORY
from training.comparison.table import Row
from training.config import ComparisonTable, RunConfig, ScheduleConfig
from training.data import Dataset, thin
from training.errors import ConfigError
from training.evaluation import RanksStore, SystemRanks
from training.pipeline import family_of_run
from training.preset import load_config

MAIN_TABLES: frozenset[ComparisonTable] = frozenset(
    {ComparisonTable.SYSTEMS, ComparisonTable.SCHEDULES, ComparisonTable.LENGTHS}
)
FAMILY_TABLES: frozenset[ComparisonTable] = frozenset(
    {
        ComparisonTable.FAMILIES,
        ComparisonTable.NFE,
        ComparisonTable.SEVERAL_ITEMS,
        ComparisonTable.FAMILY_DENSITY,
    }
)
FAMILIES = ("maskgr", "tiger")  # presets that are compared with the configured run by default
COUNTED_AGAIN = "counts made again"
ENVELOPE, SASREC_WITH_PRIOR = "pairwise envelope", "SASRec + prior"
LENGTHS = ((1, 3), (4, 6), (7, 12), (13, None))  # items of a history


@dataclass(frozen=True)
class Plan:
    """What a comparison holds beside the run, its schedules and the counting baselines.

    sasrec: the one of the best validation ndcg@10 stands for SASRec in all other tables
    seeds: how many, the configured one first; with more than one they have a table of their own
    given: models that the user brings; they are in the table of systems
    families: presets of the tables of families by name, beside the configured run
    first: the name of the configured run in these tables
    Raises ConfigError when these models have no table to be in, or a name that is taken.
    """

    sasrec: tuple[SASRecConfig, ...]
    bert4rec: BERT4RecConfig
    seeds: int = 1
    tables: frozenset[ComparisonTable] = MAIN_TABLES
    given: tuple[GivenSystem, ...] = ()
    families: Mapping[str, RunConfig] = field(default_factory=dict)
    first: str = FIRST

    def __post_init__(self) -> None:
        if self.given and ComparisonTable.SYSTEMS not in self.tables:
            raise ConfigError("--system adds to the table of systems, so it needs --table systems")
        if self.families and not self.tables & FAMILY_TABLES:
            raise ConfigError(
                "--family adds to the tables of families, so it needs --table families"
            )
        taken = {TextKNN.name, self.bert4rec.name}
        taken |= {model.name for model in (*COUNTING, *self.sasrec)}
        for system in self.given:
            ours = system.name.startswith(("Unmask", ENVELOPE, SASREC_WITH_PRIOR))
            if ours or system.name in taken or system.name.endswith(COUNTED_AGAIN):
                raise ConfigError(
                    f"--system {system.reference}: the name {system.name!r} is taken; give the "
                    "class another one"
                )
            taken.add(system.name)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        preset: str,
        tables: Sequence[ComparisonTable],
        seeds: int,
        systems: Sequence[str],
        families: Sequence[str],
        overrides: Sequence[str],
    ) -> Plan:
        """The plan that is asked for on the command line; nothing named = the usual.

        preset: of the configuration, by name or path
        systems: references, module:Class; families: presets, whose configurations get `overrides`
        Raises ConfigError.
        """
        asked = frozenset(tables) or MAIN_TABLES
        if family_of_run(config).autoregressive and not asked <= FAMILY_TABLES:
            raise ConfigError(
                f"model.family={config.model.family}: these tables hold schedules against each "
                "other, and this family fills one position a call; use --table families, or run "
                "and evaluate"
            )
        first = row_name(Path(preset).stem)
        usual = [name for name in FAMILIES if name != first] * bool(asked & FAMILY_TABLES)
        presets = dict.fromkeys(families or usual)
        threads = config.fit.threads
        plan = cls(
            sasrec=(SASRecConfig(threads=threads), published_sasrec(threads=threads)),
            bert4rec=BERT4RecConfig(threads=threads),
            seeds=seeds,
            tables=asked,
            given=tuple(find_system(reference) for reference in dict.fromkeys(systems)),
            families={Path(name).stem: load_config(name, list(overrides)) for name in presets},
            first=first,
        )
        if len(plan.families) < len(presets):
            raise ConfigError("--family: two presets have the same name; give one file another one")
        return plan

    @property
    def families_alone(self) -> bool:
        """Whether no table needs the configured run as it would ship, or a baseline."""
        return bool(self.tables) and self.tables <= FAMILY_TABLES


def compare(
    config: RunConfig, dataset: Dataset, out: Path, console: Console, *, plan: Plan, origin: Origin
) -> dict[str, Any]:
    """Run what is missing, rank all systems on all test users, write the tables; their headline.

    dataset: as loaded with `config.interactions`
    """
    tables = Tables(config, dataset, out, console, plan)
    comparison = Comparison(
        origin,
        dataset,
        tables.manifest,
        plan.seeds,
        config.evaluation.exclude_seen,
    )
    rows_of: dict[str, Callable[[], Iterator[Row]]] = {
        "systems": tables.systems,
        "schedules": tables.schedules,
        "lengths": tables.history_lengths,
        "seeds": tables.seeds,
        "refit": lambda: RefitTable(tables.ranked, config, out).rows(),
        "scratch": lambda: RefitTable(tables.ranked, config, out).from_scratch(),
        "ablations": tables.ablations,
        "density": tables.density,
        "cold": tables.new_items,
        "families": lambda: tables.families.rows(),
        "nfe": lambda: tables.families.sweep(),
        "several-items": lambda: tables.families.several_items(),
        "family-density": lambda: tables.families.density(),
    }
    has_seeds = plan.seeds > 1 and not plan.families_alone
    for table, rows in rows_of.items():
        if table in plan.tables or (table == "seeds" and has_seeds):
            comparison.tables[table] = list(rows())
            comparison.write(out)
            if table == "schedules" and "systems" in comparison.tables:
                comparison.draw(out)
            if table == "nfe":
                comparison.draw_families(out)
    return {
        "out": str(out),
        "bundle": comparison.manifest.ref,
        "users": len(dataset.split.test),
        "exclude_seen": config.evaluation.exclude_seen,
        "rows": {table: len(rows) for table, rows in comparison.tables.items()},
        "recall@10": {
            row.system: round(row.recall, 5) for row in comparison.tables.get("systems", ())
        },
        **({"claims": verdicts(comparison.measured)} if plan.tables & FAMILY_TABLES else {}),
    }


class Tables:
    """The rows of each table, for one configuration on one data set."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, out: Path, console: Console, plan: Plan
    ) -> None:
        self.config, self.dataset, self.out, self.console = config, dataset, out, console
        self.plan = plan
        self.cold = None
        if ComparisonTable.COLD in plan.tables:  # an error in it shows before the long fits
            self.cold = NewItems.of(config, dataset, out / "cold", console)
        store = RanksStore(out / "ranks", console)
        exclude_seen = config.evaluation.exclude_seen
        self.ranked = RankedSystems(
            dataset, store, config.evaluation.batch, exclude_seen=exclude_seen
        )
        for system in plan.given:  # first, so that an error in one shows before the long fits
            self.ranked.given(system)
        self._families = None
        if plan.tables & FAMILY_TABLES:
            self._families = FamilyTables(
                config,
                plan.families,
                self.ranked,
                out,
                seeds=plan.seeds,
                swept=ComparisonTable.NFE in plan.tables,
                first=plan.first,
            )

    @cached_property
    def run(self) -> FinishedRun:
        """The configured run, as it would ship."""
        return FinishedRun.of(self.config, self.dataset, self.out / "unmask", self.console)

    @property
    def families(self) -> FamilyTables:
        assert self._families is not None  # the plan asks for a table of them
        return self._families

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the document is about."""
        if self.plan.families_alone:
            return self.families.run(self.plan.first).finished.bundle.manifest
        return self.run.bundle.manifest

    def systems(self) -> Iterator[Row]:
        """The bundle's schedule, one call and the paper's, prior on and off; then other models.

        Then those that count, with the interactions of validation counted too; a user's own models.
        """
        full = self._unmask(self.run.default)
        for asked in self._distinct(self.run.default, ONE_CALL, PAPER):
            for prior in (True, False):
                ranks = self._unmask(asked, prior=prior)
                name = self._name(asked, prior=prior)
                yield Row(name, "", ranks, None if ranks is full else full)
        for name, ranks in self._rivals():
            yield Row(name, "", ranks, full)
        for name, ranks in self._counted_again():
            yield Row(f"{name}, {COUNTED_AGAIN}", "", ranks, full)
        for system in self.plan.given:
            yield Row(system.name, "", self.ranked.given(system), full)

    def schedules(self) -> Iterator[Row]:
        """MDGR's Table 3 and the schedules of fewest calls, each without and with the prior."""
        published = dict(SCHEDULES)
        of_paper = published[PAPER]
        assert of_paper is not None
        for prior in (False, True):
            reference = self._unmask(PAPER, prior=prior, shipped=False)
            for asked in self._distinct(*published):
                ranks = self._unmask(asked, prior=prior, shipped=False)
                recall = published[asked]
                yield Row(
                    _unmask_name(prior),
                    self._params(asked),
                    ranks,
                    None if ranks is reference else reference,
                    "" if recall is None else f"{100 * (recall / of_paper - 1):+.1f} %",
                )

    def history_lengths(self) -> Iterator[Row]:
        """recall@10 of some systems for users of short and long histories."""
        test = self.dataset.split.test
        lengths = test.ends - test.starts
        systems = {
            "Unmask": self._unmask(self.run.default),
            "Unmask, prior off": self._unmask(self.run.default, prior=False),
            MEMORY.name: self.ranked.counting(MEMORY),
            self.sasrec.name: self.ranked.sequence_model(self.sasrec),
            SASREC_WITH_PRIOR: self.ranked.sasrec_with_prior(self.sasrec, self.run),
        }
        full = systems["Unmask"]
        for name, ranks in systems.items():
            for least, most in LENGTHS:
                chosen = (lengths >= least) & (lengths <= (most or lengths.max()))
                if chosen.any():
                    setting = f"{least}-{most} items" if most else f"{least}+ items"
                    reference = None if ranks is full else full.of_users(chosen)
                    yield Row(name, setting, ranks.of_users(chosen), reference)

    def seeds(self) -> Iterator[Row]:
        """The systems that draw random numbers, with other seeds, all decoded as the first is."""
        for number in range(self.plan.seeds):
            ranked, run = self.ranked, self.run
            if number:
                config = reseeded(self.config, number)
                folder = self.out / "seeds" / str(config.fit.seed)
                run = FinishedRun.of(config, self.dataset, folder, self.console)
                run = run.at_default_of(self.run)
                ranked = replace(self.ranked, prefix=f"seed-{config.fit.seed}-")
            setting = f"seed {self.config.fit.seed + number}"
            for prior in (True, False):
                ranks = ranked.unmask(run, run.default, prior=prior, both=True)
                yield Row(_unmask_name(prior), setting, ranks)
            sasrec = self.sasrec.model_copy(update={"seed": self.sasrec.seed + number})
            bert4rec = self.plan.bert4rec
            bert4rec = bert4rec.model_copy(update={"seed": bert4rec.seed + number})
            yield Row(sasrec.name, setting, ranked.sequence_model(sasrec))
            yield Row(SASREC_WITH_PRIOR, setting, ranked.sasrec_with_prior(sasrec, run))
            yield Row(bert4rec.name, setting, ranked.sequence_model(bert4rec))

    def ablations(self) -> Iterator[Row]:
        """The run as it is, then each ablation that is one; prior off, one call and the paper's."""
        asked_as = self._distinct(ONE_CALL, PAPER)
        base = {asked: self._unmask(asked, prior=False, shipped=False) for asked in asked_as}
        for asked, ranks in base.items():
            yield Row("as it is", self._asked(asked), ranks)
        for ablation in ABLATIONS:
            config = ablation.config(self.config)
            if config is None:
                continue
            slug = ablation.name.replace(" ", "_")
            run = FinishedRun.of(config, self.dataset, self.out / "ablations" / slug, self.console)
            for asked, reference in base.items():
                ranks = self.ranked.unmask(
                    run,
                    asked,
                    prior=False,
                    both=asked == ONE_CALL,
                    name=f"ablation-{slug}",
                    shipped=False,
                )
                yield Row(ablation.name, self._asked(asked), ranks, reference, ablation.published)
        if PAPER in base:
            ranks = self.ranked.unmask(
                self.run,
                PAPER,
                prior=False,
                both=False,
                order="random",
                shipped=False,
            )
            name, published = RANDOM_CHOICE.name, RANDOM_CHOICE.published
            yield Row(name, self._asked(PAPER), ranks, base[PAPER], published)

    def density(self) -> Iterator[Row]:
        """Unmask, SASRec and the memory with less to learn from."""
        reference = self._with_less_data(self.ranked, self.run)
        for name, ranks in reference.items():
            yield Row(name, "nothing", ranks)
        for dropped in DROPPED:
            dataset = thin(self.dataset, dropped)
            percent = f"{100 * dropped:.0f}"
            ranked = replace(self.ranked, dataset=dataset, prefix=f"density-{percent}-")
            folder = self.out / "density" / percent
            run = FinishedRun.of(self.config, dataset, folder, self.console)
            left = dataset.split.train.num_interactions / self.dataset.split.train.num_interactions
            for name, ranks in self._with_less_data(ranked, run).items():
                setting = f"{percent} % ({100 * left:.0f} % are left)"
                yield Row(name, setting, ranks, reference[name])

    def new_items(self) -> Iterator[Row]:
        """Items that the bundle gets after training, and a run that never saw them."""
        assert self.cold is not None  # the plan asks for this table
        yield from self.cold.rows(self.run)

    def _with_less_data(self, ranked: RankedSystems, run: FinishedRun) -> dict[str, SystemRanks]:
        return {
            "Unmask": ranked.unmask(run, run.default, prior=True, both=True),
            "Unmask, prior off": ranked.unmask(run, run.default, prior=False, both=True),
            self.sasrec.name: ranked.sequence_model(self.sasrec),
            MEMORY.name: ranked.counting(MEMORY),
        }

    def _rivals(self) -> Iterator[tuple[str, SystemRanks]]:
        ranked, plan = self.ranked, self.plan
        for model in COUNTING:
            yield model.name, ranked.counting(model)
        yield self._envelope()
        by_text = ranked.text_knn()
        if by_text is not None:
            yield TextKNN.name, by_text
        for config in plan.sasrec:
            yield config.name, ranked.sequence_model(config)
        yield SASREC_WITH_PRIOR, ranked.sasrec_with_prior(self.sasrec, self.run)
        yield plan.bert4rec.name, ranked.sequence_model(plan.bert4rec)

    def _counted_again(self) -> Iterator[tuple[str, SystemRanks]]:
        ranked, default = self.ranked, self.run.default
        again = self.run.counted_again(self.dataset.split.before_test)
        unmask = ranked.unmask(again, default, prior=True, both=True, name="unmask-again")
        yield self._name(default, prior=True), unmask
        for model in COUNTING:
            yield model.name, ranked.counting(model, again=True)
        yield self._envelope(again=True)
        yield SASREC_WITH_PRIOR, ranked.sasrec_with_prior(self.sasrec, self.run, again=True)

    def _envelope(self, *, again: bool = False) -> tuple[str, SystemRanks]:
        best, ranks = self.ranked.envelope(again=again)
        return f"{ENVELOPE} ({best.name})", ranks

    @cached_property
    def sasrec(self) -> SASRecConfig:
        """The configuration that stands for SASRec where there is one."""
        return self.ranked.better_sasrec(self.plan.sasrec)

    def _unmask(
        self, asked: ScheduleConfig, *, prior: bool = True, shipped: bool = True
    ) -> SystemRanks:
        """Ranks of the run at a schedule; the main ones at both settings of `exclude_seen`."""
        main = [self.run.schedule(one) for one in (self.run.default, ONE_CALL, PAPER)]
        both = self.run.schedule(asked) in main
        return self.ranked.unmask(self.run, asked, prior=prior, both=both, shipped=shipped)

    def _distinct(self, *asked: ScheduleConfig) -> list[ScheduleConfig]:
        """Those that make different schedules for SIDs of this length, the first of each."""
        distinct = {self.run.schedule(one): one for one in reversed(asked)}
        return [one for one in asked if distinct[self.run.schedule(one)] is one]

    def _params(self, asked: ScheduleConfig) -> str:
        return str(asked.params(self.run.bundle.catalogue.num_subspaces))

    def _asked(self, asked: ScheduleConfig) -> str:
        return "one call" if asked == ONE_CALL else self._params(asked)

    def _name(self, asked: ScheduleConfig, *, prior: bool) -> str:
        schedule = self.run.schedule(asked)
        said = [f"Unmask {self._params(asked)}"]
        said += ["one call"] * (schedule.nfe == 1)
        said += ["the paper's schedule"] * (schedule == self.run.schedule(PAPER))
        full = prior and schedule == self.run.schedule(self.run.default)
        return ", ".join([*said, *["prior off"] * (not prior)]) + ": full system" * full


def _unmask_name(prior: bool) -> str:
    return "Unmask" if prior else "Unmask, prior off"
