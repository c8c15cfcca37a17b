"""A decoder is `decode` with its fields as arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from worlds import catalogue_of, job_of

from service.decoding.beam import decode
from service.decoding.decoder import Decoder
from service.decoding.neighbours import NeighbourPrior
from service.decoding.schedule import Schedule
from service.decoding.trie import SidTrie

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


@pytest.mark.parametrize(
    "fields", [{}, {"ranking": "path"}, {"prior": PRIOR}, {"confidence": "random"}]
)
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
