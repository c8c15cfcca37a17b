"""The search: from the fully masked SID to the k best items, never leaving the catalogue.

Two kinds of beams. A beam that has filled one position owns a posting list, too long to copy:
`codes` handles those. All others own their surviving rows: `rows` handles them.

Reading order: `beam_search` (the steps), `beams` (the data), `denoiser_calls` and `decided_beams`
(what the network is asked), `row_biases` (the neighbour prior and other scores that do not come
from codes), `narrowing` (from beams to children), then the loops in `rows` (`confidence`,
`grouping`, `expansion`, `whole_catalogue`) and `codes` (`beams`, `first_step`, `expansion`);
`trajectories` for explanations; `unconstrained`, the papers' own search, kept for comparison.
"""

from service.decoding.search.beam_search import decode
from service.decoding.search.unconstrained import SidIndex, decode_unconstrained

__all__ = [
    "SidIndex",
    "decode",
    "decode_unconstrained",
]
