"""Every system that is compared, on one data set: fitted, and ranked on all its test users.

Bundles answer through the production decoder, baselines by their scores; both rank the whole
catalogue. What the store holds is neither fitted nor ranked again, except that a bundle must be
there to say so. Knows which systems there are, not which are compared with which.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from joblib import cpu_count
from rich.console import Console
from rich.progress import Progress

from service.bundles import Bundle, DecodingDefaults, Manifest
from service.decoding import Confidence, Schedule
from training.baselines import (
    BERT4RecConfig,
    ItemKNN,
    Popularity,
    SASRecConfig,
    Scorer,
    SequentialMemory,
    TextKNN,
    fit_sequence_model,
)
from training.baselines import ranks as ranks_by_score
from training.comparison.given_systems import GivenSystem
from training.config import RunConfig, ScheduleConfig
from training.data import Dataset
from training.evaluation import (
    LONG,
    AsServed,
    RanksStore,
    SystemRanks,
    ndcg_at,
    ranks_as_served,
    requests_of,
)
from training.pipeline import dataset_key, run

DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class FinishedRun:
    """A run of the pipeline up to its trial bundle, and the minutes it took in all.

    plain: how schedules are compared with each other, but for theirs: with the widest beam of the
        run's grid, the ranking the network is trained for, and to their ends
    """

    bundle: Bundle
    minutes: float
    plain: DecodingDefaults

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset, folder: Path, console: Console) -> Self:
        """Run the pipeline in a folder, or resume it; finished stages are skipped."""
        run(config, dataset, folder, console, until="trial")
        records = {
            stage: json.loads((folder / f"{stage}.json").read_text())
            for stage in ("codebook", "fit", "export", "trial")
        }
        seconds = sum(records[stage]["seconds"] for stage in ("codebook", "export", "trial"))
        seconds += records["fit"]["seconds_fitting"]  # over all its resumptions
        bundle = Bundle.load(folder / "trial")
        plain = DecodingDefaults(
            r_warm=0,
            m_par=bundle.catalogue.num_subspaces,
            beam_width=max(config.evaluation.beam_widths),
            ranking=config.fit.ranking,
        )
        return cls(bundle, seconds / 60, plain)

    def schedule(self, asked: ScheduleConfig) -> Schedule:
        """A schedule for this bundle's SIDs."""
        num_subspaces = self.bundle.catalogue.num_subspaces
        r_warm, m_par = asked.params(num_subspaces)
        return Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)

    def decoding(self, asked: ScheduleConfig, *, shipped: bool) -> DecodingDefaults:
        """A setting with this schedule: the plain one, or the bundle's default where it has it."""
        default = self.bundle.manifest.decoding
        if shipped and self.schedule(asked) == self.schedule(self.default):
            return default
        r_warm, m_par = asked.params(self.bundle.catalogue.num_subspaces)
        return self.plain.model_copy(update={"r_warm": r_warm, "m_par": m_par})

    def at_default_of(self, other: FinishedRun) -> FinishedRun:
        """This run with the decoding defaults of another, whatever the grid chose for it."""
        decoding = other.bundle.manifest.decoding
        manifest = self.bundle.manifest.model_copy(update={"decoding": decoding})
        return replace(self, bundle=replace(self.bundle, manifest=manifest))

    @property
    def default(self) -> ScheduleConfig:
        """The schedule that the bundle chose on validation users."""
        decoding = self.bundle.manifest.decoding
        return ScheduleConfig(r_warm=decoding.r_warm, m_par=decoding.m_par)


