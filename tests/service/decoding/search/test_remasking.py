"""Codes that are masked again, and guidance, against plain references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_search import (
    FAR_APART,
    allowed_rows,
    log_probs_of,
    log_sum_exp,
    reference_biases,
    reference_decode,
)
from worlds import catalogue_of, catalogues, job_of, jobs, priors

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Ranking
from service.decoding.network.denoiser import Histories
from service.decoding.network.encoder_cache import EncoderCache
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode
from service.decoding.search.denoiser_calls import guided_log_probs
from service.decoding.search.remasking import least_certain

seeds = st.integers(0, 2**32 - 1)
each_ranking = pytest.mark.parametrize("ranking", ["rows", "best", "path"])


def reference_remask(
    job: Job,
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    ranking: Ranking,
    prior: NeighbourPrior | None,
) -> tuple[dict[int, float], float]:
    """Every row's score after its finished beams were refilled; and how close a choice was."""
    found = reference_decode(
        replace(job, k=max(job.k, job.beam_width)),
        catalogue,
        denoiser,
        ranking=ranking,
        prior=prior,
    )
    biases = reference_biases(job, catalogue, denoiser, prior)
    codes, mask = catalogue.codes.tolist(), catalogue.num_codes
    given_to: dict[int, list[float]] = {}
    for row, score, beam in zip(found.rows, found.scores, found.found, strict=True):
        log_probs = {p: beam.filled[p][1] for p in range(catalogue.num_subspaces)}
        certain = {p: 1.0 if math.isnan(one) else one for p, one in log_probs.items()}
        again = sorted(certain, key=lambda p: (certain[p], p))[: job.remask]
        sid = tuple(mask if p in again else code for p, code in enumerate(codes[row]))
        rows = [
            other
            for other in allowed_rows(job, len(codes))
            if all(code in (mask, codes[other][p]) for p, code in enumerate(sid))
        ]
        new = log_probs_of(job, catalogue, denoiser, sid)
        inside, outside = (biases, [0.0] * len(codes))[:: 1 if ranking == "rows" else -1]
        logits = [inside[other] + sum(new[p][codes[other][p]] for p in again) for other in rows]
        shift = score - outside[row] - log_sum_exp(logits)
        for other, logit in zip(rows, logits, strict=True):
            given_to.setdefault(other, []).append(shift + logit + outside[other])
    return {row: log_sum_exp(scores) for row, scores in given_to.items()}, found.closest_call


@st.composite
def remasked_jobs(draw: st.DrawFn, catalogue: Catalogue, ranking: Ranking) -> Job:
    job = draw(jobs(catalogue, filtered=True, may_finish=True))
    remask = draw(st.integers(1, catalogue.num_subspaces - 1))
    return replace(job, ranking=ranking, remask=remask)


@each_ranking
@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_refilled_beams_give_what_the_plain_reference_gives(
    ranking: Ranking, data: st.DataObject, seed: int
) -> None:
    """Filters, exclusions, priors, early ends; a batch of jobs, each also alone."""
    catalogue = data.draw(catalogues().filter(lambda one: one.num_subspaces > 1))
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = HashedDenoiser(
        catalogue.num_subspaces, catalogue.num_codes, seed=seed, repeat_bias=0.5
    )
    batch = data.draw(st.lists(remasked_jobs(catalogue, ranking), min_size=1, max_size=3))
    trie = SidTrie(catalogue)
    answers, _ = decode(batch, trie, denoiser, prior=prior)
    for job, answer in zip(batch, answers, strict=True):
        [alone], _ = decode([job], trie, denoiser, prior=prior)
        assert alone.rows.tolist() == answer.rows.tolist()
        rows = answer.rows.tolist()
        allowed = allowed_rows(job, catalogue.num_items)
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(allowed)
        if job.beam_width >= job.k:
            assert len(rows) == min(job.k, len(allowed))
        assert np.all(np.diff(answer.scores) <= 0)
        expected, closest_call = reference_remask(job, catalogue, denoiser, ranking, prior)
        if closest_call <= FAR_APART:
            continue
        assert set(rows) <= set(expected)
        found = [expected[row] for row in rows]
        assert answer.scores.tolist() == pytest.approx(found, abs=1e-4)
        others = [score for row, score in expected.items() if row not in set(rows)]
        if len(rows) == job.k and others:
            assert min(found) >= max(others) - 1e-4


