"""Catalogues of any size and a network of random numbers, to time the search on.

Some codes are frequent and codes of an item depend on each other, as in a trained codebook. The
network costs almost nothing, so the time is that of the search. Both say nothing about recall.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding import Catalogue, Histories

UNEVENNESS = 1.0  # standard deviation of the log frequency of codes
ITEMS_PER_FAMILY = 16
FAMILY_SHARE = 0.5  # share of an item's codes that it has from its family
SPREADS = (1.0, 4.0)  # standard deviation of logits, from an unsure to a sure position
POOL_SIZE_LOG2 = 8
HISTORY_LENGTH = 50
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class NumberedIds(Sequence[str]):
    """`num_items` item_ids, made when they are read: ten million strings would need a gigabyte."""

    def __init__(self, num_items: int) -> None:
        self._rows = range(num_items)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        rows = self._rows[row]
        return f"item-{rows}" if isinstance(rows, int) else tuple(f"item-{row}" for row in rows)


class NumberedRows(Mapping[str, int]):
    """Maps the ids of NumberedIds to their rows."""

    def __init__(self, item_ids: NumberedIds) -> None:
        self._item_ids = item_ids

    def __len__(self) -> int:
        return len(self._item_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._item_ids)

    def __getitem__(self, item_id: str) -> int:
        number = item_id.removeprefix("item-")
        if number.isdecimal() and int(number) < len(self) and item_id == f"item-{int(number)}":
            return int(number)
        raise KeyError(item_id)


def code_frequencies(
    num_subspaces: int, num_codes: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """(num_subspaces, num_codes) float64 probabilities of codes, log-normal: a few are frequent."""
    frequencies = np.exp(UNEVENNESS * random.standard_normal((num_subspaces, num_codes)))
    normalised: NDArray[np.float64] = frequencies / frequencies.sum(axis=1, keepdims=True)
    return normalised


def synthetic_codes(
    num_items: int, frequencies: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.uint16]:
    """(num_items, num_subspaces) uint16: every item has a family and shares half of its codes.

    With independent codes, any two items would differ after two or three positions.
    """
    num_subspaces, num_codes = frequencies.shape
    num_families = max(1, num_items // ITEMS_PER_FAMILY)
    family = random.integers(num_families, size=num_items, dtype=np.int32)
    codes = np.empty((num_items, num_subspaces), np.uint16)
    for position, frequency in enumerate(frequencies):
        of_families = random.choice(num_codes, num_families, p=frequency).astype(np.uint16)
        own = random.choice(num_codes, num_items, p=frequency).astype(np.uint16)
        shared = random.random(num_items, dtype=np.float32) < FAMILY_SHARE
        codes[:, position] = np.where(shared, of_families[family], own)
    return codes


def catalogue_of(codes: NDArray[np.uint16], num_codes: int) -> Catalogue:
    """A catalogue with these codes by row. All items are equally popular and have no vectors."""
    item_ids = NumberedIds(len(codes))
    return Catalogue(
        item_ids,
        codes,
        num_codes,
        popularity=np.zeros(len(codes), np.int64),
        row_of=NumberedRows(item_ids),
    )


def random_histories(
    num_users: int, num_items: int, random: np.random.Generator
) -> list[NDArray[np.int32]]:
    """Histories of 5 to 20 rows each."""
    lengths = random.integers(5, 21, size=num_users)
    return [random.integers(num_items, size=length, dtype=np.int32) for length in lengths]


class RandomDenoiser:
    """A denoiser whose log-probs come from a pool, chosen by history, partial SID and position.

    Frequent codes are more likely. Some positions are sure of a code or two, others are unsure. The
    same inputs always give the same log-probs, whatever else is in the batch.

    memory: (jobs,) uint64
    """

    def __init__(self, frequencies: NDArray[np.float64], *, seed: int = 0) -> None:
        """frequencies: (num_subspaces, num_codes), those of the catalogue's codes."""
        self.num_subspaces, self.num_codes = frequencies.shape
        self.history_length = HISTORY_LENGTH
        self.repeat_bias = 0.0
        random = np.random.default_rng(seed)
        shape = (self.num_subspaces, 2**POOL_SIZE_LOG2, self.num_codes)
        spread = random.uniform(*SPREADS, (*shape[:2], 1))
        logits = np.log(frequencies)[:, None] + spread * random.standard_normal(shape)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        self._pool = logits.astype(np.float32).reshape(-1, self.num_codes)
        drawn = random.integers(2**63, size=(HISTORY_LENGTH + 1, self.num_subspaces))
        factors = 2 * drawn.astype(np.uint64) + np.uint64(1)
        self._history_factors, self._sid_factors = factors[:-1], factors[-1]

    def encode(self, histories: Histories) -> NDArray[np.uint64]:
        codes = histories.codes.astype(np.uint64)
        terms = (codes + np.uint64(1)) * self._history_factors[: codes.shape[1]]
        hashes: NDArray[np.uint64] = np.where(histories.mask[..., None], terms, 0).sum(axis=(1, 2))
        return hashes

    def select(self, memory: NDArray[np.uint64], jobs: NDArray[np.intp]) -> NDArray[np.uint64]:
        return memory[jobs]

    def join(self, memories: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
        return np.concatenate(memories)

    def denoise(
        self,
        memory: NDArray[np.uint64],
        partial_sids: NDArray[np.uint16],
        positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Log-probs of every code at the positions asked for.

        partial_sids: (jobs, beams, num_subspaces) uint16, MASK at positions that are not filled
        positions:    (jobs, beams, n) int64, the positions asked for
        Returns (jobs, beams, n, num_codes) float32.
        """
        told = memory[:, None] + (partial_sids * self._sid_factors).sum(axis=-1)
        hashes = (told[..., None] + self._sid_factors[positions]) * GOLDEN
        drawn = (hashes >> np.uint64(64 - POOL_SIZE_LOG2)).astype(np.int64)
        log_probs: NDArray[np.float32] = self._pool.take(
            (positions << POOL_SIZE_LOG2) + drawn, axis=0
        )
        return log_probs
