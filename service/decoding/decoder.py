"""All that decoding needs, as one value: what the service and offline evaluation share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue import Codebook, NeighbourPrior, SidTrie
from service.decoding.job import Confidence, Decoded, Job, OnAnswer, Timings
from service.decoding.network import Denoiser, EncoderCache
from service.decoding.search import decode


@dataclass(frozen=True, eq=False)
class Decoder:
    """A catalogue, the network that was trained for it, and what is known beside it.

    The fields are the arguments of `decode`; `dataclasses.replace` gives one without a prior.

    encoder_cache: how many encoded histories are kept; 0 = none, each is encoded for every request.
        A decoder made from another one, by `replace` or with other items, starts an empty cache.
    """

    trie: SidTrie
    denoiser: Denoiser
    prior: NeighbourPrior | None = None
    confidence: Confidence = "legal"
    encoder_cache: int = 0
    _cache: EncoderCache | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cache = EncoderCache(self.encoder_cache) if self.encoder_cache else None
        object.__setattr__(self, "_cache", cache)  # frozen

    def decode(
        self, jobs: Sequence[Job], on_answer: OnAnswer | None = None
    ) -> tuple[list[Decoded], Timings]:
        """Decode a batch of jobs: see `service.decoding.search.beam_search.decode`."""
        return decode(
            jobs,
            self.trie,
            self.denoiser,
            prior=self.prior,
            confidence=self.confidence,
            cache=self._cache,
            on_answer=on_answer,
        )

    def with_items(
        self, item_ids: Sequence[str], embeddings: NDArray[np.floating], codebook: Codebook
    ) -> Decoder:
        """A decoder that knows these items too; this one stays as it is, and answers meanwhile.

        embeddings: (n, embedding_dims) content embeddings. The prior knows nothing of new items.
        Raises ValueError when the codebook takes no such embeddings or an item is there already.
        """
        catalogue = self.trie.catalogue
        if len(embeddings) != len(item_ids):
            raise ValueError("there must be one embedding per item")
        vectors = codebook.vectors_of(embeddings)
        codes = codebook.codes_of(vectors)
        if not catalogue.vectors.shape[1]:  # the encoder sees codes alone
            vectors = vectors[:, :0]
        catalogue = catalogue.with_items(item_ids, codes, vectors.astype(np.float16))
        return replace(self, trie=self.trie.with_items(catalogue))

    def without_items(self, item_ids: Collection[str]) -> Decoder:
        """A decoder that never returns these items; this one stays as it is.

        Rows are numbered anew. Unknown item_ids are ignored; raises ValueError when none is left.
        """
        catalogue = self.trie.catalogue
        removed = catalogue.rows_of(item_ids)
        if not len(removed):
            return self
        prior = self.prior and self.prior.without_rows(removed)
        trie = self.trie.without_items(catalogue.without_items(item_ids))
        return replace(self, trie=trie, prior=prior)
