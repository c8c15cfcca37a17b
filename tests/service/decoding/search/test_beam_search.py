"""The constrained search against plain references, over random catalogues and random denoisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, pairwise, product
from typing import Any, get_args

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser, TyingDenoiser
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_search import (
    FAR_APART,
    allowed_rows,
    best_rows,
    exhaustive_scores,
    log_sum_exp,
    num_compared,
    reference_biases,
    reference_decode,
)
from worlds import (
    ORDERS_OF_CODES,
    OTHER_ORDERS,
    RANKINGS_AND_ORDERS,
    boosts,
    catalogue_of,
    catalogues,
    filters,
    job_of,
    jobs,
    priors,
)

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Order, Ranking
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
each_ranking = pytest.mark.parametrize("ranking", RANKINGS)
each_order = pytest.mark.parametrize("orders", ORDERS_OF_CODES)
each_ranking_and_order = pytest.mark.parametrize(("ranking", "orders"), RANKINGS_AND_ORDERS)
seeds = st.integers(0, 2**32 - 1)
repeat_biases = st.sampled_from([0.0, -3.0, 1.5])


def denoiser_for(
    catalogue: Catalogue,
    seed: int = 0,
    *,
    sharpness: float = 4.0,
    sees_partial_sid: bool = True,
    repeat_bias: float = 0.0,
) -> HashedDenoiser:
    return HashedDenoiser(
        catalogue.num_subspaces,
        catalogue.num_codes,
        seed=seed,
        sharpness=sharpness,
        sees_partial_sid=sees_partial_sid,
        repeat_bias=repeat_bias,
    )


def decode_one(
    job: Job,
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    *,
    ranking: Ranking = "rows",
    prior: NeighbourPrior | None = None,
    order: Order = "confidence",
) -> Decoded:
    job = replace(job, ranking=ranking, order=order)
    (decoded,), _ = decode([job], SidTrie(catalogue), denoiser, prior=prior)
    return decoded


def same_scores(expected: Decoded, ranking: Ranking) -> object:
    """Equal scores; of rows, but for the order in which SIMD code added up their exponentials."""
    scores = expected.scores.tolist()
    return pytest.approx(scores, rel=1e-6, abs=1e-6) if ranking == "rows" else scores


def ranked_by(ranking: Ranking, batch: Sequence[Job], order: Order = "confidence") -> list[Job]:
    return [replace(job, ranking=ranking, order=order) for job in batch]


@each_ranking_and_order
@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_a_batch_equals_the_reference(
    ranking: Ranking, orders: Sequence[Order], data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    catalogue = data.draw(catalogues())
    batch = data.draw(
        st.lists(jobs(catalogue, filtered=True, may_finish=True), min_size=1, max_size=4)
    )
    batch = [
        replace(
            job,
            ranking=ranking,
            order=data.draw(st.sampled_from(orders)),
            **data.draw(boosts(catalogue)),
        )
        for job in batch
    ]
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, repeat_bias=repeat_bias)
    expected = [
        reference_decode(job, catalogue, denoiser, ranking=ranking, order=job.order, prior=prior)
        for job in batch
    ]
    trie = SidTrie(catalogue, pair_bytes_per_item=data.draw(st.sampled_from([0, math.inf])))
    answers, _ = decode(batch, trie, denoiser, prior=prior)
    assume(num_compared(answers, expected))
    for answer, reference in zip(answers, expected, strict=True):
        if reference.closest_call > FAR_APART:
            assert answer.nfe == (reference.nfe if reference.rows else 0)


@each_order
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_ties_go_to_the_lower_position_then_parent_then_row(
    orders: Sequence[Order], data: st.DataObject, seed: int
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues())
    job = data.draw(jobs(catalogue, filtered=True))
    denoiser = TyingDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    expected = reference_decode(job, catalogue, denoiser, ranking="path", order=order)
    answer = decode_one(job, catalogue, denoiser, ranking="path", order=order)
    assert answer.rows.tolist() == expected.rows
    assert answer.scores.tolist() == expected.scores


@pytest.mark.parametrize(
    ("steps", "beam_width", "expected"),
    [
        ((3,), 1, [0, 1, 2, 3]),  # all rows
        ((1, 2), 1, [0, 1, 2, 3]),  # those of 111 to 100
        ((2, 1), 1, [0, 1, 8, 9]),  # those of 111 and 110
        ((1, 1, 1), 1, [0, 1, 8, 9]),
        ((1, 1, 1), 2, [0, 1, 2, 3]),  # beams 1 and 0, then both children of the first
    ],
)
def test_ties_of_rows_go_to_the_lower_position_then_parent_then_row(
    steps: tuple[int, ...], beam_width: int, expected: list[int]
) -> None:
    """Every SID of three bits, twice, 111 first, all equally probable."""
    codes = [[number >> 2, number >> 1 & 1, number & 1] for number in range(7, -1, -1)]
    catalogue = catalogue_of([*codes, *codes], num_codes=2)
    denoiser = FixedDenoiser(np.full((3, 2), -np.log(2)))
    job = job_of(schedule=Schedule(steps), k=4, beam_width=beam_width)
    answer = decode_one(job, catalogue, denoiser, ranking="rows")
    assert answer.rows.tolist() == expected
    assert answer.scores.tolist() == pytest.approx([-np.log(16)] * 4)


@each_order
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_without_pruning_every_schedule_is_exhaustive_scoring(
    orders: Sequence[Order], data: st.DataObject, seed: int
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues())
    job = replace(data.draw(jobs(catalogue, filtered=True)), beam_width=catalogue.num_items)
    denoiser = denoiser_for(catalogue, seed, sees_partial_sid=False)
    scores = exhaustive_scores(job, catalogue, denoiser)
    answer = decode_one(job, catalogue, denoiser, ranking="path", order=order)
    assert answer.rows.tolist() == best_rows(scores, job)
    assert answer.scores.tolist() == [scores[row] for row in answer.rows]


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_random_positions_are_the_jobs_own(
    ranking: Ranking, data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    batch = data.draw(st.lists(jobs(catalogue, filtered=True), min_size=2, max_size=4))
    batch = ranked_by(ranking, batch, "random")
    trie, denoiser = SidTrie(catalogue), denoiser_for(catalogue, seed)
    answers, _ = decode(batch, trie, denoiser)
    for job, answer in zip(batch, answers, strict=True):
        [alone], _ = decode([job], trie, denoiser)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert answer.scores.tolist() == alone.scores.tolist()


def test_raw_confidence_needs_a_ranking_by_codes_of_every_job() -> None:
    catalogue, denoiser = catalogue_of([[0, 1]], 2), denoiser_for(catalogue_of([[0, 1]], 2), 0)
    by_codes = ranked_by("path", [job_of(schedule=Schedule((1, 1)))], "raw_confidence") * 2
    answers, _ = decode(by_codes, SidTrie(catalogue), denoiser)
    assert [answer.rows.tolist() for answer in answers] == [[0], [0]]
    batch = [*by_codes, *ranked_by("rows", by_codes[:1], "raw_confidence")]
    with pytest.raises(ValueError, match="raw_confidence"):
        decode(batch, SidTrie(catalogue), denoiser)


@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_without_pruning_rows_have_their_share_of_the_catalogue_whatever_the_schedule(
    data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    """A denoiser that does not look at codes already filled learns nothing on the way."""
    catalogue = data.draw(catalogues())
    prior = data.draw(st.none() | priors(catalogue))
    job = data.draw(jobs(catalogue, filtered=True))
    job = replace(job, beam_width=catalogue.num_items, k=catalogue.num_items)
    denoiser = denoiser_for(catalogue, seed, sees_partial_sid=False, repeat_bias=repeat_bias)
    biases = reference_biases(job, catalogue, denoiser, prior)
    allowed = allowed_rows(job, catalogue.num_items)
    assume(allowed)
    scores = np.add(exhaustive_scores(job, catalogue, denoiser), biases)
    expected = scores - log_sum_exp(scores[allowed].tolist())
    answer = decode_one(job, catalogue, denoiser, ranking="rows", prior=prior)
    assert sorted(answer.rows.tolist()) == allowed
    np.testing.assert_allclose(answer.scores, expected[answer.rows], atol=1e-5)


@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_without_pruning_the_probabilities_of_all_allowed_rows_sum_to_one(
    data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    catalogue = data.draw(catalogues())
    prior = data.draw(st.none() | priors(catalogue))
    job = data.draw(jobs(catalogue, filtered=True))
    job = replace(job, beam_width=catalogue.num_items, k=catalogue.num_items + 1)
    denoiser = denoiser_for(catalogue, seed, repeat_bias=repeat_bias)
    answer = decode_one(job, catalogue, denoiser, ranking="rows", prior=prior)
    allowed = len(allowed_rows(job, catalogue.num_items))
    assert len(answer.rows) == allowed
    assert np.exp(answer.scores, dtype=np.float64).sum() == pytest.approx(min(1, allowed), abs=1e-5)


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_a_prior_of_weight_zero_is_no_prior(
    ranking: Ranking, data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    job = data.draw(jobs(catalogue))
    denoiser = denoiser_for(catalogue, seed)
    prior = replace(data.draw(priors(catalogue)), weight=0.0)
    without = decode_one(job, catalogue, denoiser, ranking=ranking)
    answer = decode_one(job, catalogue, denoiser, ranking=ranking, prior=prior)
    assert answer.rows.tolist() == without.rows.tolist()
    assert answer.scores.tolist() == without.scores.tolist()


def test_biases_steer_the_beams_of_rows_and_only_order_what_paths_end_at() -> None:
    """The denoiser prefers code 0 first; the prior prefers row 3, which has code 1."""
    catalogue = catalogue_of([[0, 0], [0, 1], [1, 0], [1, 1]], num_codes=2)
    denoiser = FixedDenoiser(np.log([[0.7, 0.3], [0.6, 0.4]]))
    neighbours = np.full((4, 1), 3, np.int32)
    prior = NeighbourPrior(
        neighbours, np.ones((4, 1), np.float16), history_length=1, decay=1, scale=0.1, weight=2
    )
    job = job_of(schedule=Schedule((1, 1)), history=[0], k=1, beam_width=1)
    assert decode_one(job, catalogue, denoiser, ranking="rows").rows.tolist() == [0]
    assert decode_one(job, catalogue, denoiser, ranking="rows", prior=prior).rows.tolist() == [3]
    assert decode_one(job, catalogue, denoiser, ranking="path", prior=prior).rows.tolist() == [0]
    wide = replace(job, beam_width=2)
    assert decode_one(wide, catalogue, denoiser, ranking="path", prior=prior).rows.tolist() == [3]


def test_items_that_share_a_sid_are_told_apart_by_their_biases() -> None:
    catalogue = catalogue_of([[0], [0], [0]], num_codes=1)
    denoiser = HashedDenoiser(1, 1, repeat_bias=-1.0)
    job = job_of(schedule=Schedule((1,)), history=[0], k=3)
    for ranking in RANKINGS:
        answer = decode_one(job, catalogue, denoiser, ranking=ranking)
        assert answer.rows.tolist() == [1, 2, 0]
        assert answer.scores[0] - answer.scores[2] == pytest.approx(1)


@each_ranking
@pytest.mark.parametrize("steps", [(1,) * 10, (9, 1), (1, 8, 1), (2, 6, 2), (3, 1, 3, 3)])
def test_tuples_of_many_codes_overflow_no_key(steps: tuple[int, ...], ranking: Ranking) -> None:
    """256**8 is 2**64: in a key that overflows, the first of nine codes and the beam vanish."""
    random = np.random.default_rng(0)
    pool = random.integers(0, 256, (10, 3))
    codes = pool[np.arange(10), random.integers(0, 3, (200, 10))]
    catalogue = catalogue_of(codes, num_codes=256)
    denoiser = denoiser_for(catalogue)
    batch = [
        job_of(schedule=Schedule(steps), history=[user], k=20, beam_width=20, excluded=[user])
        for user in range(3)
    ]
    answers, _ = decode(ranked_by(ranking, batch), SidTrie(catalogue), denoiser)
    for job, answer in zip(batch, answers, strict=True):
        expected = reference_decode(job, catalogue, denoiser, ranking=ranking)
        assert answer.rows.tolist() == expected.rows
        if ranking == "path":
            assert answer.scores.tolist() == expected.scores
        assert answer.scores.tolist() == pytest.approx(expected.scores, abs=1e-5)


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_one_step_is_exhaustive_scoring_whatever_the_beam_width(
    ranking: Ranking, data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    schedule = Schedule((catalogue.num_subspaces,))
    job = data.draw(jobs(catalogue, schedule=schedule, filtered=True))
    denoiser = denoiser_for(catalogue, seed)
    answer = decode_one(job, catalogue, denoiser, ranking=ranking)
    assert answer.rows.tolist() == best_rows(exhaustive_scores(job, catalogue, denoiser), job)


@pytest.mark.parametrize("orders", [("confidence",), (*OTHER_ORDERS, "random")])
@each_ranking
@settings(deadline=None)
@given(
    data=st.data(),
    seed=seeds,
    sharpness=st.sampled_from([0.0, 4.0, 300.0]),
    repeat_bias=repeat_biases,
)
def test_a_random_denoiser_only_visits_partial_sids_of_allowed_items(
    ranking: Ranking,
    orders: Sequence[Order],
    data: st.DataObject,
    seed: int,
    sharpness: float,
    repeat_bias: float,
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues())
    job = data.draw(jobs(catalogue, filtered=True))
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, sharpness=sharpness, repeat_bias=repeat_bias)
    answer = decode_one(job, catalogue, denoiser, ranking=ranking, prior=prior, order=order)
    allowed = set(allowed_rows(job, catalogue.num_items))

    assert len(set(answer.rows.tolist())) == len(answer.rows)
    assert set(answer.rows.tolist()) <= allowed
    assert len(answer.rows) <= job.k
    if job.beam_width >= job.k:
        assert len(answer.rows) == min(job.k, len(allowed))
    assert answer.rows.dtype == np.int32
    assert answer.scores.dtype == np.float32
    assert np.all(np.isfinite(answer.scores))
    assert np.all(np.diff(answer.scores) <= 0)

    sids = catalogue.codes[sorted(allowed)]
    for (partial_sids,) in denoiser.calls:
        agrees = (partial_sids[:, None] == sids) | (partial_sids[:, None] == catalogue.num_codes)
        assert np.all(agrees.all(axis=-1).any(axis=-1))


@pytest.mark.parametrize("orders", [("confidence",), (*OTHER_ORDERS, "random")])
@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_no_two_live_beams_are_equal(
    ranking: Ranking, orders: Sequence[Order], data: st.DataObject, seed: int
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues())
    job = data.draw(jobs(catalogue))
    denoiser = denoiser_for(catalogue, seed)
    decode_one(job, catalogue, denoiser, ranking=ranking, order=order)
    for (partial_sids,) in denoiser.calls:
        assert len(np.unique(partial_sids, axis=0)) == len(partial_sids) <= job.beam_width


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_excluding_rows_equals_deleting_them(
    ranking: Ranking, data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    catalogue = data.draw(catalogues())
    job = data.draw(jobs(catalogue))
    kept = np.setdiff1d(np.arange(catalogue.num_items), job.excluded)
    assume(len(kept))
    smaller = catalogue_of(catalogue.codes[kept], catalogue.num_codes, catalogue.vectors[kept])
    history = data.draw(st.lists(st.integers(0, len(kept) - 1), max_size=5))

    denoiser = denoiser_for(catalogue, seed, repeat_bias=repeat_bias)
    excluding = replace(job, history=kept[history].astype(np.int32))
    deleting = replace(
        job, history=np.array(history, np.int32), excluded=np.empty(0, dtype=np.int32)
    )
    answer = decode_one(excluding, catalogue, denoiser, ranking=ranking)
    expected = decode_one(deleting, smaller, denoiser, ranking=ranking)
    assert answer.rows.tolist() == kept[expected.rows].tolist()
    assert answer.scores.tolist() == same_scores(expected, ranking)


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_a_filter_equals_deleting_the_other_rows(
    ranking: Ranking, data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    catalogue = data.draw(catalogues())
    allowed = data.draw(filters(catalogue))
    assume(allowed)
    smaller = catalogue_of(
        catalogue.codes[allowed], catalogue.num_codes, catalogue.vectors[allowed]
    )
    deleting = data.draw(jobs(smaller))
    denoiser = denoiser_for(catalogue, seed, repeat_bias=repeat_bias)
    expected = reference_decode(deleting, smaller, denoiser, ranking=ranking)
    assume(expected.closest_call > 1e-4)

    rows = np.array(allowed, np.int32)
    others = data.draw(st.lists(st.integers(0, catalogue.num_items - 1)))
    excluded = [*rows[deleting.excluded], *(set(others) - set(allowed))]  # some not allowed anyway
    filtering = replace(
        deleting,
        history=rows[deleting.history],
        excluded=np.array(excluded, np.int32),
        allowed=rows,
    )
    answer = decode_one(filtering, catalogue, denoiser, ranking=ranking)
    assert answer.rows.tolist() == [allowed[row] for row in expected.rows]
    assert answer.scores.tolist() == pytest.approx(expected.scores, abs=1e-5)


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_a_filter_of_all_rows_is_no_filter(
    ranking: Ranking, data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    job = data.draw(jobs(catalogue))
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, repeat_bias=-1.0)
    expected = decode_one(job, catalogue, denoiser, ranking=ranking, prior=prior)
    job = replace(job, allowed=np.arange(catalogue.num_items, dtype=np.int32))
    answer = decode_one(job, catalogue, denoiser, ranking=ranking, prior=prior)
    assert answer.rows.tolist() == expected.rows.tolist()
    assert answer.scores.tolist() == same_scores(expected, ranking)


@each_ranking
@settings(deadline=None, max_examples=100)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_a_filter_that_comes_again_changes_no_bit(
    ranking: Ranking, data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    """What is kept of a filter, and put back after each job, against filters that are used once."""
    catalogue = data.draw(catalogues())
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, repeat_bias=repeat_bias)
    kept = [
        np.array(rows, np.int32) for rows in data.draw(st.lists(filters(catalogue), min_size=1))
    ]
    for rows in kept:
        rows.flags.writeable = False
    drawn = data.draw(st.lists(jobs(catalogue, may_finish=True), min_size=1, max_size=5))
    places = st.none() | st.integers(0, len(kept) - 1)
    asked = [
        (replace(job, ranking=ranking, **data.draw(boosts(catalogue))), data.draw(places))
        for job in drawn
    ]
    again = SidTrie(catalogue)
    for _ in range(2):
        batch = [
            job if place is None else replace(job, allowed=kept[place]) for job, place in asked
        ]
        once = [
            job if job.allowed is None else replace(job, allowed=job.allowed.copy())
            for job in batch
        ]
        found, _ = decode(batch, again, denoiser, prior=prior)
        expected, _ = decode(once, SidTrie(catalogue), denoiser, prior=prior)
        for one, other in zip(found, expected, strict=True):
            assert one.rows.tolist() == other.rows.tolist()
            assert one.scores.tolist() == other.scores.tolist()
            assert one.survivors == other.survivors


@each_ranking
@pytest.mark.parametrize("steps", [(4,), (1, 3), (1, 1, 2)])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_threads_may_share_a_filter(ranking: Ranking, steps: tuple[int, ...], share: float) -> None:
    random = np.random.default_rng(0)
    catalogue = catalogue_of(random.integers(0, 30, (3000, 4)), num_codes=30)
    allowed = np.flatnonzero(random.random(3000) < share).astype(np.int32)
    histories = random.integers(0, 3000, (40, 5)).tolist()
    batch = [
        replace(job, allowed=allowed.copy())
        for job in (
            job_of(schedule=Schedule(steps), history=one, excluded=one, ranking=ranking)
            for one in histories
        )
    ]
    denoiser = denoiser_for(catalogue, repeat_bias=-1.0)
    expected, _ = decode(batch, SidTrie(catalogue), denoiser)
    allowed.flags.writeable = False
    trie = SidTrie(catalogue)

    def found(job: Job) -> Decoded:
        [answer], _ = decode([replace(job, allowed=allowed)], trie, denoiser)
        return answer

    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(found, batch), expected, strict=True):
            assert one.rows.tolist() == other.rows.tolist()
            assert one.scores.tolist() == pytest.approx(other.scores.tolist(), abs=1e-5)
    assert len(trie.filters) == 1
    assert len(trie.filters.of(allowed).scratch) <= 1


def test_a_filter_leaves_no_trace_for_the_next_job_of_the_batch() -> None:
    catalogue = catalogue_of(np.random.default_rng(0).integers(0, 9, (40, 3)), num_codes=9)
    denoiser = denoiser_for(catalogue, repeat_bias=-1.0)
    job = job_of(schedule=Schedule((1, 2)), history=[1, 2], k=40, beam_width=40, excluded=[1, 5])
    batch = [job, replace(job, allowed=np.arange(3, 40, dtype=np.int32)), job]
    (first, filtered, last), _ = decode(batch, SidTrie(catalogue), denoiser)
    assert set(filtered.rows.tolist()) == set(range(3, 40)) - {5}
    assert first.rows.tolist() == last.rows.tolist()
    assert first.scores.tolist() == last.scores.tolist()
    assert len(last.rows) == 38


@each_ranking
@pytest.mark.parametrize("steps", [(8,), (1, 1, 2, 4), (2, 6)])
def test_a_filter_that_leaves_one_row_in_a_thousand_still_fills_the_answer(
    ranking: Ranking, steps: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    catalogue = catalogue_of(random.integers(0, 64, (20_000, 8)), num_codes=64)
    allowed = np.sort(random.choice(20_000, 20, replace=False)).tolist()
    job = job_of(schedule=Schedule(steps), history=[3], excluded=allowed[:4], allowed=allowed)
    answer = decode_one(job, catalogue, denoiser_for(catalogue), ranking=ranking)
    assert len(answer.rows) == job.k
    assert set(answer.rows.tolist()) <= set(allowed[4:])
    more = replace(job, k=16, beam_width=16)
    more = decode_one(more, catalogue, denoiser_for(catalogue), ranking=ranking)
    assert sorted(more.rows.tolist()) == allowed[4:]
    at_once = replace(job, finish_rows=16)
    at_once = decode_one(at_once, catalogue, denoiser_for(catalogue), ranking=ranking)
    assert (len(at_once.rows), at_once.nfe) == (job.k, 1)


@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_a_batch_equals_its_jobs_alone(data: st.DataObject, seed: int, repeat_bias: float) -> None:
    """Whatever rankings its jobs ask for, and however few rows end their searches."""
    catalogue = data.draw(catalogues())
    rankings, finish_rows = st.sampled_from(get_args(Ranking)), st.sampled_from([0, 3, 10])
    batch = [
        replace(job, ranking=data.draw(rankings), finish_rows=data.draw(finish_rows))
        for job in data.draw(st.lists(jobs(catalogue, filtered=True), min_size=2, max_size=6))
    ]
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = denoiser_for(catalogue, seed, repeat_bias=repeat_bias)
    answers, _ = decode(batch, SidTrie(catalogue), denoiser, prior=prior)
    for job, answer in zip(batch, answers, strict=True):
        alone = decode_one(job, catalogue, denoiser, ranking=job.ranking, prior=prior)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert answer.scores.tolist() == alone.scores.tolist()
        assert answer.nfe == alone.nfe


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_a_cancelled_job_leaves_its_neighbours_alone(
    ranking: Ranking, data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    prior = data.draw(st.none() | priors(catalogue))
    schedule = Schedule((1,) * catalogue.num_subspaces)
    batch = data.draw(
        st.lists(jobs(catalogue, schedule=schedule), min_size=1, max_size=4).map(
            lambda drawn: [replace(job, excluded=job.excluded[:0], finish_rows=0) for job in drawn]
        )
    )
    index = data.draw(st.integers(0, len(batch) - 1))
    questions = count()
    batch = ranked_by(ranking, batch)
    denoiser = denoiser_for(catalogue, seed, repeat_bias=-1.0)
    expected, _ = decode(batch, SidTrie(catalogue), denoiser, prior=prior)
    steps_done = data.draw(st.integers(0, expected[index].nfe - 1))
    cancelled = replace(batch[index], is_cancelled=lambda: next(questions) >= steps_done)
    answers, _ = decode(
        [*batch[:index], cancelled, *batch[index + 1 :]],
        SidTrie(catalogue),
        denoiser,
        prior=prior,
    )
    assert answers[index].cancelled
    assert answers[index].rows.size == answers[index].scores.size == 0
    assert answers[index].nfe == steps_done
    for number, (answer, untouched) in enumerate(zip(answers, expected, strict=True)):
        if number != index:
            assert not answer.cancelled
            assert answer.rows.tolist() == untouched.rows.tolist()


def test_nfe_counts_the_calls_of_the_denoiser() -> None:
    catalogue = catalogue_of([[0, 1, 2], [2, 1, 0], [1, 1, 1]], num_codes=3)
    for steps in [(3,), (1, 2), (2, 1), (1, 1, 1)]:
        denoiser = denoiser_for(catalogue)
        answer = decode_one(job_of(schedule=Schedule(steps)), catalogue, denoiser, ranking="path")
        assert answer.nfe == len(denoiser.calls) == len(steps)


def test_ranked_by_rows_no_call_is_made_for_beams_that_are_one_sid() -> None:
    """Position 0 is filled first; of its four codes all but the last decide everything."""
    codes = [[0, 0, 1], [1, 1, 0], [1, 1, 0], [2, 2, 3], [3, 3, 2], [3, 0, 3]]
    catalogue = catalogue_of(codes, num_codes=4)
    log_probs = np.full((3, 4), -np.log(4))
    log_probs[0, :3] += [0.3, 0.2, 0.1]
    denoiser = FixedDenoiser(log_probs)
    job = job_of(schedule=Schedule((1, 1, 1)), k=6)
    answer = decode_one(job, catalogue, denoiser, ranking="rows")
    asked = [partial_sids[0].tolist() for partial_sids in denoiser.calls]
    assert asked == [[[4, 4, 4]], [[3, 4, 4]]]  # then nothing is open
    assert answer.nfe == 2
    [whole], _ = decode([replace(job, schedule=Schedule((3,)))], SidTrie(catalogue), denoiser)
    assert answer.rows.tolist() == whole.rows.tolist()
    assert answer.scores.tolist() == pytest.approx(whole.scores.tolist())
    single = replace(job, beam_width=1)
    answer = decode_one(single, catalogue, denoiser, ranking="rows")
    assert (answer.nfe, answer.rows.tolist()) == (1, [1, 2])  # two items share the best SID


def test_legal_confidence_ignores_codes_that_no_item_has() -> None:
    """Code 2 of position 0 is certain but illegal: only raw confidence fills position 0 first."""
    catalogue = catalogue_of([[0, 0], [1, 1]], num_codes=3)
    table = np.log([[0.10, 0.10, 0.80], [0.35, 0.60, 0.05]])
    job = job_of(schedule=Schedule((1, 1)))
    filled_first = {}
    for order in ("confidence", "raw_confidence"):
        denoiser = FixedDenoiser(table)
        decode_one(job, catalogue, denoiser, ranking="path", order=order)
        masked = denoiser.calls[1][0] == catalogue.num_codes
        filled_first[order] = {int(position) for position in np.argmin(masked, axis=-1)}
    assert filled_first == {"confidence": {1}, "raw_confidence": {0}}


def test_a_forced_position_is_filled_last_unless_confidence_is_raw() -> None:
    """All items share code 0 at position 0, so the denoiser learns nothing from it."""
    catalogue = catalogue_of([[0, 0], [0, 1]], num_codes=2)
    table = np.log([[0.90, 0.10], [0.45, 0.55]])
    job = job_of(schedule=Schedule((1, 1)))
    filled_first = {}
    for order in ("confidence", "raw_confidence"):
        denoiser = FixedDenoiser(table)
        decode_one(job, catalogue, denoiser, ranking="path", order=order)
        masked = denoiser.calls[1][0] == catalogue.num_codes
        filled_first[order] = {int(position) for position in np.argmin(masked, axis=-1)}
    assert filled_first == {"confidence": {1}, "raw_confidence": {0}}


# Three codes at each of four positions; every SID has an item, so legal codes are all codes.
EVERY_SID = list(product(range(3), repeat=4))
TABLE = [
    [0.40, 0.40, 0.20],  # the most even: no margin, the highest entropy
    [0.55, 0.44, 0.01],  # two codes are left: the lowest entropy
    [0.58, 0.22, 0.20],  # the largest margin
    [0.60, 0.39, 0.01],  # the highest probability
]
POSITIONS = {
    "confidence": [3, 2, 1, 0],
    "entropy": [3, 1, 2, 0],
    "margin": [2, 3, 1, 0],
    "left_to_right": [0, 1, 2, 3],
    "raw_confidence": [3, 2, 1, 0],
}
BY_TWO = {order: [{*of[:2]}, {*of[2:]}] for order, of in POSITIONS.items()}


def positions_filled(denoiser: HashedDenoiser, answer: Decoded) -> list[set[int]]:
    """The positions that each call filled; all beams filled the same."""
    masked = [calls[0] == denoiser.num_codes for calls in denoiser.calls]
    masked.append(np.zeros_like(masked[-1]))
    assert answer.nfe == len(denoiser.calls)
    assert all((one == one[0]).all() for one in masked)
    return [set(np.flatnonzero(b[0] & ~a[0]).tolist()) for b, a in pairwise(masked)]


@pytest.mark.parametrize(
    ("ranking", "order"),
    [one for one in product(RANKINGS, POSITIONS) if one != ("rows", "raw_confidence")],
)
def test_each_order_fills_positions_in_its_own_order(ranking: Ranking, order: Order) -> None:
    """The four positions are independent, so a code has the same share of rows as of codes."""
    catalogue = catalogue_of(EVERY_SID, num_codes=3)
    entropies = [-sum(p * math.log(p) for p in row) for row in TABLE]
    assert np.argsort(entropies).tolist() == POSITIONS["entropy"]
    margins = [row[0] - row[1] for row in TABLE]
    assert np.argsort(margins)[::-1].tolist() == POSITIONS["margin"]
    for steps, expected in (
        ((1, 1, 1, 1), [{position} for position in POSITIONS[order]]),
        ((2, 2), BY_TWO[order]),
    ):
        denoiser = FixedDenoiser(np.log(TABLE))
        job = job_of(schedule=Schedule(steps), beam_width=4)
        answer = decode_one(job, catalogue, denoiser, ranking=ranking, order=order)
        assert positions_filled(denoiser, answer) == expected


class NextCodeDenoiser(HashedDenoiser):
    """Knows the code of a beam's first masked position, and nothing of the others."""

    def denoise(self, *inputs: Any) -> NDArray[np.float32]:
        log_probs = super().denoise(*inputs)
        log_probs[:, :, 1:] = np.nan
        return log_probs


