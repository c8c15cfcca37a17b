"""A call has about as many places as there are beams, whichever jobs these belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogue_of, job_of

from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Ranking
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode
from service.decoding.search.denoiser_calls import beams_per_chunk

TRIE = SidTrie(catalogue_of(np.random.default_rng(0).integers(0, 30, (2_000, 4)), num_codes=30))


class CountingDenoiser(HashedDenoiser):
    """Which jobs were selected, each time."""

    def __init__(self) -> None:
        super().__init__(4, 30)
        self.selected: list[list[int]] = []

    def select(self, memory: np.ndarray, jobs: np.ndarray) -> np.ndarray:
        self.selected.append(jobs.tolist())
        return super().select(memory, jobs)

    @property
    def rows(self) -> list[int]:
        """Places of each call, with a beam or without."""
        return [asked.shape[0] * asked.shape[1] for asked in self.calls]


def batch_of(beam_widths: Sequence[int], *, ranking: Ranking = "path") -> list[Job]:
    return [
        job_of(
            schedule=Schedule((1, 1, 1, 1)), history=[row], k=5, beam_width=width, ranking=ranking
        )
        for row, width in enumerate(beam_widths)
    ]


def decode_with(batch: Sequence[Job], denoiser: HashedDenoiser) -> list[Decoded]:
    return decode(batch, TRIE, denoiser)[0]


@settings(deadline=None)
@given(widths=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_no_more_than_half_of_a_call_is_wasted(widths: list[int]) -> None:
    chunk = beams_per_chunk(widths)
    asked = sum(-(-width // chunk) * chunk for width in widths)
    assert 1 <= chunk <= max(widths)
    assert asked <= 2 * sum(widths)
    if chunk < max(widths):
        assert asked < 1.5 * sum(widths)
        assert len(widths) * max(widths) > 2 * sum(widths)
    assert beams_per_chunk([widths[0]] * len(widths)) == widths[0]


@pytest.mark.parametrize("ranking", get_args(Ranking))
@settings(deadline=None, max_examples=30)
@given(beam_widths=st.lists(st.sampled_from([1, 2, 3, 7, 20, 200]), min_size=2, max_size=9))
def test_a_batch_equals_its_jobs_alone(ranking: Ranking, beam_widths: list[int]) -> None:
    batch, denoiser = batch_of(beam_widths, ranking=ranking), HashedDenoiser(4, 30)
    answers = decode_with(batch, denoiser)
    assert len(denoiser.calls) == max(answer.nfe for answer in answers)
    for job, answer in zip(batch, answers, strict=True):
        [alone] = decode_with([job], denoiser)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert answer.scores.tolist() == alone.scores.tolist()
        assert answer.nfe == alone.nfe


def test_a_wide_job_makes_its_neighbours_pay_nothing() -> None:
    denoiser = CountingDenoiser()
    batch = batch_of([2] * 9 + [200])
    decode_with(batch, denoiser)
    own = CountingDenoiser()
    for job in batch:
        decode_with([job], own)
    per_step = np.reshape(own.rows, (10, 4)).sum(axis=0)
    assert per_step.tolist()[0] == denoiser.rows[0] == 10
    assert len(denoiser.calls) == 4
    assert np.all(denoiser.rows < 1.5 * per_step)
    assert max(per_step) == 218
    # Widths change after the second call; the memories of the third serve the fourth.
    assert len(denoiser.selected) == 2


def test_jobs_of_like_widths_are_asked_as_they_are() -> None:
    denoiser = CountingDenoiser()
    decode_with(batch_of([20] * 5), denoiser)
    decode_with(batch_of([12, 20, 15, 20]), denoiser)
    assert denoiser.selected == []
    assert denoiser.rows == [5, 100, 100, 100, 4, 80, 80, 80]


def test_chunks_follow_the_jobs_that_are_left() -> None:
    """The memories of a call are no longer good once a job is answered."""
    denoiser = CountingDenoiser()
    batch = batch_of([2] * 9 + [200, 200])
    batch[1] = replace(batch[1], schedule=Schedule((1, 1, 2)))
    answers = decode_with(batch, denoiser)
    assert [answer.nfe for answer in answers] == [4, 3] + [4] * 9
    # Before the second call, before the third, when job 1 is answered, before the fourth.
    assert len(denoiser.selected) == 4
    for job, answer in zip(batch, answers, strict=True):
        [alone] = decode_with([job], denoiser)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert answer.scores.tolist() == alone.scores.tolist()
