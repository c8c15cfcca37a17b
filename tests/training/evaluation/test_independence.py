"""Figures of independence, of networks that answer from a joint distribution that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.decoding import Catalogue
from service.decoding.network.denoiser import Histories
from training.data.splits import Windows
from training.evaluation.independence import (
    code_accuracy,
    independence_markdown,
    mutual_information,
)


class Known:
    """Gives the exact conditionals of a joint distribution of all codes, whatever the history."""

    repeat_bias, history_length = 0.0, 3

    def __init__(self, joint: NDArray[np.float64]) -> None:
        self.joint = joint
        self.num_subspaces, self.num_codes = joint.ndim, joint.shape[0]

    def encode(self, histories: Histories) -> int:
        return len(histories.codes)

    def denoise(
        self, memory: Any, sids: NDArray[np.uint16], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        found = np.empty((*positions.shape, self.num_codes), np.float32)
        for place in np.ndindex(positions.shape):
            sid, position = sids[place[:2]], positions[place]
            known = tuple(slice(None) if code == self.num_codes else code for code in sid)
            left = [p for p, code in enumerate(sid) if code == self.num_codes]
            others = tuple(axis for axis, p in enumerate(left) if p != position)
            of_codes = self.joint[known].sum(axis=others)
            found[place] = np.log(of_codes / of_codes.sum())
        return found


def entropy(shares: NDArray[np.float64]) -> float:
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def pair_bits(joint: NDArray[np.float64], i: int, j: int) -> float:
    """I(i; j) = H(i) + H(j) - H(i, j)."""
    of_two = joint.sum(axis=tuple(p for p in range(joint.ndim) if p not in (i, j)))
    return entropy(of_two.sum(axis=0)) + entropy(of_two.sum(axis=1)) - entropy(of_two)


def world(joint: NDArray[np.float64], users: int) -> tuple[Catalogue, Windows]:
    """Every SID is an item; each user has one item and a target drawn from the joint."""
    codes = np.array(list(np.ndindex(joint.shape)), np.uint16)
    item_ids = tuple(map(str, range(len(codes))))
    catalogue = Catalogue(item_ids, codes, joint.shape[0], np.zeros(len(codes), np.int64))
    drawn = np.random.default_rng(5).choice(len(codes), users, p=joint.ravel()).astype(np.int32)
    rows = np.stack((np.zeros(users, np.int32), drawn), axis=1).ravel()
    starts = 2 * np.arange(users, dtype=np.int64)
    return catalogue, Windows(rows, np.arange(users, dtype=np.int32), starts, starts + 1)


def copied(num_codes: int, wrong: float) -> NDArray[np.float64]:
    """Position 1 copies position 0, or with probability `wrong` has another code; 2 is free."""
    pair = np.full((num_codes, num_codes), wrong / (num_codes - 1))
    np.fill_diagonal(pair, 1 - wrong)
    return (pair / num_codes)[:, :, None] * np.full(num_codes, 1 / num_codes)


def test_mutual_information_is_that_of_the_closed_form() -> None:
    wrong, num_codes = 0.1, 4
    joint = copied(num_codes, wrong)
    catalogue, windows = world(joint, 8)
    found = mutual_information(Known(joint), catalogue, windows, draws=None)
    closed = 2 + wrong * np.log2(wrong) + 0.9 * np.log2(0.9) - wrong * np.log2(3)
    expected = np.zeros((3, 3))
    expected[0, 1] = expected[1, 0] = closed
    assert found == pytest.approx(expected, abs=1e-5)
    drawn = mutual_information(Known(joint), catalogue, windows, draws=5, seed=1)
    assert drawn == pytest.approx(expected, abs=1e-5)  # every code tells equally much here


def test_mutual_information_of_any_joint_distribution() -> None:
    joint = np.random.default_rng(0).dirichlet(np.full(27, 0.3)).reshape(3, 3, 3)
    joint = (joint + 1e-4) / (joint + 1e-4).sum()
    catalogue, windows = world(joint, 40)
    exact = mutual_information(Known(joint), catalogue, windows, draws=None)
    expected = [[0 if i == j else pair_bits(joint, i, j) for j in range(3)] for i in range(3)]
    assert exact == pytest.approx(np.array(expected), abs=1e-5)
    drawn = mutual_information(Known(joint), catalogue, windows, draws=50)
    assert drawn == pytest.approx(exact, abs=0.05)


def test_accuracy_with_nothing_known_with_earlier_codes_and_with_all_others() -> None:
    joint = copied(4, 0.1)
    catalogue, windows = world(joint, 400)
    denoiser = Known(joint)
    targets = catalogue.codes[windows.targets]
    is_copy = targets[:, 0] == targets[:, 1]
    share = is_copy.mean()
    surprise = np.where(is_copy, -np.log2(0.9), -np.log2(0.1 / 3)).mean()
    nothing, earlier, others = (
        code_accuracy(denoiser, catalogue, windows, known)
        for known in ("nothing", "earlier", "others")
    )
    assert nothing.bits == pytest.approx([2, 2, 2], abs=1e-4)
    assert earlier.bits == pytest.approx([2, surprise, 2], abs=1e-4)
    assert earlier.right[1] == share
    assert others.bits == pytest.approx([surprise, surprise, 2], abs=1e-4)
    assert others.right[:2].tolist() == [share, share]


def test_one_position_has_no_other() -> None:
    joint = np.array([0.3, 0.7])
    catalogue, windows = world(joint, 4)
    assert mutual_information(Known(joint), catalogue, windows).tolist() == [[0.0]]
    report = {
        "bundle": "b@1",
        "users": 4,
        "accuracy": {"earlier": {"right": [0.5], "bits": [1.0]}},
        "mutual_information": None,
    }
    assert "takes no two codes for independent" in independence_markdown(report)