@settings(deadline=None)
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_from_left_to_right_by_path_only_the_next_code_is_read(
    data: st.DataObject, seed: int, repeat_bias: float
) -> None:
    """What a bundle with an autoregressive network relies on."""
    catalogue = data.draw(catalogues())
    schedule = Schedule((1,) * catalogue.num_subspaces)
    drawn = data.draw(jobs(catalogue, schedule=schedule, filtered=True))
    job = replace(drawn, ranking="path", order="left_to_right", explain=True)
    prior = data.draw(st.none() | priors(catalogue))
    trie = SidTrie(catalogue, pair_bytes_per_item=data.draw(st.sampled_from([0, math.inf])))
    shape = catalogue.num_subspaces, catalogue.num_codes
    [found], [expected] = (
        decode([job], trie, kind(*shape, seed=seed, repeat_bias=repeat_bias), prior=prior)[0]
        for kind in (NextCodeDenoiser, HashedDenoiser)
    )
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert np.isfinite(found.scores).all()
    assert found.trajectory is not None
    assert np.isfinite(found.trajectory.log_probs).all()


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("pair_bytes_per_item", [0, math.inf])
def test_forced_positions_are_last_but_from_left_to_right(
    ranking: Ranking, pair_bytes_per_item: float
) -> None:
    """All items have one code at position 0; position 1 forces position 2 for beam 0."""
    catalogue = catalogue_of([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], 2)
    table = np.log([[0.99, 0.01], [0.9, 0.1], [0.6, 0.4], [0.55, 0.45]])
    trie = SidTrie(catalogue, pair_bytes_per_item=pair_bytes_per_item)
    filled: dict[Order, list[list[int]]] = {}
    for order in OTHER_ORDERS:
        denoiser = FixedDenoiser(table)
        job = job_of(schedule=Schedule((1,) * 4), k=1, beam_width=1, ranking=ranking, order=order)
        [answer], _ = decode([replace(job, explain=True)], trie, denoiser)
        assert answer.rows.tolist() == [0]
        assert answer.trajectory is not None
        filled[order] = answer.trajectory.filled.tolist()
    # By rows, position 2 is surer than 1, and after the third call one item is left: it is decided.
    by_certainty = [[3, 2, 1, 3]] if ranking == "rows" else [[3, 1, 4, 2]]
    assert filled["entropy"] == filled["margin"] == by_certainty
    assert filled["left_to_right"] == [[1, 2, 3, 4]]


