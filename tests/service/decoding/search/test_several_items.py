"""The search for several items at once, against all sequences of tiny catalogues."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any, get_args

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from worlds import ORDERS_OF_CODES, catalogue_of, catalogues, filters, job_of, jobs, priors

from service.decoding import MAX_HORIZON, Decoder
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Order
from service.decoding.network.denoiser import Histories
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode
from service.decoding.search.several_items import decode_several

seeds = st.integers(0, 2**32 - 1)
ORDERS: tuple[Order, ...] = get_args(Order)


def denoiser_for(catalogue: Catalogue, horizon: int, seed: int, **options: Any) -> HashedDenoiser:
    return HashedDenoiser(
        catalogue.num_subspaces, catalogue.num_codes, seed=seed, horizon=horizon, **options
    )


@st.composite
def small_worlds(draw: st.DrawFn) -> tuple[Catalogue, NeighbourPrior, Job]:
    """A job of two or three items, all of whose sequences can be listed, and all beams are kept."""
    horizon = draw(st.sampled_from([2, 2, 3]))
    catalogue = draw(catalogues(max_items=7 if horizon == 2 else 5))
    schedule = draw(step_sizes(horizon * catalogue.num_subspaces))
    job = draw(jobs(catalogue, schedule=schedule, filtered=True))
    order = draw(st.sampled_from([one for one in ORDERS if one != "random"]))
    everything = catalogue.num_items**horizon
    job = replace(
        job, ranking="path", order=order, horizon=horizon, k=everything, beam_width=everything
    )
    return catalogue, draw(priors(catalogue)), job


@st.composite
def step_sizes(draw: st.DrawFn, num_positions: int) -> Schedule:
    steps: list[int] = []
    while left := num_positions - sum(steps):
        steps.append(draw(st.integers(1, left)))
    return Schedule(tuple(steps))


def allowed_rows(job: Job, catalogue: Catalogue) -> list[int]:
    rows = range(catalogue.num_items) if job.allowed is None else job.allowed.tolist()
    return [row for row in rows if row not in set(job.excluded.tolist())]


def every_sequence(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, prior: NeighbourPrior
) -> dict[tuple[int, ...], float]:
    """The score of every sequence of different allowed rows, each followed alone from the start."""
    allowed = allowed_rows(job, catalogue)
    newest = job.history[-denoiser.history_length :]
    memory = denoiser.encode(Histories.of([newest], catalogue, denoiser.history_length))
    biases = [slot_biases(job, catalogue, denoiser, prior, slot) for slot in range(job.horizon)]
    calls: dict[bytes, NDArray[np.float64]] = {}

    def log_probs_of(sids: NDArray[np.uint16]) -> NDArray[np.float64]:
        if sids.tobytes() not in calls:
            masked = np.flatnonzero(sids == catalogue.num_codes)[None, None]
            full = np.full((len(sids), catalogue.num_codes), np.nan)
            full[masked[0, 0]] = denoiser.denoise(memory, sids[None, None], masked)[0, 0]
            calls[sids.tobytes()] = full
        return calls[sids.tobytes()]

    found = {}
    for rows in permutations(allowed, job.horizon):
        wanted = catalogue.codes[list(rows)].reshape(-1)
        sids, score = np.full(len(wanted), catalogue.num_codes, np.uint16), 0.0
        for step in job.schedule.steps:
            log_probs = log_probs_of(sids)
            for position in chosen_positions(sids, log_probs, step, allowed, catalogue, job.order):
                score += log_probs[position, wanted[position]]
                sids[position] = wanted[position]
        found[rows] = score + sum(biases[slot][row] for slot, row in enumerate(rows))
    return found


def chosen_positions(
    sids: NDArray[np.uint16],
    log_probs: NDArray[np.float64],
    step: int,
    allowed: list[int],
    catalogue: Catalogue,
    order: Order,
) -> list[int]:
    mask, length = catalogue.num_codes, catalogue.num_subspaces
    certainties = {}
    for position in np.flatnonzero(sids == mask).tolist():
        slot, own = divmod(position, length)
        partial = sids[slot * length : (slot + 1) * length]
        rows = [
            row
            for row in allowed
            if all(
                code in (mask, of) for code, of in zip(partial, catalogue.codes[row], strict=True)
            )
        ]
        legal = sorted({int(catalogue.codes[row, own]) for row in rows})
        of_legal = np.sort(log_probs[position, legal])[::-1]
        shares = np.exp(of_legal - of_legal[0])
        shares /= shares.sum()
        certainty = {
            "confidence": shares[0],
            "entropy": (shares * np.log(shares)).sum(),
            "margin": shares[0] - (shares[1] if len(shares) > 1 else 0),
            "left_to_right": -position,
            "raw_confidence": log_probs[position].max(),
        }[order]
        if len(legal) == 1 and order not in ("left_to_right", "raw_confidence"):
            certainty = -np.inf
        certainties[position] = certainty
    return sorted(sorted(certainties, key=lambda place: (-certainties[place], place))[:step])


def slot_biases(
    job: Job,
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    prior: NeighbourPrior,
    slot: int,
) -> list[float]:
    memory = np.zeros(catalogue.num_items)
    for age, item in enumerate(job.history[::-1][: prior.history_length].tolist()):
        for row, affinity in zip(prior.neighbours[item], prior.affinities[item], strict=True):
            memory[row] += prior.decay ** (age + slot) * float(affinity)
    biases = prior.weight * np.log1p(memory / prior.scale)
    biases[np.unique(job.history)] += denoiser.repeat_bias
    return biases.tolist()


@settings(deadline=None)
@given(small_worlds(), seeds, st.sampled_from([0.0, -2.0]))
def test_with_all_beams_the_answer_is_every_sequence_with_its_score(
    world: tuple[Catalogue, NeighbourPrior, Job], seed: int, repeat_bias: float
) -> None:
    catalogue, prior, job = world
    denoiser = denoiser_for(catalogue, job.horizon, seed, repeat_bias=repeat_bias)
    expected = every_sequence(job, catalogue, denoiser, prior)
    [answer], _ = decode_several([job], SidTrie(catalogue), denoiser, prior=prior)
    found = dict(zip(map(tuple, answer.rows.tolist()), answer.scores.tolist(), strict=True))
    assert len(found) == len(answer.rows)
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.all(np.diff(answer.scores) <= 0)
    few = replace(job, k=4)
    [best], _ = decode_several([few], SidTrie(catalogue), denoiser, prior=prior)
    assert best.rows.tolist() == answer.rows[:4].tolist()
    assert answer.nfe == (job.schedule.nfe if expected else 0)


@settings(deadline=None)
@given(st.data(), st.sampled_from((*ORDERS_OF_CODES, ("random",))), seeds)
def test_for_one_item_it_is_the_search_by_path(
    data: st.DataObject, orders: tuple[Order, ...], seed: int
) -> None:
    catalogue = data.draw(catalogues())
    prior = data.draw(priors(catalogue))
    drawn = data.draw(st.lists(jobs(catalogue, filtered=True), min_size=1, max_size=3))
    order = data.draw(st.sampled_from(orders))
    asked = [replace(job, ranking="path", order=order) for job in drawn]
    trie = SidTrie(catalogue)
    denoiser = denoiser_for(catalogue, 1, seed, repeat_bias=-1.0)
    expected, _ = decode(asked, trie, denoiser, prior=prior)
    found, _ = decode_several(asked, trie, denoiser, prior=prior)
    for one, other in zip(found, expected, strict=True):
        assert one.rows[:, 0].tolist() == other.rows.tolist()
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
        assert one.nfe == other.nfe


@settings(deadline=None)
@given(st.data(), st.sampled_from(ORDERS), st.integers(2, MAX_HORIZON), seeds)
def test_few_beams_give_valid_sequences_and_a_batch_gives_what_single_jobs_give(
    data: st.DataObject, order: Order, horizon: int, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    length = horizon * catalogue.num_subspaces
    drawn = [
        data.draw(jobs(catalogue, schedule=data.draw(step_sizes(length)), filtered=True))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    asked = [replace(job, ranking="path", order=order, horizon=horizon) for job in drawn]
    trie, denoiser = SidTrie(catalogue), denoiser_for(catalogue, horizon, seed, sharpness=40)
    answers, _ = decode_several(asked, trie, denoiser)
    for job, answer in zip(asked, answers, strict=True):
        allowed = set(allowed_rows(job, catalogue))
        possible = np.prod([max(0.0, len(allowed) - slot) for slot in range(horizon)])
        assert answer.rows.shape[1] == horizon
        assert min(1, possible) <= len(answer.rows) <= min(job.k, possible)
        assert len(set(map(tuple, answer.rows.tolist()))) == len(answer.rows)
        for rows in answer.rows.tolist():
            assert len(set(rows)) == horizon
            assert set(rows) <= allowed
        [alone], _ = decode_several([job], trie, denoiser)
        assert alone.rows.tolist() == answer.rows.tolist()
        assert alone.scores.tolist() == answer.scores.tolist()


def test_items_that_share_a_sid_may_stand_beside_each_other_but_none_twice() -> None:
    """One SID for all items: there are as many sequences as there are orders of them."""
    catalogue = catalogue_of([[1, 2]] * 4, 3)
    denoiser = denoiser_for(catalogue, 4, 0)
    job = replace(
        job_of(schedule=Schedule((1,) * 8), k=100, beam_width=100, ranking="path"), horizon=4
    )
    [answer], _ = decode_several([job], SidTrie(catalogue), denoiser)
    assert answer.rows.tolist() == [list(rows) for rows in permutations(range(4))]
    five = replace(job, schedule=Schedule((5, 5)), horizon=5)
    [nothing], _ = decode_several([five], SidTrie(catalogue), denoiser_for(catalogue, 5, 0))
    assert (nothing.rows.shape, nothing.nfe) == ((0, 5), 0)


def test_slots_that_want_the_same_items_share_them_out() -> None:
    """Every slot has the same favourites: in one call, the best five come first, in each order."""
    catalogue = catalogue_of([[row] for row in range(60)], 60)
    log_probs = np.linspace(-1, -3, 60, dtype=np.float32)

    class Alike(HashedDenoiser):
        def denoise(self, memory: Any, partial_sids: Any, positions: Any) -> Any:
            return np.broadcast_to(log_probs, (*positions.shape, 60)).copy()

    alike = Alike(1, 60, horizon=5)
    for steps in ((5,), (1, 1, 1, 1, 1), (2, 3)):
        job = job_of(schedule=Schedule(steps), k=100, beam_width=100, ranking="path")
        [answer], _ = decode_several([replace(job, horizon=5)], SidTrie(catalogue), alike)
        assert len(answer.rows) == 100
        items = {tuple(sorted(rows)) for rows in answer.rows.tolist()}
        assert all(len(set(own)) == 5 for own in items)
        assert answer.rows[0].tolist() == [0, 1, 2, 3, 4]
        assert len(steps) > 1 or items == {(0, 1, 2, 3, 4)}
        assert len(set(map(tuple, answer.rows.tolist()))) == 100


@settings(deadline=None)
@given(st.data(), seeds)
def test_excluding_and_filtering_equal_a_catalogue_without_the_other_rows(
    data: st.DataObject, seed: int
) -> None:
    catalogue = data.draw(catalogues())
    kept = data.draw(filters(catalogue).filter(len))
    schedule = data.draw(step_sizes(2 * catalogue.num_subspaces))
    job = replace(job_of(schedule=schedule, k=9, beam_width=9, ranking="path"), horizon=2)
    others = np.setdiff1d(np.arange(catalogue.num_items), kept).astype(np.int32)
    ways = [
        (catalogue, replace(job, allowed=np.array(kept, np.int32))),
        (catalogue, replace(job, excluded=others)),
        (catalogue_of(catalogue.codes[kept], catalogue.num_codes), job),
    ]
    answers: list[Decoded] = []
    for one, asked in ways:
        denoiser = denoiser_for(one, 2, seed)
        answers += decode_several([asked], SidTrie(one), denoiser)[0]
    assert answers[0].rows.tolist() == answers[1].rows.tolist()
    assert answers[0].rows.tolist() == [[kept[row] for row in rows] for rows in answers[2].rows]
    assert answers[0].scores.tolist() == answers[2].scores.tolist()


def test_the_prior_of_a_later_slot_is_that_of_an_older_history() -> None:
    catalogue = catalogue_of([[row // 3, row % 3] for row in range(9)], 3)
    neighbours = np.array([[(row + 1) % 9] for row in range(9)], np.int32)
    prior = NeighbourPrior(
        neighbours, np.ones((9, 1), np.float16), 5, decay=0.5, scale=0.25, weight=3.0
    )
    flat = denoiser_for(catalogue, 2, 0, sharpness=0.0)
    schedule = Schedule((1, 1, 1, 1))
    job = job_of(schedule=schedule, history=[3], k=80, beam_width=80, ranking="path")
    [answer], _ = decode_several([replace(job, horizon=2)], SidTrie(catalogue), flat, prior=prior)
    assert answer.rows[0].tolist() == [4, 0]  # then any other item
    found = dict(zip(map(tuple, answer.rows.tolist()), answer.scores.tolist(), strict=True))
    base = 4 * np.log(1 / 3)
    assert found[4, 0] == pytest.approx(base + 3 * np.log1p(1 / 0.25), abs=1e-3)
    assert found[0, 4] == pytest.approx(base + 3 * np.log1p(0.5 / 0.25), abs=1e-3)


def test_the_decoder_takes_jobs_of_one_horizon_and_refuses_what_has_no_meaning() -> None:
    catalogue = catalogue_of([[row // 3, row % 3] for row in range(9)], 3)
    decoder = Decoder(SidTrie(catalogue), denoiser_for(catalogue, 2, 0))
    job = job_of(schedule=Schedule((2, 2)), history=[3], k=5, ranking="path")
    several = replace(job, horizon=2)
    seen: list[tuple[int, int]] = []
    answers, timings = decoder.decode(
        [several, replace(several, k=0), several],
        lambda place, answer, _: seen.append((place, len(answer.rows))),
    )
    assert sorted(seen) == [(0, 5), (1, 0), (2, 5)]
    assert answers[0].rows.tolist() == answers[2].rows.tolist()
    assert min(timings.encode_s, timings.denoise_s, timings.search_s) > 0
    [cancelled], _ = decoder.decode([replace(several, is_cancelled=lambda: True)])
    assert cancelled.cancelled
    for wrong, said in (
        ({"ranking": "rows"}, "ranked by path"),
        ({"finish_rows": 5}, "ranked by path"),
        ({"explain": True}, "unexplained"),
        ({"schedule": Schedule((1, 1))}, "horizon \\* num_subspaces"),
        ({"horizon": 6, "schedule": Schedule((12,))}, "between 1 and 5"),
        ({"beam_width": 0}, "beam_width"),
        ({"excluded": np.array([9], np.int32)}, "below 9"),
    ):
        with pytest.raises(ValueError, match=said):
            decoder.decode([replace(several, **wrong)])
    with pytest.raises(ValueError, match="one horizon"):
        decoder.decode([several, job])
    with pytest.raises(ValueError, match="num_subspaces positions"):
        decoder.decode([job, several])
