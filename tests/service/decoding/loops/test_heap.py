"""The bounded heap against sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding.loops import heap


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(-3, 3), max_size=40),
    capacity=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_the_best_are_kept_and_sorted_ties_by_number(
    scores: list[int], capacity: int, seed: int
) -> None:
    numbers = np.random.default_rng(seed).permutation(len(scores))
    kept_scores, kept = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    for score, number in zip(scores, numbers, strict=True):
        size = heap.push(kept_scores, kept, size, float(score), int(number))
    heap.sort(kept_scores, kept, size)
    expected = sorted(
        zip(scores, numbers.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1])
    )
    found = list(zip(kept_scores[:size].tolist(), kept[:size].tolist(), strict=True))
    assert found == expected[:capacity]
