"""The encoder cache: the same answers, and the encoder sees only what the cache does not have."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from worlds import catalogue_of, codebook_of, job_of, of_rows

from service.decoding.catalogue.trie import SidTrie
from service.decoding.decoder import Decoder
from service.decoding.job import Job, Timings
from service.decoding.network.denoiser import Histories
from service.decoding.network.encoder_cache import EncoderCache
from service.decoding.schedule import Schedule

NUM_ITEMS, HISTORY_LENGTH = 30, 5
RANDOM = np.random.default_rng(0)
TRIE = SidTrie(catalogue_of(RANDOM.integers(0, 4, (NUM_ITEMS, 3)), num_codes=4))
Answers = list[tuple[list[int], list[float]]]


class CountingDenoiser(HashedDenoiser):
    """Notes how many histories each call of the encoder gets."""

    def __init__(self) -> None:
        super().__init__(3, 4, history_length=HISTORY_LENGTH)
        self.encoded: list[int] = []

    def encode(self, histories: Histories) -> NDArray[np.uint64]:
        self.encoded.append(len(histories.codes))
        return super().encode(histories)


def cached(max_entries: int) -> tuple[Decoder, CountingDenoiser]:
    denoiser = CountingDenoiser()
    return Decoder(TRIE, denoiser, encoder_cache=max_entries), denoiser


def jobs_of(histories: Sequence[Sequence[int]]) -> list[Job]:
    """One job each; the more items, the more steps."""
    schedules = Schedule((3,)), Schedule((1, 2)), Schedule((1, 1, 1))
    return [
        job_of(schedule=schedules[len(history) % 3], history=history, k=5, beam_width=6)
        for history in histories
    ]


def answers_of(decoder: Decoder, jobs: Sequence[Job]) -> tuple[Answers, Timings]:
    decoded, timings = decoder.decode(jobs)
    return [(one.rows.tolist(), one.scores.tolist()) for one in decoded], timings


histories = st.lists(st.integers(0, 3), max_size=7)


@settings(deadline=None)
@given(
    batches=st.lists(st.lists(histories, min_size=1, max_size=6), min_size=1, max_size=8),
    max_entries=st.integers(1, 8),
)
def test_answers_are_those_without_a_cache(
    batches: list[list[list[int]]], max_entries: int
) -> None:
    """Beside a dictionary that says what must be encoded."""
    decoder, denoiser = cached(max_entries)
    plain, kept = Decoder(TRIE, HashedDenoiser(3, 4, history_length=HISTORY_LENGTH)), OrderedDict()
    for batch in batches:
        denoiser.encoded.clear()
        found, timings = answers_of(decoder, jobs_of(batch))
        assert found == answers_of(plain, jobs_of(batch))[0]
        seen = list(dict.fromkeys(tuple(history[-HISTORY_LENGTH:]) for history in batch))
        missing = [history for history in seen if history not in kept]
        for history in [*[history for history in seen if history in kept], *missing]:
            kept[history] = None
            kept.move_to_end(history)
        while len(kept) > max_entries:
            kept.popitem(last=False)
        assert denoiser.encoded == [len(missing)] * bool(missing)
        assert (timings.cache_hits, timings.cache_misses) == (
            len(batch) - len(missing),
            len(missing),
        )


def test_only_what_is_missing_is_encoded_and_only_once() -> None:
    decoder, denoiser = cached(10)
    for batch, encoded in (
        ([[1], [2, 3]], [2]),
        ([[2, 3], [1], [2, 3]], []),
        ([[4], [1], [5], [4]], [2]),
        ([[9, 9, 9, 1, 2, 3, 4, 5], [8, 1, 2, 3, 4, 5]], [1]),  # the same newest five
        ([[1, 2]], [1]),
        ([[2, 1]], [1]),
    ):
        denoiser.encoded.clear()
        decoder.decode(jobs_of(batch))
        assert denoiser.encoded == encoded, batch


def test_without_entries_nothing_is_kept_or_counted() -> None:
    decoder, denoiser = cached(0)
    for _ in range(2):
        timings = decoder.decode(jobs_of([[1], [1]]))[1]
        assert (timings.cache_hits, timings.cache_misses) == (0, 0)
    assert denoiser.encoded == [2, 2]


def test_the_history_unused_longest_goes_first() -> None:
    cache, denoiser, asked = EncoderCache(2), CountingDenoiser(), []

    def encode(missing: Sequence[NDArray[np.int32]]) -> NDArray[np.uint64]:
        asked.extend(history.tolist() for history in missing)
        return denoiser.encode(Histories.of(missing, TRIE.catalogue, HISTORY_LENGTH))

    for row in (1, 2, 1, 3, 1, 2):  # 3 drives out 2, and 2 then 3
        cache.memory_of([np.array([row], np.int32)], denoiser, encode)
    assert asked == [[1], [2], [3], [2]]
    assert cache.num_entries == 2


def test_an_encoder_that_raises_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, denoiser = cached(5)
    expected = answers_of(decoder, jobs_of([[1]]))[0]

    def fail(histories: Histories) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as broken:
        broken.setattr(denoiser, "encode", fail)
        with pytest.raises(RuntimeError):
            decoder.decode(jobs_of([[1], [2]]))
        assert answers_of(decoder, jobs_of([[1]]))[0] == expected
    denoiser.encoded.clear()
    decoder.decode(jobs_of([[2]]))
    assert denoiser.encoded == [1]


def test_a_decoder_with_other_items_starts_an_empty_cache() -> None:
    """Its rows mean other items."""
    decoder, denoiser = cached(50)
    batch = jobs_of([[row, row + 1] for row in range(NUM_ITEMS - 3)])
    decoder.decode(batch)
    fewer = decoder.without_items(["item-0000"])
    rest = of_rows(TRIE.catalogue, range(1, NUM_ITEMS))
    expected = answers_of(Decoder(SidTrie(rest), denoiser), batch)[0]
    assert answers_of(fewer, batch)[0] == expected
    codebook = codebook_of(num_subspaces=3, num_codes=4, vector_dims=6, embedding_dims=5)
    answers = []
    for seed in range(2):  # two decoders in which the next row is another item
        embeddings = np.random.default_rng(seed).normal(size=(4, 5))
        grown = fewer.with_items(list("abcd"), embeddings, codebook)
        new = jobs_of([[NUM_ITEMS + place] for place in range(3)])
        found = answers_of(grown, new)[0]
        assert found == answers_of(replace(grown, encoder_cache=0), new)[0]
        answers.append(found)
    assert answers[0] != answers[1]


def test_threads_share_a_cache() -> None:
    """Few entries, so that histories come and go all the time."""
    decoder, _ = cached(7)
    plain = Decoder(TRIE, HashedDenoiser(3, 4, history_length=HISTORY_LENGTH))
    expected = [answers_of(plain, jobs_of([[row, 1]]))[0][0] for row in range(NUM_ITEMS)]
    counted, wrong, start = [], [], threading.Barrier(4)

    def hammer(seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()
        for _ in range(150):
            rows = np.minimum(random.geometric(0.2, random.integers(1, 6)), NUM_ITEMS) - 1
            found, timings = answers_of(decoder, jobs_of([[row, 1] for row in rows]))
            counted.append((timings.cache_hits, timings.cache_misses, len(rows)))
            if found != [expected[row] for row in rows]:
                wrong.append(rows)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(counted) == 600
    assert all(hits + misses == jobs for hits, misses, jobs in counted)
    assert sum(hits for hits, *_ in counted) > 100
    assert decoder._cache is not None
    assert decoder._cache.num_entries == 7
