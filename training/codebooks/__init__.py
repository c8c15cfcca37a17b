"""From item vectors to semantic IDs: fits a codebook and reports how many items share a SID.

Reading order: `codebook` (fits one of each kind, writes and reads it), `rqvae` (one of them),
`sids` (the SIDs of all items, which may not be shared, and the report). The fitted `Codebook`
belongs to the kernel, because the service encodes new items with it. Knows no interactions and no
families.
"""

from training.codebooks.codebook import fit_codebook, load_codebook, save_codebook
from training.codebooks.sids import CollisionReport, sids_of

__all__ = [
    "CollisionReport",
    "fit_codebook",
    "load_codebook",
    "save_codebook",
    "sids_of",
]