def test_rows_are_sure_of_the_position_where_one_code_has_most_of_their_probability() -> None:
    """Three of four rows have code 0 at position 1, whatever the log-probs of each code are.

    Ranked by rows, only the beams that are not decided are in the next call.
    """
    catalogue = catalogue_of([[0, 0], [1, 0], [2, 0], [3, 1]], num_codes=4)
    table = np.log([[0.40, 0.20, 0.20, 0.20], [0.25, 0.25, 0.25, 0.25]])
    job = job_of(schedule=Schedule((1, 1)))
    filled_first = {}
    for ranking in RANKINGS:
        denoiser = FixedDenoiser(table)
        decode_one(job, catalogue, denoiser, ranking=ranking)
        masked = denoiser.calls[1][0] == catalogue.num_codes
        filled_first[ranking] = {int(position) for position in np.argmin(masked, axis=-1)}
    assert filled_first == {"rows": {1}, "best": {1}, "path": {1}}
    denoiser = FixedDenoiser(np.log([[0.70, 0.10, 0.10, 0.10], [0.45, 0.55, 0.01, 0.01]]))
    decode_one(job, catalogue, denoiser, ranking="path")
    assert np.argmin(denoiser.calls[1][0] == catalogue.num_codes, axis=-1).tolist() == [0] * 4
    denoiser.calls.clear()
    decode_one(job, catalogue, denoiser, ranking="rows")
    assert np.argmin(denoiser.calls[1][0] == catalogue.num_codes, axis=-1).tolist() == [1]


