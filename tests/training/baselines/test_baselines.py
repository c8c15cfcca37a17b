"""Baselines: ranks compared with a full sort, counts by hand, a small world, one contract for all.

Every scorer inherits the contract tests: shape, float32, finite, empty and long histories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from service.bundles.bundle import HISTORY_CAP
from service.decoding import NeighbourPrior
from training.baselines import (
    BERT4RecConfig,
    ItemKNN,
    Popularity,
    SASRecConfig,
    Scorer,
    SequentialMemory,
    SequentialRules,
    TextKNN,
    Transitions,
    WithPrior,
    fit_sequence_model,
    ranks,
)
from training.baselines.item_knn import item_cosines, nearest, recency_weights
from training.baselines.sequence.fit import untrained
from training.baselines.sequence.models import (
    CHUNK,
    GROUP,
    full_softmax_loss,
    sampled_binary_loss,
    sampled_softmax_loss,
)
from training.baselines.sequence.padded import padded_histories, training_minibatches
from training.config import NeighboursConfig
from training.data.embeddings import MOST_PAIRED
from training.data.segments import Segments
from training.data.splits import Interactions, Split, Windows, leave_last_out
from training.errors import DataError
from training.evaluation.evaluation import NOT_FOUND, popularity_ranks, recall_at
from training.fitting.neighbour_prior import fit_priors

NUM_ITEMS = 30
SMALL = {
    "width": 16,
    "num_layers": 1,
    "dropout": 0.1,
    "history_length": 6,
    "learning_rate": 1e-2,
    "minibatch": 96,
    "epochs": 12,
    "threads": 1,
}
LONGER = SMALL | {"width": 32, "dropout": 0.0, "epochs": 30, "patience": 30}
SEQUENCE_MODELS = {
    "sasrec-ce": SASRecConfig(**SMALL),
    "sasrec-sampled": SASRecConfig(**SMALL, loss="sampled", num_negatives=8),
    "sasrec-bce": SASRecConfig(**LONGER, loss="bce"),
    "bert4rec": BERT4RecConfig(**LONGER, mask_probability=0.3),
}


def _log(histories: Sequence[Sequence[int]], num_items: int) -> Interactions:
    return Interactions(
        tuple(map(str, range(len(histories)))),
        tuple(map(str, range(num_items))),
        np.cumsum([0, *map(len, histories)]),
        np.array([row for history in histories for row in history], np.int32),
    )


def _circle() -> Split:
    """Users who have the items in order: after row i comes row i + 1, after the last row 0."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, NUM_ITEMS, 120), rng.integers(3, 18, 120)
    return leave_last_out(
        _log(
            [
                ((start + np.arange(length)) % NUM_ITEMS).tolist()
                for start, length in zip(starts, lengths, strict=True)
            ],
            NUM_ITEMS,
        )
    )


class _Drawn:
    """Scores with many ties that depend only on the history."""

    name, parameters = "drawn", 0

    def __init__(self, num_values: int) -> None:
        self._num_values = num_values

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        lines = []
        for history in histories:
            rng = np.random.default_rng(history.tolist())
            lines.append(rng.integers(-self._num_values, self._num_values, NUM_ITEMS))
        return np.array(lines, np.float32)


def _sorted_ranks(
    windows: Windows, scorer: Scorer, *, k: int, exclude_seen: bool
) -> NDArray[np.int32]:
    """The oracle: sort all items of one user after the other."""
    found = []
    for window, target in enumerate(windows.targets):
        history = windows.history_of(window)
        order = np.argsort(-scorer.scores([history])[0], kind="stable").tolist()
        if exclude_seen:
            order = [row for row in order if row not in set(history.tolist())]
        within = order[:k]
        found.append(within.index(target) + 1 if target in within else NOT_FOUND)
    return np.array(found, np.int32)


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("num_values", [1, 3, 1000])
def test_ranks_are_those_of_a_full_stable_sort(num_values: int, exclude_seen: bool) -> None:
    rng = np.random.default_rng(1)
    histories = [rng.integers(0, NUM_ITEMS, length).tolist() for length in rng.integers(3, 25, 90)]
    windows = leave_last_out(_log(histories, NUM_ITEMS)).test
    seen = [windows.targets[at] in windows.history_of(at) for at in range(len(windows))]
    assert any(seen)
    assert not all(seen)
    for k in (5, NUM_ITEMS):
        found = ranks(windows, _Drawn(num_values), k=k, exclude_seen=exclude_seen, batch=32)
        wanted = _sorted_ranks(windows, _Drawn(num_values), k=k, exclude_seen=exclude_seen)
        assert found.dtype == np.int32
        assert found.tolist() == wanted.tolist()
        assert (found == NOT_FOUND)[seen].all() or not exclude_seen


