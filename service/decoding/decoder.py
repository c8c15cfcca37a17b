"""A catalogue, its network and its prior as one value: service and offline evaluation share it.

Changes nothing in place: a decoder with more or fewer items is another decoder. Knows nothing of
bundles, users or HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue import (
    MOST_COMPARED,
    Catalogue,
    Codebook,
    NeighbourPrior,
    SidTrie,
)
from service.decoding.job import Decoded, Job, OnAnswer, Timings
from service.decoding.network import Denoiser, DenseHead, EncoderCache
from service.decoding.search import decode, decode_several


@dataclass(frozen=True, eq=False)
class Decoder:
    """A catalogue (as a trie), the network that was trained for it, and the neighbour prior.

    dense: the network's dense head, if it has one

    The fields are the arguments of `decode`. `dataclasses.replace(decoder, prior=None)` gives a
    decoder without a prior.

    encoder_cache: how many encoded histories are kept; 0 = none, every request is encoded.
        A decoder that is made from another one, by `replace` or with other items, starts with an
        empty cache.
    """

    trie: SidTrie
    denoiser: Denoiser
    prior: NeighbourPrior | None = None
    dense: DenseHead | None = None
    encoder_cache: int = 0
    _cache: EncoderCache | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cache = EncoderCache(self.encoder_cache) if self.encoder_cache else None
        object.__setattr__(self, "_cache", cache)  # frozen

    def decode(
        self, jobs: Sequence[Job], on_answer: OnAnswer | None = None
    ) -> tuple[list[Decoded], Timings]:
        """Decode a batch of jobs of one horizon.

        See `service.decoding.search.beam_search.decode`, and `several_items.decode_several` there
        for a horizon above 1.
        """
        given: Any = {"prior": self.prior, "cache": self._cache, "on_answer": on_answer}
        if jobs and jobs[0].horizon > 1:
            return decode_several(jobs, self.trie, self.denoiser, **given)
        return decode(jobs, self.trie, self.denoiser, dense=self.dense, **given)

    def with_items(
        self, item_ids: Sequence[str], embeddings: NDArray[np.floating], codebook: Codebook
    ) -> Decoder:
        """A decoder that knows these items too. This one does not change and can go on answering.

        embeddings: (n, embedding_dims) content embeddings, one per item. An item gets the vector,
            the SID and the places in the prior that follow from the items with interactions that it
            is like, see `service.decoding.catalogue.alike`. If SIDs are not shared, it gets one
            that is free, see `Codebook.sids_of`. They are the same in one call or many.
        Raises ValueError when the codebook does not accept such embeddings, or when an item is
        there already.
        """
        catalogue = self.trie.catalogue
        if len(embeddings) != len(item_ids):
            raise ValueError("there must be one embedding per item")
        if self.prior and self.prior.num_rows != catalogue.num_items:
            raise ValueError("the prior must have a row for every item of the catalogue")
        vectors, alike = codebook.vectors_of(embeddings, _known(catalogue, codebook))
        codes = codebook.sids_of(vectors, catalogue.codes)
        if not catalogue.vectors.shape[1]:  # the encoder sees codes alone
            vectors = vectors[:, :0]
        catalogue = catalogue.with_items(item_ids, codes, vectors.astype(np.float16))
        prior = self.prior and self.prior.with_rows(alike)
        return replace(self, trie=self.trie.with_items(catalogue), prior=prior)

    def without_items(self, item_ids: Collection[str]) -> Decoder:
        """A decoder that never returns these items. This one does not change.

        Later rows move up, so rows get new numbers. Unknown item_ids are ignored. Raises ValueError
        when no item is left.
        """
        catalogue = self.trie.catalogue
        removed = catalogue.rows_of(item_ids)
        if not len(removed):
            return self
        prior = self.prior and self.prior.without_rows(removed)
        trie = self.trie.without_items(catalogue.without_items(item_ids))
        return replace(self, trie=trie, prior=prior)


def _known(catalogue: Catalogue, codebook: Codebook) -> NDArray[np.floating]:
    """(n, d) vectors of the most popular items with interactions, as far as `alike` looks.

    If the catalogue has no vectors, they are about those that its SIDs say.
    """
    num_known = min(catalogue.num_known, MOST_COMPARED)
    if catalogue.vectors.shape[1]:
        return catalogue.vectors[:num_known]
    return codebook.vectors_with(catalogue.codes[:num_known])
