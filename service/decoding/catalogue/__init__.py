"""The items as arrays: semantic IDs, the trie over them, and how new items get theirs.

Says which items exist and which agree with a partial SID. Knows no network, no beams, no requests.

Reading order: `catalogue` (codes, item ids, vectors), `trie` (posting lists), `code_pairs` (which
two codes occur together), `allowed_rows` (what is kept of filters), `codebook` (from an embedding
to a SID), `codebook_kinds`, `collisions` (SIDs that no other item has), `alike` (what new items are
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
from service.decoding.catalogue.allowed_rows import (
    FEW,
    FEW_OF_LISTS,
    FEW_OF_ONE_CALL,
    AllowedRows,
    FilterCache,
)
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.code_pairs import Pairs
from service.decoding.catalogue.codebook import (
    Codebook,
    CodebookKind,
    ContentProjection,
    chunks_of,
)
from service.decoding.catalogue.codebook_kinds import (
    ProductCodebook,
    RandomCodebook,
    ResidualCodebook,
    RQVAECodebook,
    directions_of,
)
from service.decoding.catalogue.collisions import Collisions, with_digit
from service.decoding.catalogue.growing_arrays import SharedList
from service.decoding.catalogue.neighbour_prior import (
    RESEMBLANCE,
    NeighbourPrior,
    NewRows,
    typical_affinity,
)
from service.decoding.catalogue.pauses import with_pauses
from service.decoding.catalogue.trie import SidTrie

__all__ = [
    "FEW",
    "FEW_OF_LISTS",
    "FEW_OF_ONE_CALL",
    "MOST_COMPARED",
    "NUM_ALIKE",
    "RESEMBLANCE",
    "Alike",
    "AllowedRows",
    "Catalogue",
    "Codebook",
    "CodebookKind",
    "Collisions",
    "ContentProjection",
    "FilterCache",
    "NeighbourPrior",
    "NewRows",
    "Pairs",
    "ProductCodebook",
    "RQVAECodebook",
    "RandomCodebook",
    "ResidualCodebook",
    "SharedList",
    "SidTrie",
    "chunks_of",
    "code_pairs",
    "directions_of",
    "most_alike",
    "typical_affinity",
    "vectors_like",
    "with_digit",
    "with_pauses",
]
