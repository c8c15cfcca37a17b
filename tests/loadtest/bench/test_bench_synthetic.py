"""The synthetic catalogue resembles a real one, the random network a trained one."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.bench.synthetic import (
    NumberedIds,
    NumberedRows,
    RandomDenoiser,
    catalogue_of,
    code_frequencies,
    random_histories,
    synthetic_codes,
)
from service.decoding import Decoder, Histories, Job, Schedule, SidTrie

RANDOM = np.random.default_rng(5)
FREQUENCIES = code_frequencies(4, 50, RANDOM)
CATALOGUE = catalogue_of(synthetic_codes(2000, FREQUENCIES, RANDOM), 50)
HISTORIES = random_histories(6, 2000, RANDOM)


def test_ids_and_rows_belong_together() -> None:
    item_ids = NumberedIds(30)
    rows = NumberedRows(item_ids)
    assert list(item_ids) == list(rows) == [f"item-{row}" for row in range(30)]
    assert [rows[item_id] for item_id in item_ids] == list(range(30))
    assert item_ids[-1] == "item-29"
    assert item_ids[:2] == ("item-0", "item-1")
    for unknown in ("item-30", "item-07", "item-", "7", "item--1"):
        assert unknown not in rows
    assert CATALOGUE.rows_of(["item-7", "gone", "item-1999"]).tolist() == [7, 1999]
    with pytest.raises(IndexError):
        item_ids[30]


def test_codes_are_uneven_and_hang_together() -> None:
    codes = CATALOGUE.codes
    counts = np.bincount(codes[:, 0], minlength=50)
    assert counts.max() > 4 * counts.mean()
    alike = (codes[:1000, None] == codes[None, 1000:]).sum(axis=-1)
    if_independent = ((alike == 1).mean() / 4) ** 3
    assert (alike >= 3).mean() > 10 * if_independent


def test_the_same_question_has_the_same_answer_whatever_the_batch() -> None:
    denoiser = RandomDenoiser(FREQUENCIES, seed=1)
    memory = denoiser.encode(Histories.of(HISTORIES, CATALOGUE, denoiser.history_length))
    alone = denoiser.encode(Histories.of(HISTORIES[2:3], CATALOGUE, denoiser.history_length))
    assert memory[2] == alone[0]
    assert len(set(memory.tolist())) == len(HISTORIES)
    sids = RANDOM.integers(0, 51, (6, 3, 4)).astype(np.uint16)
    positions = np.broadcast_to(np.array([1, 3]), (6, 3, 2))
    log_probs = denoiser.denoise(memory, sids, positions)
    assert log_probs.shape == (6, 3, 2, 50)
    assert log_probs.dtype == np.float32
    again = denoiser.denoise(alone, sids[2:3, 1:2], positions[2:3, 1:2, 1:])
    assert np.array_equal(again[0, 0, 0], log_probs[2, 1, 1])
    distinct = {row.tobytes() for row in log_probs.reshape(-1, 50)}
    assert len(distinct) > 30, "another job, partial SID or position has other log-probs"


def test_a_few_codes_are_likely() -> None:
    denoiser = RandomDenoiser(FREQUENCIES, seed=2)
    sids = RANDOM.integers(0, 51, (1, 500, 4)).astype(np.uint16)
    positions = np.broadcast_to(np.arange(4), sids.shape)
    probabilities = np.exp(denoiser.denoise(np.zeros(1, np.uint64), sids, positions))
    assert np.allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    ordered = np.sort(probabilities, axis=-1)
    assert 0.1 < np.median(ordered[..., -1]) < 0.8
    assert np.median(ordered[..., -5:].sum(axis=-1)) > 0.5
    likeliest = probabilities.mean(axis=(0, 1))[FREQUENCIES > 1 / 50]
    assert likeliest.mean() > 1.4 / 50


@pytest.mark.parametrize("ranking", ["rows", "best", "path"])
def test_the_kernel_decodes_with_it(ranking) -> None:
    decoder = Decoder(SidTrie(CATALOGUE), RandomDenoiser(FREQUENCIES))
    jobs = [Job(history, 10, Schedule((1, 1, 2)), 20, ranking=ranking) for history in HISTORIES]
    answers, _ = decoder.decode(jobs)
    assert len({answer.rows.tobytes() for answer in answers}) == len(jobs)
    assert all(len(set(answer.rows.tolist())) == 10 for answer in answers)