@each_ranking
def test_one_call_more_is_counted_unless_nothing_is_left_to_ask(ranking: Ranking) -> None:
    random = np.random.default_rng(0)
    catalogue = catalogue_of(random.integers(0, 4, (60, 4)), 4)
    denoiser = HashedDenoiser(4, 4)
    trie = SidTrie(catalogue)
    job = job_of(schedule=Schedule((1, 3)), history=[3, 5], ranking=ranking)
    [before], _ = decode([job], trie, denoiser)
    [after], timings = decode([replace(job, remask=2)], trie, denoiser)
    assert (before.nfe, after.nfe, timings.calls) == (2, 3, 3)
    alone = catalogue_of([[0, 1, 2]], 4)  # a beam with one row is decided
    one = job_of(schedule=Schedule((3,)), history=[0], k=1, ranking=ranking)
    [answer], _ = decode([replace(one, remask=1)], SidTrie(alone), HashedDenoiser(3, 4))
    assert answer.rows.tolist() == [0]
    assert answer.nfe == 1


@each_ranking
def test_beams_that_meet_give_an_item_once(ranking: Ranking) -> None:
    """Two SIDs differ in one code only, the least certain of both: the beams become one."""
    catalogue = catalogue_of([[0, 0], [0, 1]], 2)

    class Known(HashedDenoiser):
        def denoise(self, memory: Any, sids: Any, positions: Any) -> Any:
            table = np.log(np.array([[0.9, 0.1], [0.6, 0.4]], np.float32))
            return table[positions]

    job = job_of(schedule=Schedule((2,)), history=[0], k=2, ranking=ranking)
    [answer], _ = decode([replace(job, remask=1)], SidTrie(catalogue), Known(2, 2))
    assert answer.rows.tolist() == [0, 1]
    # A Gibbs step from a distribution that it leaves as it is.
    expected = [0.6, 0.4] if ranking == "rows" else [0.54, 0.36]
    assert np.exp(answer.scores) == pytest.approx(expected, abs=1e-6)


@each_ranking
def test_an_explanation_adds_up_after_codes_were_masked_again(ranking: Ranking) -> None:
    random = np.random.default_rng(1)
    catalogue = catalogue_of(random.integers(0, 5, (80, 4)), 5)
    trie, denoiser = SidTrie(catalogue), HashedDenoiser(4, 5, seed=3)
    job = job_of(schedule=Schedule((1, 1, 2)), history=[3, 5], ranking=ranking)
    job = replace(job, remask=2, explain=True)
    [answer], _ = decode([job], trie, denoiser)
    [silent], _ = decode([replace(job, explain=False)], trie, denoiser)
    assert silent.trajectory is None
    assert silent.rows.tolist() == answer.rows.tolist()
    found = answer.trajectory
    assert found is not None
    assert found.survivors.shape == found.beam_scores.shape == (10, answer.nfe)
    assert found.beam_scores[:, -1] == pytest.approx(answer.scores)
    again = found.filled == answer.nfe
    assert set(again.sum(axis=1).tolist()) <= {0, 2}  # decided beams stay as they are
    assert again.any()


def test_least_certain_codes_are_those_with_the_lowest_log_probs() -> None:
    log_probs = np.array([[-1, -3, np.nan, -3], [np.nan, np.nan, -0.0, np.nan]], np.float32)
    assert least_certain(log_probs, 1).tolist() == [
        [False, True, False, False],
        [False] * 2 + [True, False],
    ]
    assert least_certain(log_probs, 3).tolist()[0] == [True, True, False, True]


@pytest.mark.parametrize("wrong", [{"remask": 2}, {"remask": -1}, {"guidance": -0.5}])
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    catalogue = catalogue_of([[0, 0], [0, 1]], 2)
    job = replace(job_of(schedule=Schedule((2,))), **wrong)
    with pytest.raises(ValueError, match=r"remask must be below num_subspaces, guidance a finite"):
        decode([job], SidTrie(catalogue), HashedDenoiser(2, 2))


