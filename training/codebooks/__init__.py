"""From item vectors to semantic IDs: fits a codebook and reports how SIDs collide.

Reading order: `codebook`. The fitted `Codebook` itself belongs to the kernel, because the service
encodes new items with it.
"""

from training.codebooks.codebook import CollisionReport, fit_codebook, load_codebook, save_codebook

__all__ = [
    "CollisionReport",
    "fit_codebook",
    "load_codebook",
    "save_codebook",
]
