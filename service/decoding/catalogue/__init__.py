"""The items as arrays: semantic IDs, the trie over them, and how new items get theirs.

Says which items exist and which agree with a partial SID. Knows no network, no beams, no requests.

Reading order: `catalogue` (codes, item ids, vectors), `trie` (posting lists), `code_pairs` (which
two codes occur together), `codebook` (from an embedding to a SID), `alike` (what new items are
like), `neighbour_prior` (which items follow which). Then how a catalogue grows while others read:
`growing_arrays`, `pauses`.
"""

from service.decoding.catalogue import code_pairs
from service.decoding.catalogue.alike import (
    MOST_COMPARED,
    NUM_ALIKE,
    Alike,
    most_alike,
    vectors_like,
)
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.code_pairs import Pairs
from service.decoding.catalogue.codebook import Codebook, ContentProjection
from service.decoding.catalogue.growing_arrays import SharedList
from service.decoding.catalogue.neighbour_prior import RESEMBLANCE, NeighbourPrior, NewRows
from service.decoding.catalogue.pauses import with_pauses
from service.decoding.catalogue.trie import SidTrie

__all__ = [
    "MOST_COMPARED",
    "NUM_ALIKE",
    "RESEMBLANCE",
    "Alike",
    "Catalogue",
    "Codebook",
    "ContentProjection",
    "NeighbourPrior",
    "NewRows",
    "Pairs",
    "SharedList",
    "SidTrie",
    "code_pairs",
    "most_alike",
    "vectors_like",
    "with_pauses",
]