def test_items_that_the_service_has_forgotten_are_not_excluded() -> None:
    for newer, found in ((HISTORY_CAP - 1, NOT_FOUND), (HISTORY_CAP, 1)):
        windows = leave_last_out(_log([[0, *[2] * newer, 0]], 3)).test
        popular = Popularity(_log([[0, 0, 1]], 3))
        assert ranks(windows, popular, exclude_seen=True).tolist() == [found]


def test_popularity_has_the_ranks_that_evaluation_gives_it() -> None:
    histories = [[0, 1, 2, 0], [0, 1, 3, 2], [0, 1, 2, 3], [0, 2, 1, 1]]  # rows by popularity
    split = leave_last_out(_log(histories, 4))
    assert np.all(np.diff(split.train.popularity()) <= 0)
    found = ranks(split.test, Popularity(split.train), k=3)
    assert found.tolist() == popularity_ranks(split.test, k=3).tolist() == [1, 3, NOT_FOUND, 2]


def test_recency_weights_by_hand() -> None:
    histories = [np.array(rows, np.int32) for rows in ([4, 0, 1, 0], [], [2])]
    weights = recency_weights(histories, 5, length=3, decay=0.5)
    assert weights.dtype == np.float32
    assert weights.toarray().tolist() == [[1.25, 0.5, 0, 0, 0], [0] * 5, [0, 0, 1, 0, 0]]


def test_item_cosines_by_hand() -> None:
    # users of 0: a b c; of 1: a b; of 2: c. The repeat of user a counts once.
    cosines = item_cosines(_log([[0, 1, 0], [1, 0], [0, 2]], 4), shrinkage=1.0).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / (np.sqrt(3 * 2) + 1)
    expected[0, 2] = expected[2, 0] = 1 / (np.sqrt(3 * 1) + 1)
    assert cosines == pytest.approx(expected)


def test_the_pairs_of_one_huge_user_are_bounded() -> None:
    log = _log([range(50_000), [0, 1], [0, 1]], 50_000)
    cosines = item_cosines(log, shrinkage=0.0)
    assert cosines.nnz == MOST_PAIRED * (MOST_PAIRED - 1) + 2
    assert cosines[[0], [1]] == pytest.approx(1)  # of these two the huge user is too old


def test_item_knn_sums_the_nearest_over_the_newest_items() -> None:
    train = _log([[0, 1, 0], [1, 0], [0, 2]], 4)
    close, far = 2 / np.sqrt(6), 1 / np.sqrt(3)
    scorer = ItemKNN(train, neighbours=1, shrinkage=0.0, history_length=2)
    assert scorer.parameters == 3  # 0 -> 1, 1 -> 0, 2 -> 0
    history = np.array([1, 0, 2], np.int32)  # 1 is too old
    assert scorer.scores([history])[0] == pytest.approx([far, close, 0, 0])
    both = ItemKNN(train, neighbours=2, shrinkage=0.0)
    assert both.scores([history])[0] == pytest.approx([close + far, close, far, 0])


