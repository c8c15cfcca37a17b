"""The best entries of many, in one pass: a heap of limited size in two arrays.

An entry is a score and a number. The higher score is better; of equal scores, the lower number. The
worst entry that is kept is on top, so an entry that does not belong costs one comparison. Knows
nothing of what scores and numbers mean.

scores: (capacity,) float64    numbers: (capacity,) int64    size: how many are kept so far
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.loops.compilation import compiled

Scores = NDArray[np.float64]
Numbers = NDArray[np.int64]


@compiled
def push(scores: Scores, numbers: Numbers, size: int, score: float, number: int) -> int:
    """Keep the entry if it is among the best so far; returns the new size."""
    capacity = len(scores)
    if size < capacity:
        at = size
        while at > 0:  # sift up
            above = (at - 1) >> 1
            if not _worse(score, number, scores[above], numbers[above]):
                break
            scores[at], numbers[at] = scores[above], numbers[above]
            at = above
        scores[at], numbers[at] = score, number
        return size + 1
    if capacity and _worse(scores[0], numbers[0], score, number):
        _sift_down(scores, numbers, capacity, score, number)
    return size


@compiled
def sort(scores: Scores, numbers: Numbers, size: int) -> None:
    """Turn the heap into a list, best first."""
    for last in range(size - 1, 0, -1):
        score, number = scores[last], numbers[last]
        scores[last], numbers[last] = scores[0], numbers[0]
        _sift_down(scores, numbers, last, score, number)


@compiled
def _sift_down(scores: Scores, numbers: Numbers, size: int, score: float, number: int) -> None:
    """Put an entry in the place of the top one."""
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        other = below + 1
        if other < size and _worse(scores[other], numbers[other], scores[below], numbers[below]):
            below = other
        if not _worse(scores[below], numbers[below], score, number):
            break
        scores[at], numbers[at] = scores[below], numbers[below]
        at = below
    scores[at], numbers[at] = score, number


@compiled
def _worse(score: float, number: int, other_score: float, other_number: int) -> bool:
    return score < other_score or (score == other_score and number > other_number)
