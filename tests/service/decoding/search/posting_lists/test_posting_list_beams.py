"""Beams that own posting lists: against the reference search, and against beams that own rows.

Tables of pairs are forced upon small catalogues, where they would not pay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser, TyingDenoiser
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference_search import num_compared, reference_decode
from worlds import (
    ORDERS_OF_CODES,
    OTHER_ORDERS,
    RANKINGS_AND_ORDERS,
    catalogue_of,
    catalogues,
    job_of,
    jobs,
    priors,
)

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Order, Ranking
from service.decoding.schedule import Schedule
from service.decoding.search import steps
from service.decoding.search.beam_search import decode

# The fixture only counts.
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)
repeat_biases = st.sampled_from([0.0, -3.0, 1.5])


class Taken:
    """How often compiled code was called that works on posting lists."""

    def __init__(self) -> None:
        self.expand_posting_lists = self.best_of_posting_lists = 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    counts = Taken()
    monkeypatch.setattr(steps, "FEW_ROWS", 0)
    for name in ("expand_posting_lists", "best_of_posting_lists"):
        function = getattr(steps, name)

        def counting(*arguments: object, name: str = name, function=function) -> object:
            setattr(counts, name, getattr(counts, name) + 1)
            return function(*arguments)

        monkeypatch.setattr(steps, name, counting)
    return counts


@st.composite
def first_of_one(draw: st.DrawFn, num_subspaces: int) -> Schedule:
    """Schedules whose first step fills one position, and that have another step."""
    steps = [1]
    while left := num_subspaces - sum(steps):
        steps.append(draw(st.integers(1, left)))
    return Schedule(tuple(steps))


def with_pairs(catalogue: Catalogue) -> SidTrie:
    return SidTrie(catalogue, pair_bytes_per_item=math.inf)


def decode_with(
    trie: SidTrie,
    job: Job,
    denoiser: HashedDenoiser,
    prior: NeighbourPrior | None = None,
    order: Order = "confidence",
) -> Decoded:
    [answer], _ = decode([replace(job, order=order)], trie, denoiser, prior=prior)
    return answer


@pytest.mark.parametrize(("ranking", "orders"), RANKINGS_AND_ORDERS)
@many
@given(data=st.data(), seed=seeds, repeat_bias=repeat_biases)
def test_a_batch_equals_the_reference(
    taken: Taken,
    ranking: Ranking,
    orders: Sequence[Order],
    data: st.DataObject,
    seed: int,
    repeat_bias: float,
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues(max_items=60))
    assume(catalogue.num_subspaces > 1)
    prior = data.draw(st.none() | priors(catalogue))
    batch = [
        replace(
            job,
            ranking=ranking,
            order=order,
            schedule=data.draw(first_of_one(catalogue.num_subspaces)),
        )
        for job in data.draw(st.lists(jobs(catalogue, may_finish=True), min_size=1, max_size=4))
    ]
    denoiser = HashedDenoiser(
        catalogue.num_subspaces,
        catalogue.num_codes,
        seed=seed,
        sharpness=4.0,
        repeat_bias=repeat_bias,
    )
    expected = [
        reference_decode(job, catalogue, denoiser, ranking=ranking, order=order, prior=prior)
        for job in batch
    ]
    before = taken.expand_posting_lists + taken.best_of_posting_lists
    trie = with_pairs(catalogue)
    answers, _ = decode(batch, trie, denoiser, prior=prior)
    of_codes = taken.expand_posting_lists + taken.best_of_posting_lists - before
    second_step = [answer.nfe > 1 for answer in answers]
    if ranking == "path":
        assert of_codes == sum(second_step)
    assume(num_compared(answers, expected))


@pytest.mark.parametrize("orders", ORDERS_OF_CODES)
@many
@given(data=st.data(), seed=seeds)
def test_ties_go_to_the_lower_position_then_parent_then_row(
    taken: Taken, orders: Sequence[Order], data: st.DataObject, seed: int
) -> None:
    order = data.draw(st.sampled_from(orders))
    catalogue = data.draw(catalogues(max_items=60))
    assume(catalogue.num_subspaces > 1)
    schedule = data.draw(first_of_one(catalogue.num_subspaces))
    job = replace(data.draw(jobs(catalogue)), schedule=schedule, ranking="path")
    denoiser = TyingDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    expected = reference_decode(job, catalogue, denoiser, ranking="path", order=order)
    before = taken.expand_posting_lists + taken.best_of_posting_lists
    answer = decode_with(with_pairs(catalogue), job, denoiser, order=order)
    assert taken.expand_posting_lists + taken.best_of_posting_lists == before + (answer.nfe > 1)
    assert answer.rows.tolist() == expected.rows
    assert answer.scores.tolist() == expected.scores


@pytest.mark.parametrize("steps", [(1, 5), (1, 2, 3), (1, 4, 1), (1, 1, 4), (1, 1, 1, 1, 2)])
@pytest.mark.parametrize("num_excluded", [0, 100, 254, 255, 3000])
@pytest.mark.parametrize(
    "orders", [("confidence",) * 3, ("raw_confidence", "random", "raw_confidence"), OTHER_ORDERS]
)
def test_long_posting_lists_give_the_answers_of_copied_rows(
    taken: Taken, steps: tuple[int, ...], num_excluded: int, orders: Sequence[Order]
) -> None:
    """Lists of some thousand rows: several blocks, counts of 255 or more, skipped beams."""
    random = np.random.default_rng(num_excluded)
    codes = random.zipf(1.5, (9_000, 6)) % 11
    codes[1::2, 2:] = codes[::2, 2:]  # SIDs of the same codes at most positions
    catalogue = catalogue_of(codes, num_codes=11)
    neighbours = random.integers(0, 9_000, (9_000, 30)).astype(np.int32)
    prior = NeighbourPrior(
        neighbours,
        random.random((9_000, 30)).astype(np.float16),
        history_length=20,
        decay=0.9,
        scale=1.0,
        weight=1.0,
    )
    common = random.permutation(np.flatnonzero(codes[:, 0] == 1))
    lists, copies = with_pairs(catalogue), SidTrie(catalogue, pair_bytes_per_item=0)
    for seed, (sharpness, order) in enumerate(zip([1.0, 4.0, 40.0], orders, strict=True)):
        denoiser = HashedDenoiser(6, 11, seed=seed, sharpness=sharpness, repeat_bias=-1.0)
        job = job_of(
            schedule=Schedule(steps),
            history=random.integers(0, 9_000, 30).tolist(),
            k=15,
            beam_width=20,
            excluded=[*common[:num_excluded], *common[: num_excluded // 2]],
            ranking="path",
        )
        answer = decode_with(lists, job, denoiser, prior, order)
        # With a filter of all rows, an explanation makes the search copy: the oracle.
        job = replace(job, allowed=np.arange(9_000, dtype=np.int32), explain=True)
        expected = decode_with(copies, job, denoiser, prior, order)
        assert answer.rows.tolist() == expected.rows.tolist()
        assert answer.scores.tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
        assert len(answer.rows) == 15
    last = len(steps) == 2
    assert taken.best_of_posting_lists == 3 * last
    assert taken.expand_posting_lists == 3 * (not last and num_excluded < 255)


@pytest.mark.parametrize("steps", [(1, 5), (1, 2, 3), (1, 1, 4), (1, 1, 1, 1, 2)])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8, 0.99])
@pytest.mark.parametrize("order", ["confidence", "entropy", "random"])
def test_a_filter_on_posting_lists_gives_the_answers_of_copied_rows(
    taken: Taken, steps: tuple[int, ...], share: float, order: Order
) -> None:
    """Of some pairs of codes the filter leaves no item, though more than 255 items have them."""
    random = np.random.default_rng(round(100 * share))
    codes = random.zipf(1.5, (9_000, 6)) % 11
    codes[1::2, 2:] = codes[::2, 2:]
    catalogue = catalogue_of(codes, num_codes=11)
    none_left = (codes[:, 1] == 1) & (codes[:, 3] == 2) | (codes[:, 0] == 2) & (codes[:, 2] == 1)
    assert np.count_nonzero(none_left) > 510
    allowed = np.flatnonzero(~none_left & (random.random(9_000) < share)).astype(np.int32)
    common = random.permutation(np.flatnonzero(codes[:, 0] == 1))
    for seed, sharpness in enumerate([1.0, 4.0, 40.0]):
        denoiser = HashedDenoiser(6, 11, seed=seed, sharpness=sharpness, repeat_bias=-1.0)
        job = job_of(
            schedule=Schedule(steps),
            history=random.integers(0, 9_000, 30).tolist(),
            k=15,
            beam_width=20,
            excluded=[*common[:200], *common[:100]],
            allowed=allowed.tolist(),
            ranking="path",
        )
        before = taken.expand_posting_lists + taken.best_of_posting_lists
        answer = decode_with(with_pairs(catalogue), job, denoiser, None, order)
        assert taken.expand_posting_lists + taken.best_of_posting_lists == before + 1
        copying = replace(job, explain=True)
        expected = decode_with(with_pairs(catalogue), copying, denoiser, None, order)
        assert taken.expand_posting_lists + taken.best_of_posting_lists == before + 1
        assert answer.rows.tolist() == expected.rows.tolist()
        assert answer.scores.tolist() == expected.scores.tolist()
        assert answer.survivors == expected.survivors
        assert len(answer.rows) == 15
        assert set(answer.rows.tolist()) <= set(allowed.tolist()) - set(common[:200].tolist())


@pytest.mark.parametrize("num_items", [254, 255, 256, 300])
@pytest.mark.parametrize("num_left", [0, 1, 2])
def test_a_pair_of_many_items_may_lose_all_of_them(num_items: int, num_left: int) -> None:
    """A count of 255 may stand for any larger number; 255 excluded rows may be all of them."""
    codes = [*[[0, 0, 0]] * num_items, [0, 1, 0], [1, 1, 1], [1, 0, 1]]
    catalogue = catalogue_of(codes, num_codes=2)
    denoiser = HashedDenoiser(3, 2, seed=3)
    excluded = list(range(num_items - num_left))
    job = job_of(schedule=Schedule((1, 1, 1)), k=10, beam_width=10, excluded=excluded)
    job = replace(job, ranking="path")
    expected = reference_decode(job, catalogue, denoiser, ranking="path")
    answer = decode_with(with_pairs(catalogue), job, denoiser)
    assert answer.rows.tolist() == expected.rows
    assert len(answer.rows) == num_left + 3


@pytest.mark.parametrize("steps", [(1, 1, 1), (1, 2)])
def test_what_the_denoiser_rules_out_is_left_out(steps: tuple[int, ...]) -> None:
    """A log-probability of -inf is no score, and neither is nan."""
    codes = [[number >> 2, number >> 1 & 1, number & 1] for number in range(8)]
    catalogue = catalogue_of(codes, num_codes=2)

    class Fixed(HashedDenoiser):
        table = np.array([[-0.1, -3.0], [-0.5, -1.0], [-0.7, -np.inf]])

        def _log_probs(self, hashes: np.ndarray) -> np.ndarray:
            return np.broadcast_to(self.table, hashes.shape)

    job = job_of(schedule=Schedule(steps), k=8, ranking="path")
    answer = decode_with(with_pairs(catalogue), job, Fixed(3, 2))
    assert answer.rows.tolist() == [0, 2, 4, 6]
    for nothing in (np.nan, -np.inf):
        Fixed.table = np.full((3, 2), nothing)
        assert not len(decode_with(with_pairs(catalogue), job, Fixed(3, 2)).rows)