def test_of_equal_neighbours_the_lower_rows_stay() -> None:
    similarities = item_cosines(_log([[0, 1, 2, 3]], 4), shrinkage=0.0)
    assert nearest(similarities, 2).toarray().tolist() == [
        [0, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]


def test_text_knn_by_hand() -> None:
    embeddings = np.array([[2, 0], [0, 3], [1, 1], [0, 0]], np.float32)
    scores = TextKNN(embeddings, decay=0.5).scores(
        [np.array(rows, np.int32) for rows in ([0], [1, 0], [3])]
    )
    profile = np.array([1, 0.5]) / np.hypot(1, 0.5)
    assert scores[0] == pytest.approx([1, 0, np.sqrt(0.5), 0])
    assert scores[1] == pytest.approx([*profile, profile.sum() * np.sqrt(0.5), 0])
    assert scores[2].tolist() == [0, 0, 0, 0]


def test_sequential_memory_by_hand() -> None:
    # one user 0 1 2, popularity 1 each: both = 1; transitions 0>1, 1>2 at distance 1, 0>2 at 2
    scorer = SequentialMemory(_log([[0, 1, 2]], 4), transition_weight=5.0, decay=0.7)
    new, two = np.array([0], np.int32), np.array([0, 1], np.int32)
    assert scorer.scores([new])[0] == pytest.approx([0, 1 + 5, 1 + 5 / 2, 0])
    assert scorer.scores([two])[0] == pytest.approx([1, 0.7 * 6, 6 + 0.7 * 3.5, 0])
    assert scorer.parameters == 6


def test_every_item_but_a_users_first_is_a_target_once() -> None:
    rng = np.random.default_rng(2)
    histories = [rng.integers(0, NUM_ITEMS, length).tolist() for length in rng.integers(1, 30, 60)]
    train = _log(histories, NUM_ITEMS)
    segments = Segments.of(train, history_length=5)
    targets = np.zeros(NUM_ITEMS, np.int64)
    for minibatch in training_minibatches(
        segments, 40, NUM_ITEMS, torch.Generator().manual_seed(0)
    ):
        rows, fresh = minibatch.rows.numpy(), minibatch.targets.numpy()
        assert rows.shape[1] <= 5 + 1
        assert (rows[~minibatch.valid.numpy()] == NUM_ITEMS).all()
        assert not fresh[:, 0].any()
        targets += np.bincount(rows[fresh], minlength=NUM_ITEMS)
    wanted = [row for history in histories for row in history[1:]]
    assert targets.tolist() == np.bincount(wanted, minlength=NUM_ITEMS).tolist()


def test_padded_histories_keep_the_newest() -> None:
    histories = [np.array(rows, np.int32) for rows in ([1, 2, 3], [], [4])]
    padded = padded_histories(histories, 2, num_items=9)
    assert padded.rows.tolist() == [[2, 3], [9, 9], [4, 9]]
    assert padded.lengths.tolist() == [2, 0, 1]


def test_the_softmax_loss_has_the_value_and_gradients_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2 * CHUNK + 3, 8, generator=generator).requires_grad_()
    items = torch.randn(NUM_ITEMS, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, NUM_ITEMS, (len(hidden),), generator=generator)
    ours = 3 * full_softmax_loss(hidden, items, targets)
    theirs = 3 * torch.nn.functional.cross_entropy(hidden @ items.T, targets)
    assert torch.allclose(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, [hidden, items]),
        torch.autograd.grad(theirs, [hidden, items]),
        strict=True,
    ):
        assert torch.allclose(mine, other, atol=1e-7)


def test_the_sampled_negative_is_never_the_target() -> None:
    items, targets = 30 * torch.eye(3), torch.arange(3)  # a logit of 900, or of 0
    losses = [
        float(sampled_binary_loss(items, items, targets, torch.Generator().manual_seed(seed)))
        for seed in range(20)
    ]
    assert losses == pytest.approx([np.log(2)] * 20, abs=1e-6)


