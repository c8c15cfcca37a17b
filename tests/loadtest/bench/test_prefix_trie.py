"""The any-order search and a left-to-right one over a prefix trie, where both must agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogue_of, catalogues, job_of, jobs, schedules

from loadtest.bench.prefix_trie import PrefixTrie, decode_left_to_right
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.trie import SidTrie
from service.decoding.job import Decoded, Job, Order
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode

seeds = st.integers(0, 2**32 - 1)


class NextDenoiser(HashedDenoiser):
    wants_all_masks = False


def decode_by_path(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, order: Order
) -> Decoded:
    job = replace(job, ranking="path", order=order)
    [decoded], _ = decode([job], SidTrie(catalogue), denoiser)
    return decoded


@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_with_room_for_every_sid_any_order_gives_the_same(data: st.DataObject, seed: int) -> None:
    """The network ignores the partial SID, so no order is better."""
    catalogue = data.draw(catalogues())
    schedule = data.draw(schedules(catalogue.num_subspaces))
    history = data.draw(st.lists(st.integers(0, catalogue.num_items - 1), max_size=5))
    job = job_of(schedule=schedule, history=history, k=40, beam_width=catalogue.num_items)
    denoiser = NextDenoiser(
        catalogue.num_subspaces, catalogue.num_codes, seed=seed, sees_partial_sid=False
    )
    found, _ = decode_left_to_right(job, PrefixTrie(catalogue), denoiser)
    expected = decode_by_path(job, catalogue, denoiser, "confidence")
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert len(found.rows) == catalogue.num_items


@settings(deadline=None)
@given(data=st.data(), seed=seeds)
def test_from_left_to_right_the_searches_are_one(data: st.DataObject, seed: int) -> None:
    catalogue = data.draw(catalogues())
    schedule = Schedule((1,) * catalogue.num_subspaces)
    drawn = data.draw(jobs(catalogue, schedule=schedule, max_width=6))
    job = Job(drawn.history, drawn.k, schedule, drawn.beam_width)
    denoiser = NextDenoiser(catalogue.num_subspaces, catalogue.num_codes, seed=seed)
    found, timings = decode_left_to_right(job, PrefixTrie(catalogue), denoiser)
    expected = decode_by_path(job, catalogue, denoiser, "left_to_right")
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.nfe == expected.nfe == schedule.nfe
    assert min(timings.encode_s, timings.denoise_s, timings.search_s) > 0


@settings(deadline=None)
@given(catalogue=catalogues())
def test_the_trie_holds_the_prefixes_of_the_catalogue(catalogue: Catalogue) -> None:
    trie = PrefixTrie(catalogue)
    prefixes: list[tuple[int, ...]] = [()]
    for level in range(catalogue.num_subspaces):
        nodes, parent = trie.children(level, np.arange(len(prefixes)))
        assert nodes.tolist() == list(range(len(nodes))), "every node has one parent"
        pairs = zip(parent, trie.codes[level][nodes], strict=True)
        prefixes = [(*prefixes[above], int(code)) for above, code in pairs]
        sids = catalogue.codes[:, : level + 1].tolist()
        assert prefixes == sorted({tuple(sid) for sid in sids})
    places, parent = trie.children(catalogue.num_subspaces, np.arange(len(prefixes)))
    of_row = {int(trie.rows[p]): prefixes[above] for p, above in zip(places, parent, strict=True)}
    assert of_row == {row: tuple(sid) for row, sid in enumerate(catalogue.codes.tolist())}


def test_rows_cannot_be_left_out() -> None:
    catalogue = catalogue_of([[0], [1]], 2)
    job = job_of(schedule=Schedule((1,)), excluded=[1])
    with pytest.raises(ValueError, match="cannot leave rows out"):
        decode_left_to_right(job, PrefixTrie(catalogue), HashedDenoiser(1, 2))
