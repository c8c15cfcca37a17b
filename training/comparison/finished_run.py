"""A run of the pipeline, as a comparison needs it: its bundle, and how it is asked.

Runs what is missing in a folder, or resumes it. Knows no other system.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from service.bundles import Bundle, DecodingDefaults
from service.decoding import Schedule
from training.config import RunConfig, ScheduleConfig
from training.data import Dataset, Interactions
from training.evaluation import fewest_calls
from training.fitting import Settings, count_again
from training.pipeline import run


@dataclass(frozen=True)
class FinishedRun:
    """A run of the pipeline up to its trial bundle, and the minutes it took in all.

    content: (num_items, d) embeddings, what items are alike by for the neighbour prior
    plain: how schedules are compared with each other, but for theirs: with the widest beam of the
        run's grid, the ranking the network is trained for, and to their ends
    """

    config: RunConfig
    bundle: Bundle
    content: NDArray[np.floating]
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
        autoregressive = bundle.manifest.autoregressive
        plain = fewest_calls(
            bundle.catalogue.num_subspaces,
            max(config.evaluation.beam_widths),
            autoregressive=autoregressive,
        )
        if not autoregressive:
            plain = plain.model_copy(update={"ranking": config.fit.ranking})
        content = np.load(folder / "codebook" / "content.npy", allow_pickle=False)
        return cls(config, bundle, content, seconds / 60, plain)

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

    def counted_again(self, log: Interactions) -> FinishedRun:
        """This run with the counts of another log in its prior. All that was chosen stays."""
        settings = cast(Settings, self.bundle.manifest.facts["prior"])
        prior = count_again(log, self.content, self.config.neighbours, settings)
        decoder = replace(self.bundle.decoder, prior=prior)
        return replace(self, bundle=replace(self.bundle, decoder=decoder))

    @property
    def default(self) -> ScheduleConfig:
        """The schedule that the bundle chose on validation users."""
        decoding = self.bundle.manifest.decoding
        return ScheduleConfig(r_warm=decoding.r_warm, m_par=decoding.m_par)
