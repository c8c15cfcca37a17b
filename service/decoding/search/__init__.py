"""The search: from the fully masked SID to the k best items, always inside the catalogue.

There are two kinds of beams. A beam that has filled one position owns a posting list, which is too
long to copy: `posting_lists` handles those. All other beams own a list of rows: `rows` handles
them.

Reading order: `beam_search` (a batch, step by step), `job_search` (one job of it, and the rows that
it starts from), `beams` (the data), `denoiser_calls` (the network's inputs), `row_biases` (scores
that do not come from codes: prior, repeat bias, exclusions), `steps` (one step, for either kind of
beam), `dense` (items found without beams, or beside them), `remasking` (codes that are masked
again). Then the loops in `rows` (`order`, `grouping`, `expansion`, `whole_catalogue`) and
`posting_lists` (`first_step`, `scoring`, `second_step`). Apart: `several_items` (more items than
one, with loops in `sequences`), `trajectories` (explanations), `tracing` (the way of one row) and
`unconstrained` (the papers' own search).
"""

from service.decoding.search.beam_search import decode
from service.decoding.search.several_items import decode_several
from service.decoding.search.tracing.bias_parts import BiasParts, bias_parts
from service.decoding.search.tracing.following import Step, followed, log_probs_of
from service.decoding.search.tracing.traced_call import TracedCall
from service.decoding.search.unconstrained import SidIndex, decode_unconstrained

__all__ = [
    "BiasParts",
    "SidIndex",
    "Step",
    "TracedCall",
    "bias_parts",
    "decode",
    "decode_several",
    "decode_unconstrained",
    "followed",
    "log_probs_of",
]
