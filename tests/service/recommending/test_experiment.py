"""Variants: the same for a user everywhere, in the shares asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.recommending.experiment import Experiment, load_experiment

TEXT = """
name = "sched"
salt = "{salt}"

[[variants]]
name = "a"
weight = 3

[[variants]]
name = "b"
weight = 1
bundle = "beauty@2"
r_warm = 4
"""


def experiment(folder: Path, text: str = TEXT, salt: str = "one") -> Experiment:
    path = folder / "experiment.toml"
    path.write_text(text.replace("{salt}", salt))
    return load_experiment(path)


def test_users_are_divided_by_weight_and_keep_their_variant(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    users = [f"user-{number}" for number in range(100_000)]
    first = [one.variant_of(user).name for user in users]
    assert [one.variant_of(user).name for user in users[:1000]] == first[:1000]
    shares = Counter(first)
    assert shares["a"] / len(users) == pytest.approx(0.75, abs=0.01)
    other = experiment(tmp_path, salt="two")
    same = sum(other.variant_of(user).name == name for user, name in zip(users, first, strict=True))
    assert same / len(users) == pytest.approx(0.75**2 + 0.25**2, abs=0.01)


def test_a_variant_says_what_differs(tmp_path: Path) -> None:
    plain, changed = experiment(tmp_path).variants
    assert (plain.bundle, plain.decoding) == (None, {})
    assert (changed.bundle, changed.decoding) == ("beauty@2", {"r_warm": 4})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "b"', 'name = "a"', "distinct"),
        ('name = "b"', 'name = "pinned"', "distinct"),
        ("weight = 1", "weight = 0", "greater than 0"),
        ("beauty@2", "../beauty", "pattern"),
        ("r_warm", "r_wram", "r_wram"),
        ("[[variants]]", "[[variants", "line"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    with pytest.raises(SettingsInvalid, match=reason) as refused:
        experiment(tmp_path, TEXT.replace(old, new))
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="No such file"):
        load_experiment(tmp_path / "none.toml")