def test_a_position_all_rows_agree_at_is_filled_last() -> None:
    catalogue = catalogue_of([[0, 0], [0, 1]], num_codes=2)
    denoiser = FixedDenoiser(np.log([[0.90, 0.10], [0.45, 0.55]]))
    decode_one(job_of(schedule=Schedule((1, 1))), catalogue, denoiser, ranking="best")
    assert denoiser.calls[1][0].tolist() == [[2, 1], [2, 0]]
    catalogue = catalogue_of([[0, 0, 0], [0, 1, 0], [0, 1, 1]], num_codes=2)
    denoiser = FixedDenoiser(np.log([[0.90, 0.10], [0.45, 0.55], [0.6, 0.4]]))
    decode_one(job_of(schedule=Schedule((1, 1, 1))), catalogue, denoiser, ranking="rows")
    assert denoiser.calls[1][0].tolist() == [[2, 2, 0]]


@each_ranking
def test_legal_codes_the_denoiser_thinks_impossible_are_still_ranked(ranking: Ranking) -> None:
    """exp() of every legal log-prob underflows; the order of the legal items must survive."""
    catalogue = catalogue_of([[0, 1], [1, 0], [1, 1]], num_codes=3)
    table = np.array([[-500.0, -400.0, 0.0], [-700.0, -600.0, 0.0]])
    for steps in [(1, 1), (2,)]:
        job = job_of(schedule=Schedule(steps))
        answer = decode_one(job, catalogue, FixedDenoiser(table), ranking=ranking)
        assert answer.rows.tolist() == [2, 0, 1]
        expected = [-1000.0, -1100.0, -1100.0]
        if ranking == "rows":
            expected = [0.0, -100.0, -100.0]
        assert answer.scores.tolist() == expected


