"""The kernel: any-order, always-valid beam search over semantic IDs.

A request is a `Job`: a history, how many items it wants, a `Schedule`, a beam width, a ranking, and
how few rows are worth no further call. `decode` encodes the histories of a batch once, then
repeats, for all beams of all jobs together:

1. one `Denoiser` call gives log-probs of every code at every masked position; ranked by rows, a
   beam whose rows share one SID is decided, and not asked again;
2. each beam picks the positions it is most sure of, as many as its schedule says;
3. the `SidTrie` narrows: a beam owns the catalogue rows that agree with its partial SID, and its
   children are those rows grouped by their codes at the picked positions;
4. the best `beam_width` children of each job are its next beams.

At the last step every surviving row has an exact score and the `k` best rows are the answer, with
their `Trajectory` if the job asks for one. No step can leave the catalogue, so there is no invalid
SID to repair, and starting from fewer rows is all that exclusions and filters need. What is known
of rows beside their codes, from a `NeighbourPrior` and the network's bias for repeats, is added to
their scores on the way.

After a first step of one position a beam's rows are a posting list, which is read where it lies. In
large catalogues a table of pairs of codes says what is in it, so that only children that are kept
get rows of their own, by intersecting two lists.

The live service and offline evaluation call the same `decode`. A `Codebook` gives new items their
SIDs, so that they join without retraining. The package imports numpy, numba with its llvmlite, and
onnxruntime only. Reading order: schedule, unhurried, shared, catalogue, trie, pairs, trajectory,
job, denoiser, neighbours, beams, beam, batch_denoiser, narrowing, then what these drive, compiled:
asking, row_biases, scan, root, expansion with sureness and grouping, code_beams, code_expansion,
heap, softmax, prefetch; then trail, encoder_cache, codebook, decoder, gather_graph, onnx_denoiser.
unconstrained is the papers' literal expansion, kept for comparison.
"""

from service.decoding.catalogue import (
    Catalogue,
    Codebook,
    ContentProjection,
    NeighbourPrior,
    SidTrie,
)
from service.decoding.decoder import Decoder
from service.decoding.job import Confidence, Decoded, Job, OnAnswer, Ranking, Timings, Trajectory
from service.decoding.network import Denoiser, Histories
from service.decoding.schedule import Schedule
from service.decoding.search import decode

__all__ = [
    "Catalogue",
    "Codebook",
    "Confidence",
    "ContentProjection",
    "Decoded",
    "Decoder",
    "Denoiser",
    "Histories",
    "Job",
    "NeighbourPrior",
    "OnAnswer",
    "Ranking",
    "Schedule",
    "SidTrie",
    "Timings",
    "Trajectory",
    "decode",
]
