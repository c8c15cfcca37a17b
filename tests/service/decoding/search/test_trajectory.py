"""Trajectories against the reference search, and against the denoiser called a second time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser, TyingDenoiser
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference_search import (
    FAR_APART,
    allowed_rows,
    assert_same_trajectories,
    log_probs_of,
    num_compared,
    reference_decode,
)
from worlds import OTHER_ORDERS, RANKINGS_AND_ORDERS, catalogue_of, catalogues, job_of, jobs, priors

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Order, Ranking, Trajectory
from service.decoding.schedule import Schedule
from service.decoding.search import steps
from service.decoding.search.beam_search import decode

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
seeds = st.integers(0, 2**32 - 1)
# Without a table of pairs, and with one however small the catalogue is.
pair_bytes = st.sampled_from([0, math.inf])
repeat_biases = st.sampled_from([0.0, -3.0, 1.5])
finish_rows = st.sampled_from([0, 3, 10])
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def posting_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranked by rows, a last step reads the posting lists of small catalogues too.

    It then does not look which beams are decided: all are in the call, and the answers are equal.
    """
    monkeypatch.setattr(steps, "FEW_ROWS", 0)


def denoiser_for(catalogue: Catalogue, seed: int, repeat_bias: float = 0.0) -> HashedDenoiser:
    return HashedDenoiser(
        catalogue.num_subspaces, catalogue.num_codes, seed=seed, repeat_bias=repeat_bias
    )


def explained_jobs(catalogue: Catalogue, ranking: Ranking) -> st.SearchStrategy[Job]:
    drawn = jobs(catalogue, filtered=True, may_finish=True)
    return drawn.map(lambda job: replace(job, ranking=ranking, explain=True))


def trajectory_of(answer: Decoded) -> Trajectory:
    assert answer.trajectory is not None
    return answer.trajectory


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    np.testing.assert_array_equal(found.filled, expected.filled)
    np.testing.assert_array_equal(found.survivors, expected.survivors)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.beam_scores, expected.beam_scores, atol=1e-5)


def assert_sound(job: Job, answer: Decoded, catalogue: Catalogue) -> None:
    """What every trajectory must fulfil, whatever the search chose."""
    found, nfe = trajectory_of(answer), answer.nfe
    shape = len(answer.rows), catalogue.num_subspaces
    assert (found.filled.shape, found.filled.dtype) == (shape, np.uint8)
    assert (found.log_probs.shape, found.log_probs.dtype) == (shape, np.float32)
    assert (found.survivors.shape, found.survivors.dtype) == ((shape[0], nfe), np.int32)
    assert (found.beam_scores.shape, found.beam_scores.dtype) == ((shape[0], nfe), np.float32)

    steps = job.schedule.steps
    for filled, log_probs in zip(found.filled, found.log_probs, strict=True):
        last = filled.max()  # less than nfe if the beam was decided before others were
        assert 1 <= last <= nfe
        assert last == nfe or job.ranking == "rows"
        calls = np.bincount(filled, minlength=last + 1)[1:].tolist()
        assert calls[:-1] == list(steps[: last - 1])  # exactly once, and as the schedule says
        assert calls[-1] >= steps[last - 1]  # the positions that are left are settled together
        followed = np.isnan(log_probs)
        assert np.all(filled[followed] == last)
        if job.ranking == "rows" and last < nfe:
            assert np.count_nonzero(~followed) == sum(steps[:last])
        if job.ranking != "rows":
            assert not followed.any()

    assert np.all(np.diff(found.survivors, axis=1) <= 0)
    allowed = allowed_rows(job, catalogue.num_items)
    sids = catalogue.codes[allowed]
    for row, survivors in zip(answer.rows, found.survivors, strict=True):
        assert survivors[-1] == np.count_nonzero((sids == catalogue.codes[row]).all(axis=1)) >= 1
        assert survivors[0] <= len(allowed)
    np.testing.assert_array_equal(found.beam_scores[:, nfe - 1], answer.scores)
    assert np.all(np.diff(found.beam_scores[:, : nfe - 1], axis=1) <= 1e-5)


@pytest.mark.parametrize(("ranking", "orders"), RANKINGS_AND_ORDERS)
@many
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases, pair_bytes_per_item=pair_bytes)
def test_trajectories_are_those_of_the_reference(
    ranking: Ranking,
    orders: Sequence[Order],
    data: st.DataObject,
    seed: int,
    repeat_bias: float,
    pair_bytes_per_item: float,
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues(max_items=60))
    batch = data.draw(st.lists(explained_jobs(catalogue, ranking), min_size=1, max_size=4))
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, repeat_bias)
    expected = [
        reference_decode(job, catalogue, denoiser, ranking=ranking, order=order, prior=prior)
        for job in batch
    ]
    trie = SidTrie(catalogue, pair_bytes_per_item=pair_bytes_per_item)
    batch = [replace(job, order=order) for job in batch]
    answers, _ = decode(batch, trie, denoiser, prior=prior)
    assume(num_compared(answers, expected))
    for job, answer, reference in zip(batch, answers, expected, strict=True):
        if reference.closest_call > FAR_APART:
            assert_same_trajectories(answer, reference)
            if answer.nfe:
                assert_sound(job, answer, catalogue)


