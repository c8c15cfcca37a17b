"""The gate: is a candidate good enough to take the place of what is in service?

Both answer the same users, as the service would answer them, and the same held-out items are looked
for. The interval of the difference decides. Knows no run and no store.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundles import Bundle
from training.data import Interactions, Windows
from training.evaluation import SHORT, recommend_all

Verdict = Literal["promoted", "refused", "undecided"]
RESAMPLES = 10_000
ENDS = (2.5, 97.5)  # per cent, of the interval
SEEN = 2.8  # standard errors: a loss that large is found in four of five comparisons (1.96 + .84)


@dataclass(frozen=True)
class PairedRecall:
    """recall@10 of a candidate and of another bundle over the same users.

    difference, low, high: of the candidate, as a share of the other's recall, with the ends of its
        95 % interval
    smallest_loss: that is found in four of five comparisons with so many users, as such a share
    """

    users: int
    recall: float
    of_other: float
    difference: float
    low: float
    high: float
    smallest_loss: float

    def verdict(self, margin: float) -> Verdict:
        """Promoted only where a loss of `margin` is ruled out; refused where some loss is certain.

        "Not certainly worse" is not enough: few users rule nothing out.
        """
        if self.low > -margin:
            return "promoted"
        return "refused" if self.high < 0 else "undecided"

    def __str__(self) -> str:
        return (
            f"recall@{SHORT} {self.recall:.4f} against {self.of_other:.4f} over {self.users:,} "
            f"users: {self.difference:+.1%}, 95 % between {self.low:+.1%} and {self.high:+.1%}; "
            f"a loss below {self.smallest_loss:.1%} cannot be seen with so many users"
        )


def paired_recall(
    found: NDArray[np.bool_], by_other: NDArray[np.bool_], *, seed: int = 0
) -> PairedRecall:
    """Compare by a paired bootstrap. found, by_other: (n,) bool, n > 0: was the user's item found?

    A user is one of four kinds: found by both, by one, by the other, by none. To draw n users again
    is to draw the numbers of the kinds. Two users are added, one that each alone finds (Bonett and
    Price, 2012): where both find the same, the bootstrap alone would be certain, of three users
    too.
    """
    kinds = np.array(
        [
            np.count_nonzero(found & by_other),
            np.count_nonzero(found & ~by_other) + 1,
            np.count_nonzero(~found & by_other) + 1,
            np.count_nonzero(~found & ~by_other),
        ]
    )
    drawn = np.random.default_rng(seed).multinomial(kinds.sum(), kinds / kinds.sum(), RESAMPLES)
    gains, of_other = drawn[:, 1] - drawn[:, 2], drawn[:, 0] + drawn[:, 2]
    differences = gains / np.maximum(of_other, 1)
    low, high = np.percentile(differences, ENDS)
    recall, recall_of_other = float(found.mean()), float(by_other.mean())
    return PairedRecall(
        len(found),
        recall,
        recall_of_other,
        float((kinds[1] - kinds[2]) / max(kinds[0] + kinds[2], 1)),
        float(low),
        float(high),
        float(SEEN * differences.std()),
    )


def found_by(
    bundle: Bundle,
    windows: Windows,
    item_ids: tuple[str, ...],
    *,
    exclude_seen: bool,
    workers: int = 1,
) -> NDArray[np.bool_]:
    """(n,) bool: is the target of each window among the ten items that the bundle answers?

    windows: by the rows of `item_ids`, which may be another catalogue than the bundle's. As in the
    service, items that the bundle does not know are left out of histories; such a target is never
    found.
    """
    users = tuple(map(str, range(len(windows))))
    histories = [windows.history_of(window) for window in range(len(windows))]
    ends = np.fromiter(accumulate(map(len, histories), initial=0), np.int64)
    log = Interactions(users, item_ids, ends, np.concatenate(histories))
    answers = recommend_all(bundle, log, k=SHORT, exclude_seen=exclude_seen, workers=workers)
    targets = pl.DataFrame(
        {"user_id": users, "item_id": [item_ids[row] for row in windows.targets]}
    )
    found = targets.join(answers, on=["user_id", "item_id"], how="left", maintain_order="left")
    return found["rank"].is_not_null().to_numpy()