@each_ranking
@pytest.mark.parametrize("steps", [(1, 1), (2,)])
def test_items_far_less_probable_than_the_best_are_still_found(
    ranking: Ranking, steps: tuple[int, ...]
) -> None:
    """exp() of the difference underflows; a request for three items still gets three."""
    catalogue = catalogue_of([[0, 0], [1, 1], [2, 2]], num_codes=3)
    table = np.array([[-500.0, 0.0, -900.0], [-500.0, 0.0, -600.0]])
    job = job_of(schedule=Schedule(steps), k=3, beam_width=3)
    answer = decode_one(job, catalogue, FixedDenoiser(table), ranking=ranking)
    assert answer.rows.tolist() == [1, 0, 2]
    assert answer.scores.tolist() == [0.0, -1000.0, -1500.0]


def test_only_the_newest_items_of_a_long_history_count_and_their_order_does() -> None:
    catalogue = catalogue_of(np.random.default_rng(0).integers(0, 9, (40, 3)), num_codes=9)
    denoiser = denoiser_for(catalogue)
    schedule = Schedule((1, 2))

    def scores_after(*history: int) -> list[float]:
        job = job_of(schedule=schedule, history=history)
        return decode_one(job, catalogue, denoiser).scores.tolist()

    assert scores_after(9, 8, 1, 2, 3, 4, 5) == scores_after(1, 2, 3, 4, 5)
    assert scores_after(1, 2, 3, 4, 5) != scores_after(5, 4, 3, 2, 1)
    assert scores_after() != scores_after(1)