@pytest.mark.usefixtures("posting_lists")
@pytest.mark.parametrize("orders", [("confidence",), (*OTHER_ORDERS, "random")])
@pytest.mark.parametrize("ranking", RANKINGS)
@many
@given(data=st.data(), seed=seeds, pair_bytes_per_item=pair_bytes)
def test_the_denoiser_asked_again_tells_the_same(
    ranking: Ranking,
    orders: Sequence[Order],
    data: st.DataObject,
    seed: int,
    pair_bytes_per_item: float,
) -> None:
    """Each item's way, followed alone: before a call, its partial SID has the filled positions.

    The log-probs are then exact, rows that agree are counted, and a path's score is their sum.
    """
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues(max_items=60))
    job = data.draw(explained_jobs(catalogue, ranking))
    denoiser = denoiser_for(catalogue, seed)
    trie = SidTrie(catalogue, pair_bytes_per_item=pair_bytes_per_item)
    [answer], _ = decode([replace(job, order=order)], trie, denoiser)
    assume(answer.nfe)
    assert_sound(job, answer, catalogue)
    found, sids = trajectory_of(answer), catalogue.codes
    allowed = sids[allowed_rows(job, catalogue.num_items)]
    for place, row in enumerate(answer.rows):
        filled, log_probs = found.filled[place], found.log_probs[place]
        for call in range(1, answer.nfe + 1):
            before, now = filled < call, filled == call
            now &= ~np.isnan(log_probs)
            partial_sid = np.where(before, sids[row], catalogue.num_codes)
            if now.any():
                told = log_probs_of(job, catalogue, denoiser, tuple(partial_sid.tolist()))
                for position in np.flatnonzero(now):
                    assert log_probs[position] == np.float32(told[position][sids[row, position]])
            agrees = ((allowed == sids[row]) | (filled > call)).all(axis=1)
            assert found.survivors[place, call - 1] == np.count_nonzero(agrees)
            if ranking != "rows":
                score = log_probs[filled <= call].sum(dtype=np.float64)
                assert found.beam_scores[place, call - 1] == np.float32(score)
        if ranking != "rows":
            assert answer.scores[place] == np.float32(log_probs.sum(dtype=np.float64))


@pytest.mark.usefixtures("posting_lists")
@many
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases, pair_bytes_per_item=pair_bytes)
def test_a_batch_equals_its_jobs_alone_and_explains_those_that_ask(
    data: st.DataObject, seed: int, repeat_bias: float, pair_bytes_per_item: float
) -> None:
    """Whatever rankings its jobs ask for; and answers are the same without an explanation."""
    catalogue = data.draw(catalogues())
    rankings = st.sampled_from(RANKINGS)
    batch = [
        replace(data.draw(explained_jobs(catalogue, data.draw(rankings))), explain=explain)
        for explain in data.draw(st.lists(st.booleans(), min_size=2, max_size=6))
    ]
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, repeat_bias)
    trie = SidTrie(catalogue, pair_bytes_per_item=pair_bytes_per_item)
    answers, _ = decode(batch, trie, denoiser, prior=prior)
    for job, answer in zip(batch, answers, strict=True):
        [alone], _ = decode([replace(job, explain=True)], trie, denoiser, prior=prior)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert answer.scores.tolist() == alone.scores.tolist()
        assert answer.nfe == alone.nfe
        if job.explain:
            assert_same(trajectory_of(answer), trajectory_of(alone))
        else:
            assert answer.trajectory is None


@many
@given(data=st.data(), seed=seeds, pair_bytes_per_item=pair_bytes)
def test_ties_change_nothing(data: st.DataObject, seed: int, pair_bytes_per_item: float) -> None:
    catalogue = data.draw(catalogues(max_items=60))
    job = data.draw(explained_jobs(catalogue, "path"))
    denoiser = TyingDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    expected = reference_decode(job, catalogue, denoiser, ranking="path")
    trie = SidTrie(catalogue, pair_bytes_per_item=pair_bytes_per_item)
    [answer], _ = decode([job], trie, denoiser)
    assert answer.rows.tolist() == expected.rows
    assert_same_trajectories(answer, expected)