@dataclass(frozen=True)
class RankedSystems:
    """Ranks of systems on the test users of a data set.

    prefix: of the names in the store, for another data set or seed. batch: users decoded together.
    exclude_seen: of the headline, and of all that is chosen on validation users
    """

    dataset: Dataset
    store: RanksStore
    batch: int
    prefix: str = ""
    exclude_seen: bool = True
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", dataset_key(self.dataset))

    def unmask(
        self,
        finished: FinishedRun,
        asked: ScheduleConfig,
        *,
        prior: bool,
        both: bool,
        name: str = "unmask",
        confidence: Confidence = "legal",
        shipped: bool = True,
    ) -> SystemRanks:
        """A bundle at a schedule, with or without its neighbour prior.

        both: at the other setting of `exclude_seen` as well
        shipped: at the default schedule, with all that the bundle chose beside it
        """
        bundle, schedule = finished.bundle, finished.schedule(asked)
        manifest = bundle.manifest
        decoding = finished.decoding(asked, shipped=shipped)
        decoder = replace(bundle.decoder, confidence=confidence)
        decoder = decoder if prior else replace(decoder, prior=None)
        parts = [name, "-".join(map(str, schedule.steps)), *["prior"] * prior]
        parts += [f"{confidence}-choice"] * (confidence != "legal")
        parts += ["shipped"] * (decoding != finished.decoding(asked, shipped=False))
        inputs = [self.key, _read_of(manifest, prior=prior), str(schedule.steps), confidence]
        inputs += [decoding.model_dump_json(include={"beam_width", "ranking", "finish_rows"})]
        inputs += [f"exclude_seen={self.exclude_seen}", *["the other too"] * both]

        def rank(exclude_seen: bool) -> AsServed:
            test = self.dataset.split.test
            num_searches = len(requests_of(decoding, decoder.trie.catalogue.num_subspaces))
            with Progress(console=self.store.console, transient=True) as progress:
                task = progress.add_task("test users", total=len(test) * num_searches)
                return ranks_as_served(
                    test,
                    decoder,
                    decoding,
                    batch=self.batch,
                    workers=cpu_count(),
                    exclude_seen=exclude_seen,
                    advance=lambda users: progress.advance(task, users),
                )

        def make() -> SystemRanks:
            found, of_long = rank(self.exclude_seen)
            fit = manifest.facts["fit"]
            assert isinstance(fit, dict)
            parameters = int(str(fit["parameters"]))
            if decoder.prior is not None and decoder.prior.weight:
                parameters += int(np.count_nonzero(decoder.prior.affinities))
            return SystemRanks(
                item=found.item,
                other=rank(not self.exclude_seen).short.item if both else None,
                sid=found.sid,
                long=None if of_long is found else of_long.item,
                exclude_seen=self.exclude_seen,
                parameters=parameters,
                minutes=finished.minutes,
                nfe=found.nfe,
                milliseconds=sum(found.milliseconds.values()),
            )

        return self.store.ranks_of(self.prefix + "-".join(parts), inputs, make)

    def popularity(self) -> SystemRanks:
        """Items by training interactions."""
        return self._scorer("popularity", "", lambda: (Popularity(self.dataset.split.train), ""))

    def item_knn(self) -> SystemRanks:
        """Item-item cosine neighbours."""
        return self._scorer("item-knn", "", lambda: (ItemKNN(self.dataset.split.train), ""))

    def text_knn(self) -> SystemRanks | None:
        """Neighbours by content; None when the data has no embeddings."""
        embeddings = self.dataset.embeddings
        if embeddings is None:
            return None
        return self._scorer("text-knn", "", lambda: (TextKNN(embeddings), ""))

    def sequential_memory(self) -> SystemRanks:
        """The memory of what followed what, with the decay of the best validation ndcg@10."""
        return self._scorer("sequential-memory", str(DECAYS), self._fit_memory)

    def sequence_model(self, name: str, config: SASRecConfig | BERT4RecConfig) -> SystemRanks:
        """SASRec or BERT4Rec, as the configuration says."""
        return self._scorer(
            name, config.model_dump_json(exclude={"threads"}), partial(self._fit_sequence, config)
        )

    def given(self, system: GivenSystem) -> SystemRanks:
        """A model that the user brings. A change of its file makes its ranks again."""
        return self._scorer(
            f"system-{system.reference.replace(':', '.')}",
            system.source_hash,
            lambda: (system.fit(self.dataset.split.train), f"`{system.reference}`"),
        )

    def _scorer(self, name: str, inputs: str, fit: Callable[[], tuple[Scorer, str]]) -> SystemRanks:
        def make() -> SystemRanks:
            started = time.monotonic()
            scorer, note = fit()
            minutes = (time.monotonic() - started) / 60
            test = self.dataset.split.test
            return SystemRanks(
                item=ranks_by_score(test, scorer, k=LONG, exclude_seen=self.exclude_seen),
                other=ranks_by_score(test, scorer, k=LONG, exclude_seen=not self.exclude_seen),
                exclude_seen=self.exclude_seen,
                parameters=scorer.parameters,
                minutes=minutes,
                note=note,
            )

        setting = f"exclude_seen={self.exclude_seen}"
        return self.store.ranks_of(self.prefix + name, [self.key, name, inputs, setting], make)

    def _fit_memory(self) -> tuple[Scorer, str]:
        split = self.dataset.split

        def ndcg(decay: float) -> float:
            scorer = SequentialMemory(split.train, decay=decay)
            found = ranks_by_score(split.validation, scorer, k=10, exclude_seen=self.exclude_seen)
            return ndcg_at(found, 10)

        decay = max(DECAYS, key=ndcg)
        note = f"decay {decay:g}, the best validation ndcg@10 of {', '.join(map(str, DECAYS))}"
        return SequentialMemory(split.train, decay=decay), note

    def _fit_sequence(self, config: SASRecConfig | BERT4RecConfig) -> tuple[Scorer, str]:
        def say(line: dict[str, float]) -> None:
            self.store.console.print(
                f"epoch {line['epoch']}: loss {line['loss']:.3f}, "
                f"validation ndcg@10 {line['ndcg@10']:.4f}, {line['seconds']:.0f} s"
            )

        scorer = fit_sequence_model(
            self.dataset.split, config, exclude_seen=self.exclude_seen, advance=say
        )
        return scorer, f"best epoch {scorer.best_epoch} of {len(scorer.epochs)}"


def _read_of(manifest: Manifest, *, prior: bool) -> str:
    """All that ranks depend on in a bundle, as JSON; not its name or its facts."""
    files = ["encoder.onnx", "decoder.onnx", "codes.npy", "popularity.npy", "vectors.npy"]
    files += ["neighbours.npy", "affinities.npy"] * prior
    return json.dumps(
        {
            "files": [manifest.files[file].sha256 for file in files],
            "history_length": manifest.history_length,
            "repeat_bias": manifest.repeat_bias,
            "prior": manifest.prior.model_dump() if prior else None,
        }
    )
