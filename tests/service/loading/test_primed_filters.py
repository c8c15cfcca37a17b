"""Priming compiles what a filter that comes again needs: its arrays cannot be written to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from service.batching import LatencyModel
from service.bundles import Bundle
from service.decoding import Job, Ranking, Schedule, SidTrie
from service.decoding.loops import compiled_functions
from service.loading.priming import prime


def compiled_types() -> dict[str, set[str]]:
    return {name: set(map(str, one.signatures)) for name, one in compiled_functions.items()}


@pytest.mark.parametrize("pair_bytes_per_item", [0.0, 1e6])
def test_no_filter_makes_the_kernel_compile_again(
    tmp_path: Path, pair_bytes_per_item: float
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    trie = SidTrie(bundle.catalogue, pair_bytes_per_item=pair_bytes_per_item)
    assert (trie.pairs is not None) == (pair_bytes_per_item > 0)
    bundle = replace(bundle, decoder=replace(bundle.decoder, trie=trie))
    prime(bundle, LatencyModel())
    primed = compiled_types()
    num_items, num_subspaces = bundle.catalogue.num_items, bundle.catalogue.num_subspaces
    history = np.arange(5, dtype=np.int32)
    for share in (0.02, 0.2, 0.4, 0.7, 0.95):
        rows = np.arange(round(share * num_items), dtype=np.int32)
        rows.flags.writeable = False
        jobs = [
            Job(
                history,
                3,
                Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par),
                10,
                excluded=history[:2],
                allowed=allowed,
                ranking=ranking,
            )
            for r_warm, m_par in [(0, 1), (0, 2), (0, num_subspaces), (1, 2), (1, num_subspaces)]
            for ranking in get_args(Ranking)
            for allowed in (rows, rows[1:])
        ]
        jobs += [replace(job, trace=True) for job in jobs]
        for _ in range(2):
            for answer in bundle.decoder.decode(jobs)[0]:
                assert len(answer.rows)
    assert compiled_types() == primed
