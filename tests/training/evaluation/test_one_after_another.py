"""Items one after another, against requests written out by hand, on a bundle that is served."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from logs import log_of

from service.bundles import Bundle
from training.data.splits import Windows
from training.evaluation import NOT_FOUND, one_after_another

STORE = Path(__file__).resolve().parents[3] / "models_store" / "demo-tiger"


def test_items_one_after_another_are_the_best_pairs_of_two_rounds_of_requests() -> None:
    [version] = [folder for folder in STORE.iterdir() if (folder / "manifest.json").exists()]
    bundle = Bundle.load(version)
    decoding = bundle.manifest.decoding.wide_enough(10)
    num_subspaces = bundle.catalogue.num_subspaces
    rows = np.random.default_rng(3).choice(bundle.catalogue.num_items, (6, 9), replace=False)
    histories = [user[:5].astype(np.int32) for user in rows]

    def asked(history: np.ndarray) -> list[tuple[float, int]]:
        schedule = decoding.schedule(num_subspaces)
        job = decoding.job(history, 10, schedule, excluded=history)
        [answer], _ = bundle.decoder.decode([job])
        assert answer.nfe == num_subspaces
        return list(zip(answer.scores.tolist(), answer.rows.tolist(), strict=True))

    best = []
    for history in histories:
        pairs = [
            (first_score + score, first, second)
            for first_score, first in asked(history)
            for score, second in asked(np.append(history, np.int32(first)))
        ]
        best.append(sorted(pairs, key=lambda pair: -pair[0])[:10])
    # Every user holds out another one of their ten pairs: the first, the third, and so on.
    held_out = [best[user][2 * user % 10][1:] for user in range(5)]
    never = set(range(bundle.catalogue.num_items))
    never -= {row for pair in best[5] for row in pair[1:]} | set(histories[5].tolist())
    held_out.append((min(never), max(never)))
    log = log_of(
        [[*history.tolist(), *pair] for history, pair in zip(histories, held_out, strict=True)],
        bundle.catalogue.num_items,
    )
    windows = Windows(
        log.rows, np.arange(6, dtype=np.int32), log.indptr[:-1], log.indptr[1:].astype(np.int64) - 2
    )
    found = one_after_another(windows, bundle.decoder, 2, decoding, batch=4, exclude_seen=True)
    assert found.nfe == 2 * num_subspaces
    for user, slot in product(range(6), range(2)):
        places = [
            place
            for place, pair in enumerate(best[user], 1)
            if pair[1 + slot] == held_out[user][slot]
        ]
        assert found.places[user, slot] == (places[0] if places else NOT_FOUND)
    assert (found.places[5] == NOT_FOUND).all()
    assert (found.places[:5] <= 10).all()
    for pair in (pair[1:] for user in best for pair in user):
        assert len(set(pair)) == 2, "what came first is excluded from what comes next"
