"""A decoder is `decode` with its fields as arguments; items come and go without disturbing it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogue_of, codebook_of, job_of, jobs, of_rows, priors

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.catalogue.trie import SidTrie
from service.decoding.decoder import Decoder
from service.decoding.job import Job
from service.decoding.schedule import Schedule
from service.decoding.search.beam_search import decode

RANDOM = np.random.default_rng(0)
TRIE = SidTrie(catalogue_of(RANDOM.integers(0, 5, (60, 4)), num_codes=5))
PRIOR = NeighbourPrior(
    RANDOM.integers(0, 60, (60, 3)).astype(np.int32),
    RANDOM.random((60, 3)).astype(np.float16),
    history_length=3,
    decay=0.7,
    scale=0.1,
    weight=2.0,
)
BATCH = [job_of(schedule=Schedule((1, 1, 2)), history=[row, 7], beam_width=4) for row in range(5)]


@pytest.mark.parametrize("fields", [{}, {"prior": PRIOR}])
def test_a_decoder_decodes_with_its_fields(fields: dict[str, Any]) -> None:
    denoiser = HashedDenoiser(4, 5, repeat_bias=-1.0)
    plain = Decoder(TRIE, denoiser)
    found, timings = replace(plain, **fields).decode(BATCH)
    expected, _ = decode(BATCH, TRIE, denoiser, **fields)
    assert min(timings.encode_s, timings.denoise_s, timings.search_s) > 0
    for answer, other in zip(found, expected, strict=True):
        assert answer.rows.tolist() == other.rows.tolist()
        assert answer.scores.tolist() == other.scores.tolist()
    others, _ = plain.decode(BATCH)
    same = [
        ours.rows.tolist() == theirs.rows.tolist()
        for ours, theirs in zip(found, others, strict=True)
    ]
    assert all(same) == (not fields)


def answers_of(decoder: Decoder, batch: Sequence[Job]) -> list[tuple[list[int], list[float]]]:
    return [(found.rows.tolist(), found.scores.tolist()) for found in decoder.decode(batch)[0]]


def assert_same_answers(decoder: Decoder, expected: Decoder, batch: Sequence[Job]) -> None:
    assert answers_of(decoder, batch) == answers_of(expected, batch)


@st.composite
def decoders(draw: st.DrawFn, vector_dims: int) -> Decoder:
    """A world of three subspaces and four codes, crowded, with a prior or without."""
    random, num_items = np.random.default_rng(draw(st.integers(0, 999))), draw(st.integers(1, 25))
    vectors = random.integers(-2, 3, (num_items, vector_dims)).astype(np.float16)
    catalogue = catalogue_of(random.integers(0, 4, (num_items, 3)), 4, vectors)
    return Decoder(
        SidTrie(catalogue),
        HashedDenoiser(3, 4, repeat_bias=draw(st.sampled_from([0.0, -1.5]))),
        draw(st.none() | priors(catalogue)),
    )


@settings(deadline=None)
@given(data=st.data(), sees_vectors=st.booleans())
def test_a_decoder_that_grew_answers_as_one_from_scratch(
    data: st.DataObject, sees_vectors: bool
) -> None:
    codebook = codebook_of(num_subspaces=3, num_codes=4, vector_dims=8, embedding_dims=5)
    old = data.draw(decoders(vector_dims=8 if sees_vectors else 0))
    catalogue, prior, num_new = old.trie.catalogue, old.prior, data.draw(st.integers(0, 12))
    embeddings = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(num_new, 5))
    item_ids = [f"new-{row}" for row in range(num_new)]
    grown = old.with_items(item_ids, embeddings, codebook)

    known = catalogue.vectors if sees_vectors else codebook.vectors_with(catalogue.codes)
    vectors, alike = codebook.vectors_of(
        embeddings, known[: np.count_nonzero(catalogue.popularity)]
    )
    seen = vectors[:, : catalogue.vectors.shape[1]].astype(np.float16)
    whole = Catalogue(
        (*catalogue.item_ids, *item_ids),
        np.concatenate((catalogue.codes, codebook.codes_of(vectors))),
        4,
        np.concatenate((catalogue.popularity, np.zeros(num_new, np.int64))),
        np.concatenate((catalogue.vectors, seen)),
    )
    if prior is not None:
        prior = prior.with_rows(alike)
    expected = replace(old, trie=SidTrie(whole), prior=prior)
    batch = data.draw(st.lists(jobs(whole), min_size=1, max_size=3))
    assert_same_answers(grown, expected, batch)
    # every item can be found
    everything = job_of(schedule=Schedule((1, 2)), k=99, beam_width=99)
    [(rows, _)] = answers_of(grown, [everything])
    assert sorted(rows) == list(range(whole.num_items))


@settings(deadline=None)
@given(data=st.data())
def test_a_decoder_that_shrank_answers_as_one_from_scratch(data: st.DataObject) -> None:
    old = data.draw(decoders(vector_dims=2))
    catalogue, prior = old.trie.catalogue, old.prior
    removed = data.draw(st.sets(st.integers(0, catalogue.num_items - 1)))
    kept = [row for row in range(catalogue.num_items) if row not in removed]
    removed_ids = [catalogue.item_ids[row] for row in removed]
    if not kept:
        with pytest.raises(ValueError, match="no items"):
            old.without_items(removed_ids)
        return
    shrunk = old.without_items([*removed_ids, "unknown"])
    if prior is not None:  # neighbours that are left, in their order, then nothing
        pairs = [
            [
                (kept.index(other), affinity)
                for other, affinity in zip(
                    prior.neighbours[row].tolist(), prior.affinities[row].tolist(), strict=True
                )
                if other not in removed
            ]
            for row in kept
        ]
        width = prior.neighbours.shape[1]
        filled = np.array([each + [(0, 0.0)] * (width - len(each)) for each in pairs])
        filled = filled.reshape(len(kept), width, 2)
        prior = replace(
            prior,
            neighbours=filled[..., 0].astype(np.int32),
            affinities=filled[..., 1].astype(np.float16),
        )
    whole = of_rows(catalogue, kept)
    expected = replace(old, trie=SidTrie(whole), prior=prior)
    batch = data.draw(st.lists(jobs(whole), min_size=1, max_size=3))
    assert_same_answers(shrunk, expected, batch)


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    decoder = Decoder(TRIE, HashedDenoiser(4, 5), prior=PRIOR)
    codebook = codebook_of(num_subspaces=4, num_codes=5, vector_dims=8, embedding_dims=5)
    embeddings = np.ones((2, 5))
    with pytest.raises(ValueError, match="one embedding per item"):
        decoder.with_items(["new"], embeddings, codebook)
    with pytest.raises(ValueError, match="in the catalogue already"):
        decoder.with_items(["new", "item-0003"], embeddings, codebook)
    with pytest.raises(ValueError, match="takes no embeddings"):
        decoder.with_items(["new", "newer"], embeddings, replace(codebook, content=None))
    assert decoder.without_items(["gone"]) is decoder
    grown = decoder.with_items(["new", "newer"], embeddings, codebook)
    assert grown.prior is not None
    assert grown.prior.neighbours is PRIOR.neighbours, "nothing of the prior is copied"
    assert grown.trie.catalogue.rows_of(["newer"]).tolist() == [61]


def test_an_old_decoder_answers_the_same_while_items_come_and_go() -> None:
    decoder = Decoder(TRIE, HashedDenoiser(4, 5, repeat_bias=-1.0), prior=PRIOR)
    codebook = codebook_of(num_subspaces=4, num_codes=5, vector_dims=8, embedding_dims=5)
    expected, found, stop = answers_of(decoder, BATCH), [], threading.Event()

    def serve() -> None:
        while not stop.is_set():
            found.append(answers_of(decoder, BATCH))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        random, current = np.random.default_rng(3), decoder
        for turn in range(40):
            item_ids = [f"new-{turn}-{row}" for row in range(200)]
            current = current.with_items(item_ids, random.normal(size=(200, 5)), codebook)
            current = current.without_items([*item_ids[:50], f"item-{turn:04d}"])
    finally:
        stop.set()
        thread.join()
    assert len(found) > 1
    assert all(answers == expected for answers in found)
    assert current.trie.catalogue.num_items == 60 + 40 * 149