@pytest.mark.usefixtures("posting_lists")
@pytest.mark.parametrize("steps", [(1, 5), (1, 2, 3), (1, 4, 1), (1, 1, 4), (1, 1, 1, 1, 2)])
@pytest.mark.parametrize("num_excluded", [0, 254, 3000])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_long_posting_lists_tell_what_copied_rows_tell(
    steps: tuple[int, ...], num_excluded: int, ranking: Ranking
) -> None:
    random = np.random.default_rng(num_excluded)
    codes = random.zipf(1.5, (9_000, 6)) % 11
    codes[1::2, 2:] = codes[::2, 2:]  # SIDs of the same codes at most positions
    catalogue = catalogue_of(codes, num_codes=11)
    common = random.permutation(np.flatnonzero(codes[:, 0] == 1))
    job = job_of(
        schedule=Schedule(steps),
        history=random.integers(0, 9_000, 30).tolist(),
        k=15,
        beam_width=20,
        excluded=[*common[:num_excluded], *common[: num_excluded // 2]],
        ranking=ranking,
    )
    job = replace(job, explain=True)
    denoiser = HashedDenoiser(6, 11, seed=1, repeat_bias=-1.0)
    [answer], _ = decode([job], SidTrie(catalogue, pair_bytes_per_item=math.inf), denoiser)
    # A filter of all rows makes the search copy: the oracle.
    copying = replace(job, allowed=np.arange(9_000, dtype=np.int32))
    [expected], _ = decode([copying], SidTrie(catalogue, pair_bytes_per_item=0), denoiser)
    assert answer.rows.tolist() == expected.rows.tolist()
    assert_sound(job, answer, catalogue)
    assert_same(trajectory_of(answer), trajectory_of(expected))


def test_what_a_decided_beam_never_chose_was_settled_by_the_call_that_decided_it() -> None:
    """Position 0 is filled first; of its four codes all but the last decide everything."""
    codes = [[0, 0, 1], [1, 1, 0], [1, 1, 0], [2, 2, 3], [3, 3, 2], [3, 0, 3]]
    catalogue = catalogue_of(codes, num_codes=4)

    class Fixed(HashedDenoiser):
        def _log_probs(self, hashes: np.ndarray) -> np.ndarray:
            table = np.full((3, 4), -np.log(4))
            table[0, :3] += [0.3, 0.2, 0.1]
            return np.broadcast_to(table, hashes.shape)

    job = replace(job_of(schedule=Schedule((1, 1, 1)), k=6), explain=True)
    [answer], _ = decode([job], SidTrie(catalogue), Fixed(3, 4))
    assert answer.nfe == 2
    found = trajectory_of(answer)
    of_row = {int(row): place for place, row in enumerate(answer.rows)}
    decided, shared, open_ = of_row[0], of_row[1], of_row[4]
    assert found.filled[decided].tolist() == found.filled[shared].tolist() == [1, 1, 1]
    assert np.isnan(found.log_probs[decided]).tolist() == [False, True, True]
    assert found.survivors[decided].tolist() == [1, 1]
    assert found.survivors[shared].tolist() == [2, 2]
    # A decided beam keeps its score; each of its two rows has half of it.
    before, after = found.beam_scores[shared].tolist()
    assert before - after == pytest.approx(math.log(2), abs=1e-6)
    assert sorted(found.filled[open_].tolist()) == [1, 2, 2]
    assert np.isnan(found.log_probs[open_]).sum() == 1
    assert found.survivors[open_].tolist() == [2, 1]


def test_no_rows_have_no_trajectories() -> None:
    catalogue = catalogue_of([[0, 1], [1, 0]], num_codes=2)
    denoiser = HashedDenoiser(2, 2)
    job = replace(job_of(schedule=Schedule((1, 1)), ranking="path"), explain=True)
    questions = iter([False, True])
    batch = [
        replace(job, excluded=np.array([0, 1], np.int32)),
        replace(job, is_cancelled=lambda: next(questions)),
        job,
    ]
    answers, _ = decode(batch, SidTrie(catalogue), denoiser)
    for answer, nfe in zip(answers[:2], (0, 1), strict=True):
        found = trajectory_of(answer)
        assert found.filled.shape == found.log_probs.shape == (0, 2)
        assert found.survivors.shape == found.beam_scores.shape == (0, nfe)
    assert len(trajectory_of(answers[2]).filled) == 2


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("nothing", [np.nan, -np.inf])
def test_what_the_denoiser_rules_out_has_no_trajectory(ranking: Ranking, nothing: float) -> None:
    class Ruling(HashedDenoiser):
        def _log_probs(self, hashes: np.ndarray) -> np.ndarray:
            return np.full(hashes.shape, nothing)

    catalogue = catalogue_of([[0, 0], [0, 1], [1, 0], [1, 1]], num_codes=2)
    job = replace(job_of(schedule=Schedule((1, 1)), ranking=ranking), explain=True)
    [answer], _ = decode([job], SidTrie(catalogue), Ruling(2, 2))
    assert trajectory_of(answer).filled.shape == (len(answer.rows), 2)
