"""Dense retrieval against brute force: alone, beside beams, filtered, in batches, of new items."""

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
from reference_search import allowed_rows, best_rows, log_sum_exp, reference_biases
from worlds import catalogue_of, codebook_of, filters, job_of, priors, schedules

from service.decoding import Decoder, Job, Schedule, SidTrie
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.network.denoiser import Histories
from service.decoding.search.beam_search import decode
from service.decoding.search.dense import SHIFT, product_of

DIMS = 3
EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)  # products of these are exact: ties are ties


class HashedHead:
    """A query for each history: eighths made of the history's hash."""

    dims = DIMS

    def __init__(self, weight: float = 0.5) -> None:
        self.weight = weight
        self.asked = 0

    def queries(self, memory: NDArray[np.uint64]) -> NDArray[np.float32]:
        self.asked += 1
        queries = [np.random.default_rng(int(one)).integers(-16, 17, DIMS) / 8 for one in memory]
        return np.array(queries, np.float32)

    def query_of(
        self, job: Job, catalogue: Catalogue, denoiser: HashedDenoiser
    ) -> NDArray[np.float64]:
        histories = Histories.of([job.history], catalogue, denoiser.history_length)
        return HashedHead().queries(denoiser.encode(histories))[0].astype(np.float64)


@st.composite
def worlds(draw: st.DrawFn) -> Catalogue:
    shape = draw(st.integers(1, 30)), 3  # code is compiled for each number of subspaces
    codes = draw(st.lists(st.integers(0, 3), min_size=math.prod(shape), max_size=math.prod(shape)))
    numbers = shape[0] * (DIMS + 1)
    vectors = draw(st.lists(EIGHTHS, min_size=numbers, max_size=numbers))
    return catalogue_of(
        np.array(codes, np.uint16).reshape(shape),
        4,
        np.array(vectors, np.float16).reshape(shape[0], -1),
    )


@st.composite
def dense_jobs(draw: st.DrawFn, catalogue: Catalogue, **fields: Any) -> Job:
    rows = st.integers(0, catalogue.num_items - 1)
    return job_of(
        schedule=draw(schedules(catalogue.num_subspaces)),
        history=draw(st.lists(rows, max_size=8)),
        k=draw(st.integers(1, 12)),
        beam_width=draw(st.integers(1, 12)),
        excluded=draw(st.lists(rows, max_size=5)),
        allowed=draw(st.none() | filters(catalogue)),
        **fields,
    )


