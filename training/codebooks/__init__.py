"""From item vectors to semantic IDs: fits a codebook and reports how many items share a SID.

Everything is in `codebook`. The fitted `Codebook` belongs to the kernel, because the service
encodes new items with it. Knows no interactions and no networks.
"""

from training.codebooks.codebook import CollisionReport, fit_codebook, load_codebook, save_codebook

__all__ = [
    "CollisionReport",
    "fit_codebook",
    "load_codebook",
    "save_codebook",
]
