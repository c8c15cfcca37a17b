"""MDGR's own search: its merging against the whole product, its result against two references."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser, TyingDenoiser
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_search import reference_unconstrained
from worlds import OTHER_ORDERS, catalogue_of, catalogues, job_of, jobs, schedules

from service.decoding.catalogue.trie import SidTrie
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode
from service.decoding.search.unconstrained import SidIndex, best_tuples, decode_unconstrained

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(data=st.data())
def test_best_tuples_are_the_best_of_the_whole_product(data: st.DataObject) -> None:
    """Whole numbers in a small range, so that ties are frequent and sums exact."""
    shape = tuple(data.draw(st.integers(1, most)) for most in (2, 3, 4, 5))
    elements = st.integers(-6, 0).map(float)
    log_probs = data.draw(arrays(np.float32, shape, elements=elements))
    num_best = data.draw(st.integers(1, 40))
    tuples, scores = best_tuples(log_probs, num_best)
    *_, num_positions, num_codes = shape
    everything = list(product(range(num_codes), repeat=num_positions))
    for at in np.ndindex(*shape[:2]):
        sums = [sum(log_probs[at][range(num_positions), codes]) for codes in everything]
        assert scores[at].tolist() == sorted(sums, reverse=True)[:num_best]
        found = [tuple(codes) for codes in tuples[at].tolist()]
        assert len(set(found)) == len(found)
        assert [sums[everything.index(codes)] for codes in found] == scores[at].tolist()


@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_a_batch_equals_the_reference(data: st.DataObject, seed: int) -> None:
    catalogue = data.draw(catalogues())
    assume(catalogue.num_codes**catalogue.num_subspaces <= 300)
    orders = st.sampled_from(["confidence", "raw_confidence", *OTHER_ORDERS])
    batch = [
        replace(job, order=data.draw(orders))
        for job in data.draw(st.lists(jobs(catalogue), min_size=1, max_size=4))
    ]
    denoiser = HashedDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    expected = [reference_unconstrained(job, catalogue, denoiser) for job in batch]
    assume(not any(tied for _, tied in expected))
    answers = decode_unconstrained(batch, SidIndex(catalogue), denoiser)
    for job, answer, (beams, _) in zip(batch, answers, expected, strict=True):
        found = [
            (row, beam.score) for beam in beams for row in beam.rows if row not in job.excluded
        ][: job.k]
        assert answer.rows.tolist() == [row for row, _ in found]
        assert answer.scores.tolist() == [score for _, score in found]
        assert answer.num_sids == len(beams)
        assert answer.num_invalid == sum(not beam.rows for beam in beams)
        assert answer.nfe == job.schedule.nfe


@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_when_every_sid_exists_the_constraint_changes_nothing(
    data: st.DataObject, seed: int
) -> None:
    num_codes = data.draw(st.integers(2, 4))
    num_subspaces = data.draw(st.integers(1, 4))
    catalogue = catalogue_of(list(product(range(num_codes), repeat=num_subspaces)), num_codes)
    job = data.draw(jobs(catalogue))
    job = replace(job, k=min(job.k, job.beam_width), excluded=job.excluded[:0])
    denoiser = HashedDenoiser(num_subspaces, num_codes, seed=seed)
    assume(not reference_unconstrained(job, catalogue, denoiser)[1])
    job = replace(job, ranking="path", order="raw_confidence")
    (constrained,), _ = decode([job], SidTrie(catalogue), denoiser)
    (unconstrained,) = decode_unconstrained([job], SidIndex(catalogue), denoiser)
    assert unconstrained.num_invalid == 0
    assert unconstrained.rows.tolist() == constrained.rows.tolist()
    assert unconstrained.scores.tolist() == constrained.scores.tolist()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=seeds)
def test_random_positions_are_those_of_the_constrained_search(
    data: st.DataObject, seed: int
) -> None:
    """Every SID has an item, so both searches see the same beams."""
    catalogue = catalogue_of(list(product(range(3), repeat=3)), 3)
    denoiser = HashedDenoiser(3, 3, seed=seed)
    batch = [
        replace(job, k=min(job.k, job.beam_width), excluded=job.excluded[:0], ranking="path")
        for job in data.draw(st.lists(jobs(catalogue), min_size=1, max_size=3))
    ]
    batch = [replace(job, order="random") for job in batch]
    constrained, _ = decode(batch, SidTrie(catalogue), denoiser)
    unconstrained = decode_unconstrained(batch, SidIndex(catalogue), denoiser)
    for ours, theirs in zip(constrained, unconstrained, strict=True):
        assert ours.scores.tolist() == theirs.scores.tolist()


@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_without_pruning_the_constraint_only_strikes_out_invalid_sids(
    data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    num_sids = catalogue.num_codes**catalogue.num_subspaces
    assume(num_sids <= 300)
    job = replace(data.draw(jobs(catalogue)), beam_width=num_sids)
    denoiser = HashedDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    assume(not reference_unconstrained(job, catalogue, denoiser)[1])
    job = replace(job, ranking="path", order="raw_confidence")
    (constrained,), _ = decode([job], SidTrie(catalogue), denoiser)
    (unconstrained,) = decode_unconstrained([job], SidIndex(catalogue), denoiser)
    assert unconstrained.num_sids == num_sids
    assert unconstrained.num_invalid == num_sids - len(np.unique(catalogue.codes, axis=0))
    assert unconstrained.rows.tolist() == constrained.rows.tolist()
    assert unconstrained.scores.tolist() == constrained.scores.tolist()


@pytest.mark.parametrize("denoiser_class", [HashedDenoiser, TyingDenoiser])
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_no_two_live_beams_are_equal(
    denoiser_class: type[HashedDenoiser], data: st.DataObject, seed: int
) -> None:
    num_subspaces, num_codes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    catalogue = catalogue_of([[0] * num_subspaces], num_codes)
    schedule = data.draw(schedules(num_subspaces))
    denoiser = denoiser_class(num_subspaces, num_codes, seed=seed)
    job = job_of(schedule=schedule, beam_width=data.draw(st.integers(1, 20)))
    decode_unconstrained([job], SidIndex(catalogue), denoiser)
    for (partial_sids,) in denoiser.calls:
        assert len(np.unique(partial_sids, axis=0)) == len(partial_sids) <= job.beam_width


def test_a_wide_beam_over_a_parallel_step_has_every_sid() -> None:
    """Of the 16 SIDs three exist; two items share one of them, and one item is excluded."""
    catalogue = catalogue_of([[0, 1], [3, 3], [0, 1], [2, 0]], num_codes=4)
    denoiser = HashedDenoiser(2, 4)
    job = job_of(schedule=Schedule((2,)), beam_width=50, excluded=[1])
    (answer,) = decode_unconstrained([job], SidIndex(catalogue), denoiser)
    assert (answer.num_sids, answer.num_invalid) == (16, 13)
    assert sorted(answer.rows.tolist()) == [0, 2, 3]
    assert answer.rows.tolist().index(0) < answer.rows.tolist().index(2)


def test_sid_index_holds_the_rows_of_each_sid_in_order() -> None:
    catalogue = catalogue_of([[1, 256], [0, 0], [1, 256], [256, 1]], num_codes=300)
    index = SidIndex(catalogue)
    assert index.rows_of(catalogue.codes[0]).tolist() == [0, 2]
    assert index.rows_of(catalogue.codes[1]).tolist() == [1]
    assert index.rows_of(catalogue.codes[3]).tolist() == [3]
    assert index.rows_of(np.array([1, 1], dtype=np.uint16)).tolist() == []