def expected_log_probs(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, biases: Sequence[float]
) -> dict[int, float]:
    """Of every row that the job allows: a softmax of products and biases."""
    query = HashedHead().query_of(job, catalogue, denoiser)
    scores = catalogue.vectors[:, :DIMS].astype(np.float64) @ query + np.array(biases)
    rows = allowed_rows(job, catalogue.num_items)
    mass = log_sum_exp(scores[rows].tolist()) if rows else 0.0
    return {row: float(scores[row]) - mass for row in rows}


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 9))
def test_dense_equals_brute_force_and_asks_the_denoiser_nothing(
    data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(worlds())
    batch = data.draw(st.lists(dense_jobs(catalogue, retrieval="dense"), min_size=1, max_size=4))
    denoiser = HashedDenoiser(catalogue.num_subspaces, 4, seed=seed, repeat_bias=-2.0)
    prior, head = data.draw(priors(catalogue)), HashedHead()
    answers, _ = decode(batch, SidTrie(catalogue), denoiser, prior=prior, dense=head)
    for job, answer in zip(batch, answers, strict=True):
        # Neither the prior nor the repeat bias: the head alone decides.
        expected = expected_log_probs(job, catalogue, denoiser, [0.0] * catalogue.num_items)
        scores = [expected.get(row, -math.inf) for row in range(catalogue.num_items)]
        assert answer.rows.tolist() == best_rows(scores, job)
        assert answer.scores == pytest.approx([scores[row] for row in answer.rows], abs=1e-5)
        assert (answer.nfe, answer.survivors) == (0, len(expected))
    assert not denoiser.calls
    assert head.asked <= 1


@settings(deadline=None)
@given(
    data=st.data(), seed=st.integers(0, 9), weight=st.sampled_from([0.1, 0.5, 0.9]),
    repeat_bias=st.sampled_from([0.0, -1.0]),
)  # fmt: skip
def test_fused_is_the_mixture_of_what_both_find(
    data: st.DataObject, seed: int, weight: float, repeat_bias: float
) -> None:
    catalogue = data.draw(worlds())
    ranking = data.draw(st.sampled_from(["rows", "path", "best"]))
    job = data.draw(dense_jobs(catalogue, retrieval="fused", ranking=ranking))
    denoiser = HashedDenoiser(catalogue.num_subspaces, 4, seed=seed, repeat_bias=repeat_bias)
    prior, trie = data.draw(st.none() | priors(catalogue)), SidTrie(catalogue)
    [answer], _ = decode([job], trie, denoiser, prior=prior, dense=HashedHead(weight))

    beams = replace(job, retrieval="generate", k=job.beam_width)
    [found], _ = decode([beams], trie, denoiser, prior=prior)
    mixed: dict[int, float] = {}
    if len(found.rows):
        mass = log_sum_exp(found.scores.tolist())
        for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
            mixed[row] = (1 - weight) * math.exp(score - mass)
    biases = reference_biases(job, catalogue, denoiser, prior)
    log_probs = expected_log_probs(job, catalogue, denoiser, biases)
    of_dense = sorted(log_probs, key=lambda row: (-log_probs[row], row))
    # Rounding of the prior's logarithms may change which of two equal rows is the last.
    last = of_dense[job.beam_width - 1 : job.beam_width + 1]
    if len(last) == 2 and abs(log_probs[last[0]] - log_probs[last[1]]) < 1e-5:
        return
    for row in of_dense[: job.beam_width]:
        mixed[row] = mixed.get(row, 0.0) + weight * math.exp(log_probs[row])
    best = sorted(mixed, key=lambda row: (-mixed[row], row))[: job.k]
    assert answer.scores == pytest.approx([math.log(mixed[row]) for row in best], abs=1e-4)
    assert {*answer.rows.tolist()} <= {*mixed}
    for row, score in zip(answer.rows.tolist(), answer.scores.tolist(), strict=True):
        assert score == pytest.approx(math.log(mixed[row]), abs=1e-4)
    assert answer.nfe == found.nfe


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 9))
def test_a_batch_of_all_retrievals_equals_each_alone_with_and_without_a_cache(
    data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(worlds())
    retrievals = st.sampled_from(["generate", "dense", "fused"])
    batch = [
        replace(job, retrieval=data.draw(retrievals))
        for job in data.draw(st.lists(dense_jobs(catalogue), min_size=2, max_size=5))
    ]
    denoiser = HashedDenoiser(catalogue.num_subspaces, 4, seed=seed)
    parts = SidTrie(catalogue), denoiser, data.draw(priors(catalogue)), HashedHead()
    cached = Decoder(*parts, encoder_cache=3)
    for decoder in (Decoder(*parts), cached, cached):
        for job, answer in zip(batch, decoder.decode(batch)[0], strict=True):
            [alone], _ = Decoder(*parts).decode([job])
            assert answer.rows.tolist() == alone.rows.tolist()
            assert answer.scores.tolist() == pytest.approx(alone.scores.tolist(), abs=1e-5)
            assert answer.nfe == alone.nfe


@pytest.fixture
def world() -> Catalogue:
    random = np.random.default_rng(3)
    codes = random.integers(0, 6, (400, 4)).astype(np.uint16)
    return catalogue_of(codes, 6, random.standard_normal((400, 8)).astype(np.float16))


def test_jobs_that_only_generate_are_as_they_were(world: Catalogue) -> None:
    """Bit for bit, and the head is not asked."""
    denoiser, head = HashedDenoiser(4, 6), HashedHead()
    batch = [job_of(schedule=Schedule((1, 1, 2)), history=[row, row + 1]) for row in range(8)]
    answers, _ = decode(batch, SidTrie(world), denoiser, dense=head)
    without, _ = decode(batch, SidTrie(world), HashedDenoiser(4, 6))
    assert head.asked == 0
    for answer, other in zip(answers, without, strict=True):
        assert (answer.rows.tolist(), answer.nfe) == (other.rows.tolist(), other.nfe)
        assert answer.scores.tolist() == other.scores.tolist()


def test_no_answer_repeats_an_item_or_leaves_the_filter(world: Catalogue) -> None:
    allowed = np.arange(0, 400, 3)
    for retrieval in ("dense", "fused"):
        job = job_of(
            schedule=Schedule((1, 1, 1, 1)), history=[3, 9], k=20, beam_width=20,
            excluded=[3, 9], allowed=allowed.tolist(), ranking="path", order="left_to_right",
        )  # fmt: skip
        [answer], _ = decode(
            [replace(job, retrieval=retrieval)], SidTrie(world), HashedDenoiser(4, 6),
            dense=HashedHead(),
        )  # fmt: skip
        assert len(set(answer.rows.tolist())) == 20
        assert set(answer.rows.tolist()) <= set(allowed.tolist()) - {3, 9}
        assert np.all(np.diff(answer.scores) <= 0)


def test_a_new_item_is_found_by_its_content(world: Catalogue) -> None:
    """And is gone when it is removed. The beams may not know its codes."""
    denoiser, head = HashedDenoiser(4, 6), HashedHead(weight=1.0)
    codebook = codebook_of(num_subspaces=4, num_codes=6, vector_dims=8, embedding_dims=5)
    content = codebook.content
    assert content is not None
    job = job_of(schedule=Schedule((4,)), history=[1, 2], k=5, beam_width=5, retrieval="dense")
    query = head.query_of(job, world, denoiser)
    # The head reads the first DIMS of the content's dimensions; the query points there.
    wanted = np.concatenate((query, np.zeros(len(content.components) - DIMS)))
    embedding = content.mean + np.linalg.pinv(content.components) @ (10 * wanted)
    small = replace(world, vectors=(world.vectors / 100).astype(np.float16))
    decoder = Decoder(SidTrie(small.with_room()), denoiser, None, head)
    grown = decoder.with_items(["new"], embedding[None], codebook)
    for retrieval in ("dense", "fused"):
        asked = replace(job, retrieval=retrieval)
        assert grown.decode([asked])[0][0].rows[0] == 400
        assert 400 not in decoder.decode([asked])[0][0].rows
        assert 400 not in grown.without_items(["new"]).decode([asked])[0][0].rows


def test_a_cancelled_job_has_no_rows(world: Catalogue) -> None:
    told: list[int] = []
    job = job_of(schedule=Schedule((1, 1, 1, 1)), history=[1], retrieval="fused")
    job = replace(job, is_cancelled=lambda: len(told) > 0 or told.append(1) is not None)
    [answer], _ = decode([job], SidTrie(world), HashedDenoiser(4, 6), dense=HashedHead())
    assert answer.cancelled
    assert not len(answer.rows)


@pytest.mark.parametrize("retrieval", ["dense", "fused"])
def test_what_cannot_be_retrieved_is_refused(world: Catalogue, retrieval: Any) -> None:
    job = job_of(schedule=Schedule((4,)), history=[1], retrieval=retrieval)
    trie, denoiser = SidTrie(world), HashedDenoiser(4, 6)
    with pytest.raises(ValueError, match="needs a dense head"):
        decode([job], trie, denoiser)
    with pytest.raises(ValueError, match="has nothing to explain"):
        decode([replace(job, explain=True)], trie, denoiser, dense=HashedHead())
    narrow = SidTrie(replace(world, vectors=world.vectors[:, :2].copy()))
    with pytest.raises(ValueError, match="more dimensions than the items' vectors"):
        decode([job], narrow, denoiser, dense=HashedHead())


def test_every_float16_is_read() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    numbers = bits[np.isfinite(bits.view(np.float16))]
    one = np.ones(1, np.float32) * SHIFT
    found = np.array([product_of(numbers[i : i + 1], one) for i in range(len(numbers))])
    assert np.array_equal(found, numbers.view(np.float16).astype(np.float32))