def test_nothing_is_denoised_when_every_item_is_excluded() -> None:
    catalogue = catalogue_of([[0, 1], [1, 0]], num_codes=2)
    denoiser = denoiser_for(catalogue)
    answer = decode_one(job_of(schedule=Schedule((1, 1)), excluded=[1, 0, 1]), catalogue, denoiser)
    assert answer.rows.size == answer.scores.size == answer.nfe == len(denoiser.calls) == 0
    assert not answer.cancelled


@pytest.mark.parametrize(("allowed", "excluded"), [([], []), ([], [0]), ([1, 2], [2, 0, 1, 2])])
def test_nothing_is_denoised_when_a_filter_leaves_no_row(
    allowed: list[int], excluded: list[int]
) -> None:
    catalogue = catalogue_of([[0, 1], [1, 0], [1, 1]], num_codes=2)
    denoiser = denoiser_for(catalogue)
    job = job_of(schedule=Schedule((1, 1)), excluded=excluded, allowed=allowed)
    answer = decode_one(job, catalogue, denoiser)
    assert answer.rows.size == answer.scores.size == answer.nfe == len(denoiser.calls) == 0
    assert not answer.cancelled


def test_an_empty_batch() -> None:
    catalogue = catalogue_of([[0, 1]], num_codes=2)
    assert decode([], SidTrie(catalogue), denoiser_for(catalogue))[0] == []


