"""The gate: what is worse is never promoted, and few users decide nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import write_tiny_bundle

from service.bundles.bundle import Bundle
from training.bundling import found_by, paired_recall
from training.data import Interactions
from training.data.splits import leave_last_out

MARGIN = 0.05


def hits(users: int, recall: float, random: np.random.Generator) -> NDArray[np.bool_]:
    return random.random(users) < recall


@pytest.mark.parametrize(
    ("recall", "shared", "undecided"),
    [
        *((0.1, 0.0, 200), (0.1, 0.5, 200), (0.1, 1.0, 200)),
        *((0.3, 0.0, 100), (0.3, 0.5, 100), (0.3, 1.0, 1)),
    ],
)
def test_a_system_40_per_cent_worse_is_never_promoted_for_100_users(
    recall: float, shared: float, undecided: int
) -> None:
    """shared: of how many users both find the item, or neither, for the same reason

    undecided: so many draws at least; the rule "not certainly worse" would have promoted them
    """
    random = np.random.default_rng(11)
    verdicts = []
    for draw in range(300):
        other = hits(100, recall, random)
        part_of_other = other & hits(100, 0.6, random)
        alone = hits(100, 0.6 * recall, random)
        found = np.where(random.random(100) < shared, part_of_other, alone)
        verdicts.append(paired_recall(found, other, seed=draw).verdict(MARGIN))
    assert "promoted" not in verdicts
    assert verdicts.count("undecided") >= undecided


def test_few_users_of_equal_systems_are_undecided_and_many_are_enough() -> None:
    random = np.random.default_rng(3)
    same = hits(30, 0.2, random)
    alike = paired_recall(same, same)
    assert (alike.difference, alike.verdict(MARGIN)) == (0, "undecided")
    assert alike.smallest_loss > MARGIN
    assert alike.low < -MARGIN < 0 < alike.high
    none = np.zeros(30, bool)
    assert paired_recall(none, none).verdict(MARGIN) == "undecided"
    many = hits(20_000, 0.2, random)
    of_many = paired_recall(many, many)
    assert of_many.verdict(MARGIN) == "promoted"
    assert of_many.smallest_loss < MARGIN


def test_a_clear_gain_is_promoted_and_a_clear_loss_refused() -> None:
    random = np.random.default_rng(4)
    worse, better = hits(1000, 0.1, random), hits(1000, 0.2, random)
    gain, loss = paired_recall(better, worse), paired_recall(worse, better)
    assert (gain.verdict(MARGIN), loss.verdict(MARGIN)) == ("promoted", "refused")
    assert gain.low > 0 > loss.high
    assert "a loss below" in str(gain)
    assert loss.verdict(0.9) == "promoted"  # the margin is what the operator accepts
    again = paired_recall(better, worse)
    assert again == gain


def test_the_interval_is_that_of_a_bootstrap_over_users() -> None:
    """Users drawn again one by one, with the two that are added."""
    random = np.random.default_rng(5)
    other = hits(400, 0.3, random)
    found = np.where(random.random(400) < 0.7, other, hits(400, 0.3, random))
    compared = paired_recall(found, other)
    both = np.stack((np.append(found, [True, False]), np.append(other, [False, True])), 1)
    drawn = both[random.integers(0, 402, (4000, 402))].mean(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1] - 1, [2.5, 97.5])
    assert compared.low == pytest.approx(low, abs=0.02)
    assert compared.high == pytest.approx(high, abs=0.02)


def test_a_smallest_loss_is_found_in_four_of_five_comparisons() -> None:
    random = np.random.default_rng(6)
    told = [paired_recall(hits(2000, 0.2, random), hits(2000, 0.2, random)) for _ in range(20)]
    loss = float(np.mean([one.smallest_loss for one in told]))
    verdicts = [
        paired_recall(hits(2000, 0.2 * (1 - loss), random), hits(2000, 0.2, random), seed=draw)
        for draw in range(200)
    ]
    assert 0.7 < np.mean([one.high < 0 for one in verdicts]) < 0.9


def test_targets_and_histories_are_those_of_the_service_whatever_the_rows(tmp_path: Path) -> None:
    """Another order of rows changes nothing; an item that the bundle lacks is a miss."""
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder)
    bundle = Bundle.load(folder)
    ids = bundle.catalogue.item_ids
    random = np.random.default_rng(8)
    rows = random.integers(0, 60, (50, 6)).astype(np.int32)
    log = Interactions(
        tuple(f"u{user}" for user in range(50)),
        (*ids, "unheard-of"),
        np.arange(0, 301, 6, dtype=np.int64),
        rows.reshape(-1),
    )
    windows = leave_last_out(log).test
    found = found_by(bundle, windows, log.item_ids, exclude_seen=False)
    assert 0 < found.sum() < 50
    order = random.permutation(len(log.item_ids))
    moved = log.reordered(order)
    same = found_by(bundle, windows.reordered(order), moved.item_ids, exclude_seen=False)
    np.testing.assert_array_equal(same, found)
    unknown = log.rows.copy()
    unknown[windows.ends] = len(ids)
    no_target = leave_last_out(replace(log, rows=unknown)).test
    assert not found_by(bundle, no_target, log.item_ids, exclude_seen=False).any()
