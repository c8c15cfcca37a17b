"""The refit before shipping, measured: what is it worth to know the validation interactions?

The run's trial knows training interactions only. Here its counts, its network, or both also learn
what validation held out, by the same code that makes the bundle that ships, and all are ranked on
the test users. Networks and bundles are kept in `<out>/refit`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.bundles import Bundle
from training.comparison.finished_run import FinishedRun
from training.comparison.ranked_systems import RankedSystems
from training.comparison.table import Row, markdown_table, paired_difference
from training.config import RunConfig
from training.evaluation import LONG, SystemRanks, ndcg_at, recall_at
from training.pipeline import refit_network, ship


@dataclass(frozen=True)
class RefitTable:
    """The rows, for one run in `<out>/unmask`, which is finished up to its trial."""

    ranked: RankedSystems
    config: RunConfig
    out: Path

    def rows(self) -> Iterator[Row]:
        """Validation interactions unknown, counted, learnt by the network, both."""
        reference = self._ranks("trial", self._trial())
        yield Row("unknown", "", reference)
        for name, counts, network in (
            ("counted", True, False),
            ("learnt", False, True),
            ("both", True, True),
        ):
            yield Row(name, "", self._refitted(name, counts=counts, network=network), reference)

    def from_scratch(self) -> Iterator[Row]:
        """Learnt on, and learnt from the beginning, both with counts made again."""
        reference = self._refitted("both", counts=True, network=True)
        yield Row("learnt on", "", reference)
        again = self._refitted("from scratch", counts=True, network=True, scratch=True)
        yield Row("from scratch", "", again, reference)

    def _trial(self) -> FinishedRun:
        return FinishedRun.of(
            self.config, self.ranked.dataset, self.out / "unmask", self.ranked.store.console
        )

    def _refitted(
        self, name: str, *, counts: bool, network: bool, scratch: bool = False
    ) -> SystemRanks:
        trial, run, split = self._trial(), self.out / "unmask", self.ranked.dataset.split
        graphs, record = None, {"steps": 0, "seconds_fitting": 0.0}
        if network:
            graphs = self.out / "refit" / ("network-from-scratch" if scratch else "network")
            record = self._network(graphs, scratch=scratch)
        folder = self.out / "refit" / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)  # made in seconds, so it is never out of date
        ship(
            self.ranked.dataset,
            split.before_test if counts else split.train,
            self.config,
            run,
            folder,
            self.ranked.store.console,
            network=graphs,
            record=record,
            facts={},
            version=name.replace(" ", "-"),
            created_at="",
        )
        minutes = trial.minutes + record["seconds_fitting"] / 60
        return self._ranks(name, replace(trial, bundle=Bundle.load(folder), minutes=minutes))

    def _network(self, folder: Path, *, scratch: bool) -> dict[str, Any]:
        """The record of a network in this folder, which is fitted if it is not of this run."""
        file, fitted = folder / "record.json", self.out / "unmask" / "fit.json"
        made_of = json.loads(fitted.read_text())["files"]["checkpoint.pt"]["sha256"]
        key = f"{made_of} {self.config.refit.share}"
        record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if record.get("made_of") != key:
            record = refit_network(
                self.ranked.dataset,
                self.ranked.dataset.split.before_test,
                self.config,
                self.out / "unmask",
                folder,
                self.ranked.store.console,
                key,
                from_scratch=scratch,
            )
            file.write_text(json.dumps(record | {"made_of": key}))
        return record

    def _ranks(self, name: str, run: FinishedRun) -> SystemRanks:
        """By the rows of the bundle: those of another order are those of reordered data."""
        ranked = replace(self.ranked, prefix=f"refit-{name.replace(' ', '-')}-")
        ids = run.bundle.catalogue.item_ids
        if tuple(ids) != ranked.dataset.split.train.item_ids:
            order = ranked.dataset.split.before_test.popular_first()
            ranked = replace(ranked, dataset=ranked.dataset.reordered(order))
        return ranked.unmask(run, run.default, prior=True, both=True)


def refit_rows(rows: Sequence[Row]) -> str:
    """Recall and ndcg of each row, with the paired difference to the first."""
    header = ["validation interactions", "recall@10", "ndcg@10", "recall@40", "minutes in all"]
    header += ["difference, recall@10", "verdict"]
    lines = []
    for row in rows:
        ranks = row.ranks
        of_long = ranks.item if ranks.long is None else ranks.long
        line = [row.system, f"{row.recall:.4f}", f"{ndcg_at(ranks.item, 10):.4f}"]
        line += [f"{recall_at(of_long, LONG):.4f}", f"{ranks.minutes:.1f}"]
        if row.reference is None:
            line += ["-", "-"]
        else:
            difference = paired_difference(ranks.item, row.reference.item)
            line += [str(difference), difference.verdict]
        lines.append(line)
    return markdown_table(header, lines)
