"""The way of every row through a search, against the denoiser, the codes and the trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_search import allowed_rows
from worlds import RANKINGS_AND_ORDERS, boosts, catalogue_of, catalogues, jobs, priors

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Order, Ranking
from service.decoding.network.denoiser import Histories
from service.decoding.schedule import Schedule
from service.decoding.search import Step, bias_parts, decode, followed, log_probs_of
from service.decoding.search.row_biases import RowBiases

MOST_DEAD = 4
seeds = st.integers(0, 2**32 - 1)
many = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def biases_of(
    job: Job, prior: NeighbourPrior | None, repeat_bias: float, num_items: int
) -> NDArray[np.float64]:
    """(num_items,) the sums of the parts."""
    every = [bias_parts(job, prior, repeat_bias, num_items, row) for row in range(num_items)]
    return np.array([one.neighbour_prior + one.repeat_bias + one.boost for one in every])


def log_probs_at(
    denoiser: HashedDenoiser, catalogue: Catalogue, job: Job, partial_sid: NDArray[np.uint16]
) -> NDArray[np.float64]:
    """(num_subspaces, num_codes) what the denoiser says; NaN where the SID is filled."""
    history = Histories.of([job.history], catalogue, denoiser.history_length)
    masked = np.flatnonzero(partial_sid == catalogue.num_codes)
    found = np.full((catalogue.num_subspaces, catalogue.num_codes), np.nan)
    memory = denoiser.encode(history)
    found[masked] = denoiser.denoise(memory, partial_sid[None, None], masked[None, None])[0, 0]
    return found


def assert_as_the_denoiser_says(
    steps: Sequence[Step],
    row: int,
    job: Job,
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    biases: NDArray[np.float64],
) -> None:
    """Each step of a search without remasking, from the partial SID before it."""
    codes, mask = catalogue.codes, catalogue.num_codes
    allowed = np.array(sorted(allowed_rows(job, catalogue.num_items)))
    sid = np.full(catalogue.num_subspaces, mask, np.uint16)
    for step in steps:
        own = allowed[((codes[allowed] == sid) | (sid == mask)).all(axis=1)]
        assert step.survivors_before == len(own)
        said = log_probs_at(denoiser, catalogue, job, sid)
        masked = np.flatnonzero(sid == mask)
        filled = step.filled
        assert set(filled.positions) <= set(masked)
        logits = biases[own] + said[masked][
            np.arange(len(masked))[:, None], codes[own][:, masked].T
        ].sum(axis=0)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        for n, position in enumerate(filled.positions.tolist()):
            code = int(codes[row, position])
            legal = np.unique(codes[own, position])
            if math.isnan(filled.log_probs[n]):  # it follows from the codes that were chosen
                asked = filled.positions[~np.isnan(filled.log_probs)]
                agreeing = (codes[own][:, asked] == codes[row, asked]).all(axis=1)
                assert np.unique(codes[own[agreeing], position]).tolist() == [code]
                assert (filled.settled[n], filled.probabilities[n]) == (True, 1)
                continue
            assert filled.num_codes[n] == len(legal)
            assert filled.settled[n] == (len(legal) == 1)
            assert filled.log_probs[n] == pytest.approx(said[position, code], abs=1e-5)
            if job.ranking == "rows":
                of_legal = np.array([shares[codes[own, position] == one].sum() for one in legal])
            else:
                of_legal = np.exp(said[position, legal])
                of_legal /= of_legal.sum()
            mine = of_legal[legal == code][0]
            assert filled.probabilities[n] == pytest.approx(mine, abs=1e-5)
            assert filled.ranks[n] >= 1 + (of_legal > mine + 1e-6).sum()
            assert filled.ranks[n] <= 1 + (of_legal > mine - 1e-6).sum()
        after = sid.copy()
        after[filled.positions] = codes[row, filled.positions]
        agree = ((codes[allowed] == after) | (after == mask)).all(axis=1)
        if len(filled.positions):
            assert step.survivors == agree.sum()
        sid = after


def assert_sound(steps: Sequence[Step], row: int, answer: Decoded, job: Job) -> None:
    assert all(step.lived for step in steps[:-1]) or job.remask
    assert steps[-1].lived == (row in answer.rows)
    for step in steps:
        assert step.num_kept <= step.num_candidates
        if step.place is not None:
            assert step.lived == (step.place <= step.num_kept)
            assert step.score is not None
            if step.last_kept is not None:
                better = step.score >= step.last_kept - 1e-4
                assert better or not step.lived
        died = step.died
        assert len(died.places) == min(MOST_DEAD, step.num_candidates - step.num_kept)
        assert (died.places > step.num_kept).all()
        assert (np.diff(died.scores) <= 1e-6).all()


def assert_as_the_trajectory(steps: Sequence[Step], place: int, answer: Decoded) -> None:
    """The same search, recorded by other code."""
    trajectory = answer.trajectory
    assert trajectory is not None
    filled = np.zeros(trajectory.filled.shape[1], np.uint8)
    for step in steps:
        filled[step.filled.positions] = step.call
    np.testing.assert_array_equal(filled, trajectory.filled[place])
    np.testing.assert_allclose(
        log_probs_of(steps, len(filled)), trajectory.log_probs[place], atol=1e-5
    )
    calls = [step for step in steps if step.call]
    assert [step.survivors for step in calls] == trajectory.survivors[place].tolist()
    assert steps[-1].score == pytest.approx(float(answer.scores[place]), abs=1e-5)
    assert steps[-1].place == place + 1


@pytest.mark.parametrize(("ranking", "orders"), RANKINGS_AND_ORDERS)
@given(data=st.data(), seed=seeds)
@many
def test_every_row_is_followed(
    ranking: Ranking, orders: tuple[Order, ...], data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    num_items = catalogue.num_items
    job = data.draw(jobs(catalogue, filtered=True, may_finish=True))
    job = replace(job, ranking=ranking, order=data.draw(st.sampled_from(orders)))
    job = replace(job, **data.draw(boosts(catalogue)))
    prior = data.draw(st.none() | priors(catalogue))
    repeat_bias = data.draw(st.sampled_from([0.0, -3.0, 1.5]))
    trie = SidTrie(catalogue, pair_bytes_per_item=data.draw(st.sampled_from([0, math.inf])))
    denoiser = HashedDenoiser(
        catalogue.num_subspaces, catalogue.num_codes, seed=seed, repeat_bias=repeat_bias
    )

    plain = decode([job], trie, denoiser, prior=prior)[0][0]
    explained = replace(job, explain=True, trace=True)
    other = data.draw(jobs(catalogue))  # in the same batch
    answer = decode([other, explained], trie, denoiser, prior=prior)[0][1]
    assert plain.trace == ()
    np.testing.assert_array_equal(answer.rows, plain.rows)
    np.testing.assert_array_equal(answer.scores, plain.scores)

    biases = biases_of(job, prior, repeat_bias, num_items)
    allowed = set(allowed_rows(job, num_items))
    last_places = []
    for row in range(num_items):
        steps = followed(answer.trace, job, trie, row, MOST_DEAD)
        assert bool(steps) == (row in allowed)
        if not steps:
            assert row not in answer.rows
            continue
        assert_sound(steps, row, answer, job)
        assert_as_the_denoiser_says(steps, row, job, catalogue, denoiser, biases)
        if steps[-1].lived:
            place = answer.rows.tolist().index(row)
            assert_as_the_trajectory(steps, place, answer)
        if len(steps) == len(answer.trace):
            last_places.append(steps[-1].place)
    assert sorted(last_places) == list(range(1, len(last_places) + 1))


@pytest.mark.parametrize("ranking", ["rows", "best", "path"])
@given(data=st.data(), seed=seeds)
@many
def test_codes_that_are_masked_again(ranking: Ranking, data: st.DataObject, seed: int) -> None:
    catalogue = data.draw(catalogues().filter(lambda one: one.num_subspaces > 1))
    job = data.draw(jobs(catalogue, filtered=True, may_finish=True))
    remask = data.draw(st.integers(1, catalogue.num_subspaces - 1))
    job = replace(job, ranking=ranking, remask=remask, explain=True, trace=True)
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = HashedDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    trie = SidTrie(catalogue)
    [answer] = decode([job], trie, denoiser, prior=prior)[0]
    [plain] = decode([replace(job, explain=False, trace=False)], trie, denoiser, prior=prior)[0]
    np.testing.assert_array_equal(answer.scores, plain.scores)
    for row in allowed_rows(job, catalogue.num_items):
        steps = followed(answer.trace, job, trie, row, MOST_DEAD)
        last = steps[-1]
        assert (last.is_refill and last.lived) == (row in answer.rows)
        if row not in answer.rows:
            continue
        place = answer.rows.tolist().index(row)
        assert (last.place, last.score) == (place + 1, float(answer.scores[place]))
        assert answer.trajectory is not None
        again = last.filled.positions
        assert len(again) in (0, remask)
        if len(again):
            assert (answer.trajectory.filled[place, again] == last.call).all()
            own = answer.trajectory.log_probs[place, again]
            np.testing.assert_array_equal(own, last.filled.log_probs)
            assert answer.trajectory.survivors[place, -1] == last.survivors


def test_calls_are_counted_while_a_row_is_dead_that_is_found_in_the_end() -> None:
    catalogue = catalogue_of(np.array([[0, 1], [0, 0]], np.uint16), num_codes=2)
    trie, num_revived = SidTrie(catalogue), 0
    job = Job(
        history=np.empty(0, np.int32),
        k=1,
        schedule=Schedule((1, 1)),
        beam_width=1,
        ranking="best",
        remask=1,
        explain=True,
        trace=True,
    )
    for seed in range(100):
        [answer] = decode([job], trie, HashedDenoiser(2, 2, seed=seed))[0]
        [row] = answer.rows.tolist()
        steps = followed(answer.trace, job, trie, row, MOST_DEAD)
        num_revived += not steps[-2].lived
        assert answer.trajectory is not None
        if len(steps[-1].filled.positions):
            assert steps[-1].call == answer.trajectory.filled.max()
    assert num_revived > 0


@given(data=st.data(), seed=seeds)
@many
def test_what_a_row_gains_besides_its_codes(data: st.DataObject, seed: int) -> None:
    catalogue = data.draw(catalogues())
    job = replace(data.draw(jobs(catalogue)), **data.draw(boosts(catalogue)))
    job = replace(job, excluded=np.empty(0, np.int32))
    prior, num_items = data.draw(priors(catalogue)), catalogue.num_items
    biases = RowBiases(num_items)
    biases.fill(job, prior, -3.0)
    np.testing.assert_allclose(biases.values, biases_of(job, prior, -3.0, num_items), atol=1e-5)
    for row in range(num_items):
        own = bias_parts(job, prior, -3.0, num_items, row)
        assert own.shares.shape == job.history.shape
        assert own.shares.sum() == pytest.approx(float(own.neighbour_prior > 0))
        weights = np.zeros(len(job.history))
        for age, item in enumerate(job.history[::-1][: prior.history_length]):
            found = prior.affinities[item][prior.neighbours[item] == row]
            weights[len(weights) - 1 - age] = found.astype(float).sum() * prior.decay**age
        if own.neighbour_prior:
            np.testing.assert_allclose(own.shares, weights / weights.sum(), atol=1e-5)