class Guided:
    """A denoiser that is guided by itself, whatever the search does."""

    def __init__(self, inner: HashedDenoiser, catalogue: Catalogue, guidance: float) -> None:
        self.inner, self.guidance = inner, np.float32(guidance)
        self.num_subspaces, self.num_codes = inner.num_subspaces, inner.num_codes
        self.history_length, self.repeat_bias = inner.history_length, inner.repeat_bias
        self.nothing = inner.encode(Histories.of([np.empty(0, np.int32)], catalogue, 5))
        self.encode, self.select, self.join = inner.encode, inner.select, inner.join

    def denoise(
        self,
        memory: NDArray[np.uint64],
        partial_sids: NDArray[np.uint16],
        positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        given = self.inner.denoise(memory, partial_sids, positions)
        without = self.inner.denoise(self.nothing.repeat(len(memory)), partial_sids, positions)
        return guided_log_probs(given, without, self.guidance)


def same(found: Decoded, expected: Decoded) -> None:
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()


@each_ranking
@pytest.mark.parametrize("remask", [0, 1])
def test_guidance_is_two_calls_a_step_whoever_is_in_the_batch(
    ranking: Ranking, remask: int
) -> None:
    """Guided and unguided jobs, of unequal widths and lengths, with and without a cache."""
    random = np.random.default_rng(2)
    catalogue = catalogue_of(random.integers(0, 6, (300, 4)), 6)
    trie, denoiser = SidTrie(catalogue), HashedDenoiser(4, 6, seed=1)

    def job(history: Sequence[int], width: int, *steps: int, guidance: float) -> Job:
        made = job_of(
            schedule=Schedule(steps), history=history, k=5, beam_width=width, ranking=ranking
        )
        return replace(made, guidance=guidance, remask=remask)

    batch = [
        job([1, 2], 8, 1, 1, 2, guidance=1.5),
        job([7], 200, 1, 1, 1, 1, guidance=0.0),
        job([], 8, 1, 3, guidance=2.0),  # nothing to guide
        job([4, 4, 9], 30, 4, guidance=0.5),
    ]
    cache = EncoderCache(10)
    told: list[int] = []
    for answers, timings in (
        decode(batch, trie, denoiser),
        decode(batch, trie, denoiser, cache=cache),
        decode(
            batch, trie, denoiser, cache=cache, on_answer=lambda *one: told.append(one[2].calls)
        ),
    ):
        for one, answer in zip(batch, answers, strict=True):
            [plain], _ = decode([replace(one, guidance=0.0)], trie, denoiser)
            if not one.is_guided:
                same(answer, plain)
                assert answer.nfe == plain.nfe
                continue
            itself = Guided(denoiser, catalogue, one.guidance)
            [expected], _ = decode([replace(one, guidance=0.0)], trie, itself)
            same(answer, expected)
            assert answer.nfe == 2 * expected.nfe
            assert answer.scores.tolist() != plain.scores.tolist()
        assert timings.calls <= sum(answer.nfe for answer in answers)
    assert told == sorted(told)


def test_guidance_pulls_codes_away_from_what_they_are_without_a_history() -> None:
    given, without = np.log([[0.5, 0.3, 0.2]]), np.log([[0.6, 0.2, 0.2]])
    found = np.exp(guided_log_probs(given, without, np.float32(1)))
    expected = np.array([0.25 / 0.6, 0.09 / 0.2, 0.04 / 0.2])
    assert found[0] == pytest.approx(expected / expected.sum(), rel=1e-5)
    assert np.exp(guided_log_probs(given, without, np.float32(0))) == pytest.approx(np.exp(given))
    impossible = np.array([[-np.inf, 0.0]], np.float32)
    for other in (impossible, impossible[:, ::-1], np.full((1, 2), np.log(0.5), np.float32)):
        assert np.exp(guided_log_probs(impossible, other, np.float32(2))).tolist() == [[0, 1]]
