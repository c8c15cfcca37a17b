"""New items in a comparison: taken out of the run and put back, and kept out of a run of its own.

The second run (`<out>/cold`) has the same configuration and the data set without these items: no
count, codebook, factor or network of it knows them. Then the service's own code adds them. It
knows which rows there are, not how new items are added or ranked (`training.evaluation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rich.console import Console

from training.baselines import ranks_by_content
from training.comparison.finished_run import FinishedRun
from training.comparison.table import ALL_OTHERS, TARGET_IS_NEW, Row
from training.config import RunConfig
from training.data import Dataset, without_items
from training.errors import ConfigError
from training.evaluation import AS_TRAINED, KEPT_OUT, PUT_BACK, ColdItems, Measured


@dataclass(frozen=True)
class NewItems:
    """What the table of new items is made of, checked before anything is fitted."""

    config: RunConfig
    cold: ColdItems
    folder: Path

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset, folder: Path, console: Console) -> Self:
        """Draw the new items. folder: of the run that is trained without them

        Raises ConfigError or DataError when no bundle of this data would take new items.
        """
        if not config.embeddings.content_dims:
            raise ConfigError(
                "--table cold adds items from their content, and embeddings.content_dims=0 leaves "
                "content out; set it above 0"
            )
        if config.codebook.kind == "random":
            raise ConfigError(
                "--table cold adds items by their codes, and codes that are drawn at random are of "
                "no item that comes later; set another codebook.kind than random"
            )
        return cls(config, ColdItems.of(dataset, config.evaluation, console), folder)

    def rows(self, run: FinishedRun) -> Iterator[Row]:
        """The run as it was trained, the other systems beside it; then what all others lose."""
        systems = list(self._systems(run))
        first = systems[0]
        note = (
            f"{len(self.cold.drawn):,} new items, of {self.cold.num_eligible:,} that have content, "
            f"training interactions and a test user whose target they are; {first.new.note}"
        )
        for one in systems:
            is_first = one is first
            ranks = replace(one.new, note=note) if is_first else one.new
            yield Row(one.system, TARGET_IS_NEW, ranks, None if is_first else first.new)
        for one in systems:
            if one.others is not None:
                reference = None if one is first else first.others
                yield Row(one.system, ALL_OTHERS, one.others, reference)

    def _systems(self, run: FinishedRun) -> Iterator[Measured]:
        cold = self.cold
        cold.check(run.bundle)
        yield from cold.ask(AS_TRAINED, run.bundle)
        yield from cold.ask(PUT_BACK, cold.added_to(run.bundle))
        left = without_items(cold.dataset, cold.drawn)
        kept_out = FinishedRun.of(self.config, left, self.folder, cold.console)
        yield from cold.ask(KEPT_OUT, cold.added_to(kept_out.bundle))
        yield cold.ask_content(ranks_by_content)
