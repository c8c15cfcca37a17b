"""Answers that are delivered before their batch has ended."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogue_of, catalogues, job_of, jobs

from service.decoding.catalogue.trie import SidTrie
from service.decoding.decoder import Decoder
from service.decoding.job import Decoded, Job, Ranking, Timings
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode


class Deliveries:
    """What `on_answer` was called with, and how many denoiser calls there were by then."""

    def __init__(self, denoiser: HashedDenoiser) -> None:
        self.denoiser = denoiser
        self.indices: list[int] = []
        self.answers: list[Decoded] = []
        self.timings: list[Timings] = []
        self.num_calls: list[int] = []

    def __call__(self, index: int, answer: Decoded, timings: Timings) -> None:
        self.indices.append(index)
        self.answers.append(answer)
        self.timings.append(timings)
        self.num_calls.append(len(self.denoiser.calls))


@st.composite
def cancelled_after(draw: st.DrawFn, job: Job) -> Job:
    """The same job, which may be cancelled between any two steps, or before the first."""
    num_steps = draw(st.none() | st.integers(0, 3))
    if num_steps is None:
        return job
    questions = iter([False] * num_steps)
    return replace(job, is_cancelled=lambda: next(questions, True))


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_each_job_is_answered_once_and_before_the_next_call(data: st.DataObject, seed: int) -> None:
    catalogue = data.draw(catalogues())
    rankings, numbers = st.sampled_from(get_args(Ranking)), st.sampled_from([0, 1, 5])
    batch = [
        data.draw(cancelled_after(replace(job, ranking=data.draw(rankings), k=data.draw(numbers))))
        for job in data.draw(st.lists(jobs(catalogue, filtered=True, may_finish=True), max_size=6))
    ]
    denoiser = HashedDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    seen = Deliveries(denoiser)
    answers, timings = decode(batch, SidTrie(catalogue), denoiser, on_answer=seen)
    assert sorted(seen.indices) == list(range(len(batch)))
    for index, answer in zip(seen.indices, seen.answers, strict=True):
        assert answer is answers[index]
    assert seen.num_calls == [answer.nfe for answer in seen.answers]
    assert seen.num_calls == sorted(seen.num_calls)
    for before, after in pairwise([*seen.timings, timings]):
        assert after.encode_s >= before.encode_s
        assert after.denoise_s >= before.denoise_s
        assert after.search_s >= before.search_s - 1e-9  # a difference of sums
        assert sum(astuple(after)[:3]) >= sum(astuple(before)[:3])


def test_short_schedules_do_not_wait_for_long_ones_nor_nothing_for_anything() -> None:
    catalogue = catalogue_of(np.random.default_rng(0).integers(0, 9, (60, 4)), num_codes=9)
    denoiser = HashedDenoiser(4, 9)
    all_rows = range(60)
    questions = iter([False, False, True])
    long = job_of(schedule=Schedule((1, 1, 1, 1)), history=[3], ranking="path")
    batch = [
        long,
        replace(long, is_cancelled=lambda: next(questions)),
        replace(long, schedule=Schedule((2, 2))),
        replace(long, excluded=np.array(all_rows, np.int32)),
        replace(long, schedule=Schedule((4,))),
        replace(long, k=0),
    ]
    seen = Deliveries(denoiser)
    Decoder(SidTrie(catalogue), denoiser).decode(batch, on_answer=seen)
    assert seen.indices == [3, 5, 4, 2, 1, 0]
    assert seen.num_calls == [0, 0, 1, 2, 2, 4]
    assert [answer.cancelled for answer in seen.answers] == [index == 1 for index in seen.indices]
    assert seen.timings[0].encode_s == 0 < seen.timings[2].encode_s == seen.timings[-1].encode_s


@pytest.mark.parametrize("at", range(5))
def test_what_the_callback_raises_ends_the_batch_and_harms_no_other(at: int) -> None:
    """Arrays that searches share hold what belongs to the batch that broke off."""
    catalogue = catalogue_of(np.random.default_rng(0).integers(0, 9, (60, 4)), num_codes=9)
    trie, denoiser = SidTrie(catalogue), HashedDenoiser(4, 9, repeat_bias=-1.0)
    schedules = [(4,), (4,), (1, 3), (2, 2), (1, 1, 2)]
    batch = [
        job_of(schedule=Schedule(steps), history=[row, 7], excluded=[row])
        for row, steps in enumerate(schedules)
    ]
    expected, _ = decode(batch, trie, denoiser)
    seen: list[int] = []

    def deliver(index: int, answer: Decoded, timings: Timings) -> None:
        if len(seen) == at:
            raise RuntimeError("no one is there")
        seen.append(index)

    with pytest.raises(RuntimeError, match="no one is there"):
        decode(batch, trie, denoiser, on_answer=deliver)
    assert seen == list(range(at))
    answers, _ = decode(batch, trie, denoiser)
    for answer, other in zip(answers, expected, strict=True):
        assert answer.rows.tolist() == other.rows.tolist()
        assert answer.scores.tolist() == other.scores.tolist()


def test_nothing_is_delivered_for_a_batch_that_is_refused() -> None:
    catalogue = catalogue_of([[0, 1], [1, 0]], num_codes=2)
    denoiser = HashedDenoiser(2, 2)
    seen = Deliveries(denoiser)
    batch = [
        job_of(schedule=Schedule((2,)), excluded=[0, 1]),
        job_of(schedule=Schedule((2,)), history=[9]),
    ]
    with pytest.raises(ValueError, match="a job's rows"):
        decode(batch, SidTrie(catalogue), denoiser, on_answer=seen)
    assert seen.indices == []
