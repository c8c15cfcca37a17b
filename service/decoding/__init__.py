"""The kernel: any-order beam search over semantic IDs. Service and evaluation both use it.

A request is a `Job`. `decode` encodes the histories of a batch once. Each step then calls the
`Denoiser` once, for all beams of all jobs. Each beam fills the positions that its job's order puts
first. The `SidTrie` says which codes the items have there. The best `beam_width` children stay. A
beam owns the catalogue rows that agree with its codes, so no step can leave the catalogue.

Imports numpy, numba (with llvmlite) and onnxruntime only. No logging, no metrics, no environment.

Reading order: `schedule`, `job`, `catalogue`, `network`, `search`, `decoder`; `loops` and `arrays`
hold what compiled code needs.
"""

from service.decoding.catalogue import (
    Catalogue,
    Codebook,
    CodebookKind,
    Collisions,
    ContentProjection,
    NeighbourPrior,
    ProductCodebook,
    RandomCodebook,
    ResidualCodebook,
    RQVAECodebook,
    SidTrie,
)
from service.decoding.decoder import Decoder
from service.decoding.job import (
    MAX_HORIZON,
    Decoded,
    Job,
    OnAnswer,
    Order,
    Ranking,
    Retrieval,
    Timings,
    Trajectory,
)
from service.decoding.network import Denoiser, DenseHead, Histories
from service.decoding.schedule import Schedule
from service.decoding.search import decode

__all__ = [
    "MAX_HORIZON",
    "Catalogue",
    "Codebook",
    "CodebookKind",
    "Collisions",
    "ContentProjection",
    "Decoded",
    "Decoder",
    "Denoiser",
    "DenseHead",
    "Histories",
    "Job",
    "NeighbourPrior",
    "OnAnswer",
    "Order",
    "ProductCodebook",
    "RQVAECodebook",
    "RandomCodebook",
    "Ranking",
    "ResidualCodebook",
    "Retrieval",
    "Schedule",
    "SidTrie",
    "Timings",
    "Trajectory",
    "decode",
]
