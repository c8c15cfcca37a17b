"""All that decoding needs, as one value: what the service and offline evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.decoding.beam import decode
from service.decoding.denoiser import Denoiser
from service.decoding.job import Confidence, Decoded, Job, Ranking, Timings
from service.decoding.neighbours import NeighbourPrior
from service.decoding.trie import SidTrie


@dataclass(frozen=True, eq=False)
class Decoder:
    """A catalogue, the network that was trained for it, and how its answers are ranked.

    The fields are the arguments of `decode`; `dataclasses.replace` gives one without a prior.
    """

    trie: SidTrie
    denoiser: Denoiser
    ranking: Ranking = "rows"
    prior: NeighbourPrior | None = None
    confidence: Confidence = "legal"

    def decode(self, jobs: Sequence[Job]) -> tuple[list[Decoded], Timings]:
        """Decode a batch of jobs: see `service.decoding.beam.decode`."""
        return decode(
            jobs,
            self.trie,
            self.denoiser,
            ranking=self.ranking,
            prior=self.prior,
            confidence=self.confidence,
        )