@pytest.mark.parametrize("steps", [(1,), (1, 1, 1)])
def test_a_schedule_of_another_length_is_refused(steps: tuple[int, ...]) -> None:
    catalogue = catalogue_of([[0, 1]], num_codes=2)
    with pytest.raises(ValueError, match="schedule"):
        decode_one(job_of(schedule=Schedule(steps)), catalogue, denoiser_for(catalogue))


class FixedDenoiser(HashedDenoiser):
    """The same log-probs at every call, from a (num_subspaces, num_codes) table."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__(*table.shape)
        self.table = table

    def _log_probs(self, hashes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.table, hashes.shape)


@each_ranking
def test_few_survivors_end_the_search(ranking: Ranking) -> None:
    """Codes of position 0 split 8 rows in two; with 4 rows left their scores are exact already."""
    codes = [[number >> 2, number >> 1 & 1, number & 1] for number in range(8)]
    catalogue = catalogue_of(codes, num_codes=2)
    log_probs = np.log([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
    job = job_of(schedule=Schedule((1, 1, 1)), k=4, beam_width=1)
    full = decode_one(job, catalogue, FixedDenoiser(log_probs), ranking=ranking)
    assert (full.nfe, len(full.rows)) == (3, 2)  # the third call scores the survivors of two steps
    for finish_rows, nfe in ((3, 3), (4, 2), (7, 2), (8, 1)):
        asked = replace(job, finish_rows=finish_rows)
        answer = decode_one(asked, catalogue, FixedDenoiser(log_probs), ranking=ranking)
        assert answer.nfe == nfe
        assert answer.survivors == {3: 2, 2: 4, 1: 8}[nfe]
        if nfe < 3:
            assert answer.rows.tolist() == [0, 2, 1, 3]
            assert np.exp(answer.scores) == pytest.approx([0.378, 0.252, 0.162, 0.108], rel=1e-5)


def test_a_beam_is_kept_for_its_best_completion_or_its_rows_or_its_own_sake() -> None:
    """Code 0 is likelier at position 0 and has the likelier rows, code 1 the likeliest row."""
    catalogue = catalogue_of([[0, 0], [0, 1], [1, 2]], num_codes=3)
    denoiser = FixedDenoiser(np.log([[0.6, 0.4, 1e-9], [0.3, 0.2, 0.5]]))
    job = job_of(schedule=Schedule((1, 1)), k=1, beam_width=1)
    found = {
        ranking: decode_one(job, catalogue, denoiser, ranking=ranking).rows.tolist()
        for ranking in RANKINGS
    }
    assert found == {"path": [0], "rows": [0], "best": [2]}


@each_ranking
@pytest.mark.parametrize("steps", [(1, 1), (2,)])
def test_items_that_the_denoiser_rules_out_are_left_out(
    ranking: Ranking, steps: tuple[int, ...]
) -> None:
    """A log-probability of -inf is no number to share out, and nan none at all."""
    catalogue = catalogue_of([[0, 0], [0, 1], [1, 0], [1, 1]], num_codes=2)
    job = job_of(schedule=Schedule(steps), k=4)
    table = np.array([[-0.1, -np.inf], [-0.5, -1.0]])
    answer = decode_one(job, catalogue, FixedDenoiser(table), ranking=ranking)
    assert answer.rows.tolist() == [0, 1]
    assert np.isfinite(answer.scores).all()
    for nothing in (np.nan, -np.inf):
        impossible = FixedDenoiser(np.full((2, 2), nothing))
        assert not np.isfinite(decode_one(job, catalogue, impossible, ranking=ranking).scores).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"history": [4]},
        {"history": [-1]},
        {"excluded": [4]},
        {"allowed": [0, 4]},
        {"allowed": [1, 1]},
        {"allowed": [2, 1]},
        {"beam_width": 0},
    ],
)
def test_rows_that_do_not_exist_are_refused(wrong: dict[str, Any]) -> None:
    catalogue = catalogue_of([[0], [0], [1], [1]], num_codes=2)
    with pytest.raises(ValueError, match="a job's"):
        decode_one(job_of(schedule=Schedule((1,)), **wrong), catalogue, denoiser_for(catalogue))


class ShortDenoiser(HashedDenoiser):
    """Forgets the last code."""

    def denoise(self, *asked: Any) -> np.ndarray:
        return super().denoise(*asked)[..., :-1]


def test_log_probs_of_another_shape_are_refused() -> None:
    catalogue = catalogue_of([[0], [1]], num_codes=2)
    with pytest.raises(ValueError, match="shape"):
        decode_one(job_of(schedule=Schedule((1,))), catalogue, ShortDenoiser(1, 2))