def test_the_sampled_softmax_is_a_cross_entropy_over_target_and_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    n = GROUP + 3
    hidden, items = (torch.randn(shape, generator=generator) for shape in ((n, 8), (9, 8)))
    targets = torch.randint(9, (n,), generator=generator)
    negatives = torch.randint(9, (2, 4), generator=generator)
    by_hand = []
    for place, target in enumerate(targets):
        others = [int(row) for row in negatives[place // GROUP] if row != target]
        logits = items[[int(target), *others]] @ hidden[place]
        by_hand.append(-torch.log_softmax(logits, dim=0)[0])
    assert (negatives[0] == targets[:GROUP, None]).any()
    loss = sampled_softmax_loss(hidden, items, targets, negatives)
    assert torch.allclose(loss, torch.stack(by_hand).mean())


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_a_sequence_model_learns_a_world_that_can_be_learnt(name: str) -> None:
    split = _circle()
    scorer = fit_sequence_model(split, SEQUENCE_MODELS[name], exclude_seen=False)
    recall = recall_at(ranks(split.test, scorer), 1)
    assert recall_at(ranks(split.test, Popularity(split.train)), 1) < 0.15
    assert recall > 0.5
    best = max(scorer.epochs, key=lambda line: line["ndcg@10"])
    assert scorer.best_epoch == best["epoch"]
    assert recall_at(ranks(split.validation, scorer), 10) == best["recall@10"]


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_the_same_seed_gives_the_same_model(name: str) -> None:
    config = SEQUENCE_MODELS[name].model_copy(update={"epochs": 2})
    histories = [np.array([3, 4, 5], np.int32), np.array([7], np.int32)]
    first = fit_sequence_model(_circle(), config, exclude_seen=False)
    torch.rand(5)  # whatever else the process drew in between
    again = fit_sequence_model(_circle(), config, exclude_seen=False)
    other = fit_sequence_model(_circle(), config.model_copy(update={"seed": 8}), exclude_seen=False)
    assert np.array_equal(first.scores(histories), again.scores(histories))
    assert not np.array_equal(first.scores(histories), other.scores(histories))


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_scores_do_not_depend_on_who_is_asked_about_together(name: str) -> None:
    scorer = untrained(SEQUENCE_MODELS[name], NUM_ITEMS)
    short, long = np.array([3, 4], np.int32), np.arange(9, dtype=np.int32)
    together = scorer.scores([short, long])
    assert together[0] == pytest.approx(scorer.scores([short])[0], abs=1e-5)
    assert together[1] == pytest.approx(scorer.scores([long[-6:]])[0], abs=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_training_pass_of_sasrec_is_asking_about_every_prefix() -> None:
    model = untrained(SEQUENCE_MODELS["sasrec-ce"], NUM_ITEMS).model
    history = np.array([5, 6, 7, 8, 2, 9], np.int32)
    prefixes = [history[:length] for length in range(1, 6)]
    by_prefix = torch.from_numpy(model.scores(prefixes))
    asked = torch.nn.functional.cross_entropy(by_prefix, torch.from_numpy(history[1:]).long())
    segments = Segments.of(_log([history.tolist()], NUM_ITEMS), 6)
    (minibatch,) = training_minibatches(segments, 9, NUM_ITEMS, torch.Generator())
    assert torch.allclose(model.eval().loss(minibatch, torch.Generator()), asked, atol=1e-5)


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(ValidationError, match="multiple"):
        SASRecConfig(width=10, num_heads=4)
    with pytest.raises(ValidationError):
        SASRecConfig(mask_probability=0.5)
    with pytest.raises(DataError, match="two training items"):
        fit_sequence_model(leave_last_out(_log([[0, 1, 2]], 3)), SEQUENCE_MODELS["bert4rec"])


def _embeddings() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(NUM_ITEMS, 4)).astype(np.float32)


def _prior() -> NeighbourPrior:
    config = NeighboursConfig()
    priors = fit_priors(_circle().train, _embeddings(), config)
    return priors[config.rarity_powers[0], config.likeness_weights[0]]


SCORERS: dict[str, Callable[[], Scorer]] = {
    "popularity": lambda: Popularity(_circle().train),
    "item_knn": lambda: ItemKNN(_circle().train),
    "text_knn": lambda: TextKNN(_embeddings()),
    "sequential_memory": lambda: SequentialMemory(_circle().train),
    "sequential_rules": lambda: SequentialRules(_circle().train),
    "transitions": lambda: Transitions(_circle().train),
    "with_prior": lambda: WithPrior(SequentialMemory(_circle().train), _prior()),
} | {name: lambda config=config: untrained(config, 30) for name, config in SEQUENCE_MODELS.items()}


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_keeps_the_contract(name: str) -> None:
    scorer = SCORERS[name]()
    assert scorer.name
    assert scorer.parameters > 0
    long = np.arange(50, dtype=np.int32) % NUM_ITEMS
    histories = [np.array([3], np.int32), np.empty(0, np.int32), long, long[-20:]]
    scores = scorer.scores(histories)
    assert scores.shape == (4, NUM_ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scores[2] == pytest.approx(scores[3], abs=1e-5)
    assert scorer.scores([]).shape == (0, NUM_ITEMS)
    assert scorer.scores([np.empty(0, np.int32)]).shape == (1, NUM_ITEMS)
    if name != "popularity":  # that never looks at a history
        assert not scores[1].any()
