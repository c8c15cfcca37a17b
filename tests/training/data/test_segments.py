"""Segments: every target once, enough items before it, and the arrays of a minibatch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import log_of

from service.bundles.bundle import HISTORY_CAP
from training.data.segments import BUCKET_SAMPLES, Segments

FILLER = 99
histories = st.lists(st.lists(st.integers(0, 6), max_size=25), min_size=1, max_size=6)


def _spelt(segments: Segments) -> list[tuple[list[int], list[int]]]:
    """Rows of each segment, and which of them are targets."""
    return [
        (segments.rows[start:end].tolist(), segments.rows[first:end].tolist())
        for start, first, end in zip(segments.starts, segments.firsts, segments.ends, strict=True)
    ]


def test_segments_by_hand() -> None:
    a, b, c, d, e, f, g = range(7)
    log = log_of([[a, b, c, d], [e], [], [a, b, c, d, e, f, g]])
    segments = Segments.of(log, history_length=3)
    assert _spelt(segments) == [
        ([a, b, c, d], [b, c, d]),
        ([a, b, c, d], [b, c, d]),
        ([b, c, d, e], [e]),
        ([c, d, e, f], [f]),
        ([d, e, f, g], [g]),
    ]
    assert len(segments) == 5
    assert segments.num_samples == 9
    assert segments.num_samples_of(np.array([0, 3])) == 4
    longer = Segments.of(log, history_length=4)
    assert _spelt(longer)[1:] == [([a, b, c, d, e], [b, c, d, e]), ([c, d, e, f, g], [f, g])]


def test_without_a_pair_of_interactions_there_is_no_segment() -> None:
    segments = Segments.of(log_of([[1], [], [2]]), history_length=3)
    assert len(segments) == segments.num_samples == 0


@settings(deadline=None)
@given(histories=histories, history_length=st.integers(1, 9))
def test_every_interaction_but_a_users_first_is_a_target_once(
    histories: list[list[int]], history_length: int
) -> None:
    log = log_of(histories)
    segments = Segments.of(log, history_length)
    targets: Counter[int] = Counter()
    user_of = log.users_of_interactions()
    for start, first, end in zip(segments.starts, segments.firsts, segments.ends, strict=True):
        assert log.indptr[user_of[start]] <= start < first < end <= log.indptr[user_of[start] + 1]
        assert end - start <= history_length + 1
        begins = start == log.indptr[user_of[start]]
        assert begins or first - start >= history_length / 2
        targets.update(range(first, end))
    later = set(range(log.num_interactions)) - set(log.indptr[:-1].tolist())
    assert targets == dict.fromkeys(later, 1)
    assert segments.num_samples == len(later)
    for start, first in zip(segments.starts, segments.firsts, strict=True):
        if first - start == 1:  # nothing was there to repeat
            assert start == log.indptr[user_of[start]] or history_length <= 2


@settings(deadline=None)
@given(histories=histories, history_length=st.integers(1, 9), data=st.data())
def test_arrays_are_the_rows_with_filler_behind(
    histories: list[list[int]], history_length: int, data: st.DataObject
) -> None:
    segments = Segments.of(log_of(histories), history_length)
    if not len(segments):
        return
    chosen = data.draw(st.lists(st.integers(0, len(segments) - 1), min_size=1, max_size=5))
    rows, is_target = segments.arrays(np.array(chosen), FILLER)
    spelt = [_spelt(segments)[index] for index in chosen]
    longest = max(len(whole) for whole, _ in spelt)
    assert rows.shape == (len(chosen), longest)
    assert rows.dtype == np.int64
    for line, marks, (whole, targets) in zip(rows, is_target, spelt, strict=True):
        filler = [FILLER] * (longest - len(whole))
        assert line.tolist() == whole + filler
        context = len(whole) - len(targets)
        expected = [context <= place + 1 < len(whole) for place in range(longest - 1)]
        assert marks.tolist() == expected
    assert is_target.sum() == segments.num_samples_of(np.array(chosen))


@settings(deadline=None, max_examples=50)
@given(
    histories=histories,
    size=st.integers(1, 40),
    bucket=st.sampled_from([20, 50, BUCKET_SAMPLES]),
    seed=st.integers(0, 100),
)
def test_minibatches_hold_every_segment_once_and_about_their_size(
    histories: list[list[int]], size: int, bucket: int, seed: int
) -> None:
    segments = Segments.of(log_of(histories), history_length=6)
    if not len(segments):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.segments.BUCKET_SAMPLES", bucket)
        minibatches = list(segments.minibatches(size, torch.Generator().manual_seed(seed)))
        again = list(segments.minibatches(size, torch.Generator().manual_seed(seed)))
    assert sorted(np.concatenate(minibatches).tolist()) == list(range(len(segments)))
    longest = int((segments.ends - segments.firsts).max())
    for chosen in minibatches:
        assert 0 < segments.num_samples_of(chosen) < 1.5 * size + longest
    # As many as were planned, give or take one a bucket; fewer only where segments are larger.
    buckets = 1 + segments.num_samples // (size * max(1, bucket // size))
    assert len(minibatches) <= max(1, round(segments.num_samples / size)) + buckets
    assert all(np.array_equal(*pair) for pair in zip(minibatches, again, strict=True))


def test_a_large_minibatch_is_as_large_as_asked() -> None:
    segments = Segments.of(log_of([[0] * 11] * 4000), history_length=20)
    minibatches = list(segments.minibatches(10_000, torch.Generator().manual_seed(0)))
    assert [segments.num_samples_of(chosen) for chosen in minibatches] == [10_000] * 4


@settings(deadline=None, max_examples=50)
@given(histories=histories, data=st.data())
def test_seen_rows_reach_back_to_the_first_interaction(
    histories: list[list[int]], data: st.DataObject
) -> None:
    log = log_of(histories)
    segments = Segments.of(log, history_length=3)
    if not len(segments):
        return
    chosen = np.array(data.draw(st.permutations(range(len(segments)))), np.intp)
    _, is_target = segments.arrays(chosen, FILLER)
    segment, place = is_target.nonzero()
    rows, sample = segments.seen(chosen, segment, place)
    pairs = set(zip(rows.tolist(), sample.tolist(), strict=True))
    assert len(pairs) == len(rows)
    expected = set()
    for number, (which, at) in enumerate(zip(segment, place, strict=True)):
        target = segments.starts[chosen[which]] + at + 1
        user = np.searchsorted(log.indptr, target, side="right") - 1
        expected |= {(row, number) for row in log.rows[log.indptr[user] : target].tolist()}
    assert pairs == expected


def test_of_a_long_history_the_newest_rows_are_seen() -> None:
    long = np.random.default_rng(0).integers(0, 900, 450).tolist()
    log = log_of([[1, 2, 3], long, [4, 5]], 900)
    segments = Segments.of(log, history_length=20)
    chosen = np.arange(len(segments))
    segment, place = segments.arrays(chosen, FILLER)[1].nonzero()
    rows, sample = segments.seen(chosen, segment, place)
    expected = set()
    for number, target in enumerate(segments.starts[segment] + place + 1):
        user = np.searchsorted(log.indptr, target, side="right") - 1
        newest = log.rows[log.indptr[user] : target][-HISTORY_CAP:]
        expected |= {(row, number) for row in newest.tolist()}
    assert set(zip(rows.tolist(), sample.tolist(), strict=True)) == expected
    assert len(rows) == len(expected)


def test_minibatches_change_with_the_generator_and_hold_segments_of_similar_length() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 20, 300)
    segments = Segments.of(log_of([[0] * length for length in lengths]), history_length=20)
    generator = torch.Generator().manual_seed(0)
    first, second = (list(segments.minibatches(64, generator)) for _ in range(2))
    assert [chosen.tolist() for chosen in first] != [chosen.tolist() for chosen in second]
    drawn = [int((segments.ends - segments.starts)[chosen[0]]) for chosen in first]
    assert drawn != sorted(drawn)  # nor do short ones come first
    filler = np.mean([(segments.arrays(chosen, FILLER)[0] == FILLER).mean() for chosen in first])
    assert filler == pytest.approx(0, abs=0.1)
