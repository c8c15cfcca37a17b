"""Every system that is compared, on one data set: fitted, and ranked on all its test users.

Bundles answer through the production decoder, baselines by their scores; both rank the whole
catalogue. What the store holds is neither fitted nor ranked again, except that a bundle must be
there to say so. Knows which systems there are, not which are compared with which.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from joblib import cpu_count
from rich.progress import Progress

from service.bundles import Manifest
from service.decoding import Order, Retrieval
from training.baselines import BERT4RecConfig, SASRecConfig, TextKNN, fit_sequence_model
from training.baselines import ranks as ranks_by_score
from training.comparison.finished_run import FinishedRun
from training.comparison.given_systems import GivenSystem
from training.comparison.rivals import (
    PAIRWISE,
    Counting,
    Fitted,
    fit_counting,
    fit_with_prior,
    minutes_since,
)
from training.config import ScheduleConfig
from training.data import Dataset, Windows
from training.evaluation import (
    LONG,
    AsServed,
    RanksStore,
    SystemRanks,
    TargetRanks,
    draw_windows,
    held_out_sequences,
    ndcg_at,
    one_after_another,
    ranks_as_served,
    requests_of,
    sequence_ranks,
)
from training.pipeline import dataset_key

SEQUENCE_USERS = 5000  # who are asked for several items: one after another is ten searches more


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
    _fits: dict[tuple[str, ...], Fitted] = field(default_factory=dict)

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
        order: Order | None = None,
        retrieval: Retrieval | None = None,
        shipped: bool = True,
    ) -> SystemRanks:
        """A bundle at a schedule, with or without its neighbour prior.

        both: at the other setting of `exclude_seen` as well
        order, retrieval: None = that of the setting
        shipped: at the default schedule, with all that the bundle chose beside it
        """
        bundle, schedule = finished.bundle, finished.schedule(asked)
        manifest = bundle.manifest
        decoding = finished.decoding(asked, shipped=shipped)
        decoder = bundle.decoder if prior else replace(bundle.decoder, prior=None)
        parts = [name, "-".join(map(str, schedule.steps)), *["prior"] * prior]
        parts += ["shipped"] * (decoding != finished.decoding(asked, shipped=False))
        if order is not None and order != decoding.order:
            parts += [f"{order}-order"]
            decoding = decoding.model_copy(update={"order": order})
        if retrieval is not None and retrieval != decoding.retrieval:
            parts += [retrieval]
            decoding = decoding.model_copy(update={"retrieval": retrieval})
        inputs = [self.key, _read_of(manifest, prior=prior), str(schedule.steps)]
        how = {"beam_width", "ranking", "finish_rows", "order", "retrieval"}
        inputs += [decoding.model_dump_json(include=how)]
        if decoding.remask or decoding.guidance:  # else the inputs are those of older ranks
            inputs += [f"remask={decoding.remask} guidance={decoding.guidance}"]
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
                search_share=_search_share(found.milliseconds),
            )

        return self.store.ranks_of(self.prefix + "-".join(parts), inputs, make)

    def sequences(
        self, finished: FinishedRun, horizon: int, m_par: int | None, *, name: str
    ) -> SystemRanks:
        """The last `horizon` items of SEQUENCE_USERS users, without a prior.

        The ranks are a place for each of these items, those of a user side by side.
        m_par: of the search for all of them together; None = one after another, at the setting that
            the bundle chose, but by beams
        """
        manifest = finished.bundle.manifest
        decoding, find = (
            manifest.decoding.model_copy(update={"retrieval": "generate"}),
            sequence_ranks,
        )
        if m_par is None:
            find = one_after_another
        else:
            decoding = decoding.for_several(horizon).model_copy(update={"m_par": m_par})
        how = "one-after-another" if m_par is None else f"together-{m_par}"

        def make() -> SystemRanks:
            windows = held_out_sequences(self.dataset.split, horizon)
            found = find(
                draw_windows(windows, SEQUENCE_USERS, seed=0),
                replace(finished.bundle.decoder, prior=None),
                horizon,
                decoding,
                batch=self.batch,
                workers=cpu_count(),
                exclude_seen=self.exclude_seen,
            )
            return SystemRanks(
                item=found.places.ravel(),
                exclude_seen=self.exclude_seen,
                minutes=finished.minutes,
                nfe=found.nfe,
            )

        inputs = [self.key, _read_of(manifest, prior=False), decoding.model_dump_json(), how]
        inputs += [f"horizon={horizon} users={SEQUENCE_USERS} exclude_seen={self.exclude_seen}"]
        return self.store.ranks_of(f"{self.prefix}{name}-{horizon}-items-{how}", inputs, make)

    def counting(self, model: Counting, *, again: bool = False) -> SystemRanks:
        """A model that counts. again: with what validation held out, as it is known at the test"""
        fit = partial(fit_counting, model, self.dataset.split, exclude_seen=self.exclude_seen)
        return self._scored(_slug(model.name), str(model.decays), fit, again=again)

    def envelope(self, *, again: bool = False) -> tuple[Counting, SystemRanks]:
        """Of the models that count pairs of items the best one on validation."""
        best = max(PAIRWISE, key=lambda model: self.counting(model).validation)
        names = ", ".join(model.name for model in PAIRWISE)
        note = "" if again else f"{best.name}, the best validation ndcg@10 of {names}"
        return best, replace(self.counting(best, again=again), note=note)

    def text_knn(self) -> SystemRanks | None:
        """Neighbours by content; None when the data has no embeddings."""
        embeddings = self.dataset.embeddings
        if embeddings is None:
            return None
        return self._scored("text-knn", "", lambda: Fitted(lambda log: TextKNN(embeddings)))

    def sequence_model(self, config: SASRecConfig | BERT4RecConfig) -> SystemRanks:
        """SASRec or BERT4Rec, as the configuration says."""
        return self._scored(*self._sequence_inputs(config), partial(self._fit_sequence, config))

    def better_sasrec(self, configs: Sequence[SASRecConfig]) -> SASRecConfig:
        """The one of the best validation ndcg@10."""
        return max(configs, key=lambda config: self.sequence_model(config).validation)

    def sasrec_with_prior(
        self, config: SASRecConfig, run: FinishedRun, *, again: bool = False
    ) -> SystemRanks:
        """SASRec and the neighbour prior of a run, weighed for SASRec on the same users.

        again: with what validation held out in the prior's counts; see `counting`
        """
        neighbours, users = run.config.neighbours, run.config.evaluation.schedule_users

        def fit() -> Fitted:
            return fit_with_prior(
                self._fitted(*self._sequence_inputs(config), partial(self._fit_sequence, config)),
                self.dataset.split,
                run.content,
                neighbours,
                users=users,
                exclude_seen=self.exclude_seen,
            )

        _, of_model = self._sequence_inputs(config)
        content = hashlib.sha256(np.ascontiguousarray(run.content).tobytes()).hexdigest()
        inputs = "\n".join([of_model, neighbours.model_dump_json(), str(users), content])
        return self._scored("sasrec-with-prior", inputs, fit, again=again)

    def given(self, system: GivenSystem) -> SystemRanks:
        """A model that the user brings. A change of its file makes its ranks again."""

        def fit() -> Fitted:
            started = time.monotonic()
            scorer = system.fit(self.dataset.split.train)
            return Fitted(lambda log: scorer, f"`{system.reference}`", minutes_since(started))

        name = f"system-{system.reference.replace(':', '.')}"
        return self._scored(name, system.source_hash, fit)

    def _scored(
        self, name: str, inputs: str, fit: Callable[[], Fitted], *, again: bool = False
    ) -> SystemRanks:
        split = self.dataset.split

        def make() -> SystemRanks:
            fitted = self._fitted(name, inputs, fit)
            started = time.monotonic()
            scorer = fitted.counted_on(split.before_test if again else split.train)
            minutes = fitted.minutes + minutes_since(started)

            def rank(windows: Windows, exclude_seen: bool) -> TargetRanks:
                return ranks_by_score(windows, scorer, k=LONG, exclude_seen=exclude_seen)

            return SystemRanks(
                item=rank(split.test, self.exclude_seen),
                other=rank(split.test, not self.exclude_seen),
                validation=None  # it knows what validation asks for
                if again
                else ndcg_at(rank(split.validation, self.exclude_seen), 10),
                exclude_seen=self.exclude_seen,
                parameters=scorer.parameters,
                minutes=minutes,
                note="" if again else fitted.note,
            )

        key = [self.key, name, inputs, f"exclude_seen={self.exclude_seen}", "validation too"]
        return self.store.ranks_of(self.prefix + name + "-again" * again, key, make)

    def _fitted(self, name: str, inputs: str, fit: Callable[[], Fitted]) -> Fitted:
        """The model of these inputs, fitted once: others are made of it, or it is counted again."""
        key = (self.key, name, inputs)
        if key not in self._fits:
            self._fits[key] = fit()
        return self._fits[key]

    def _sequence_inputs(self, config: SASRecConfig | BERT4RecConfig) -> tuple[str, str]:
        return _slug(config.name), config.model_dump_json(exclude={"threads"})

    def _fit_sequence(self, config: SASRecConfig | BERT4RecConfig) -> Fitted:
        def say(line: dict[str, float]) -> None:
            self.store.console.print(
                f"epoch {line['epoch']}: loss {line['loss']:.3f}, "
                f"validation ndcg@10 {line['ndcg@10']:.4f}, {line['seconds']:.0f} s"
            )

        started = time.monotonic()
        scorer = fit_sequence_model(
            self.dataset.split, config, exclude_seen=self.exclude_seen, advance=say
        )
        note = f"best epoch {scorer.best_epoch} of {len(scorer.epochs)}"
        return Fitted(lambda log: scorer, note, minutes_since(started))


def _search_share(milliseconds: Mapping[str, float]) -> float | None:
    network = milliseconds["encode"] + milliseconds["denoise"]
    return milliseconds["search"] / network if network else None


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _read_of(manifest: Manifest, *, prior: bool) -> str:
    """All that ranks depend on in a bundle, as JSON; not its name or its facts."""
    files = ["encoder.onnx", "decoder.onnx", "codes.npy", "popularity.npy", "vectors.npy"]
    files += ["neighbours.npy", "affinities.npy"] * prior
    files += ["dense.onnx"] * bool(manifest.dense)
    head = {"dense": manifest.dense.model_dump()} if manifest.dense else {}
    return json.dumps(
        head
        | {
            "files": [manifest.files[file].sha256 for file in files],
            "history_length": manifest.history_length,
            "repeat_bias": manifest.repeat_bias,
            "prior": manifest.prior.model_dump() if prior else None,
        }
    )
