"""What is learnt: which sequences a minibatch becomes, and which loss of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from logs import log_of

from service.decoding import Catalogue, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Split, Windows
from training.families.maskgr.causal_objective import CausalObjective
from training.families.maskgr.masking import mask_one_item
from training.families.maskgr.objective import MaskGRObjective, Sequences
from training.fitting.training_loop import Trainer
from training.preset import load_config

NUM_ITEMS, L, V, LENGTH = 30, 3, 5, 4
HISTORIES = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14], [20], [21, 22, 23, 24, 25]]


def _trie() -> SidTrie:
    codes = np.random.default_rng(1).integers(0, V, (NUM_ITEMS, L)).astype(np.uint16)
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 6)).astype(np.float16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    return SidTrie(Catalogue(item_ids, codes, V, np.zeros(NUM_ITEMS, np.int64), vectors))


def _split(repeat: int = 1) -> Split:
    train = log_of(HISTORIES * repeat, NUM_ITEMS)
    nobody = Windows(train.rows, np.empty(0, np.int32), *np.empty((2, 0), np.int64))
    return Split(train, train, train, nobody, nobody)


def _trainer(options: dict[str, Any], repeat: int = 1, **fit: Any) -> Trainer:
    torch.manual_seed(0)
    model = ModelConfig(
        family="maskgr",
        width=16,
        num_heads=2,
        encoder_layers=1,
        history_length=LENGTH,
        dropout=0,
        options=options,
    )
    config = FitConfig(epochs=1, threads=1, bf16=False, **fit)
    return Trainer(_split(repeat), _trie(), model, MaskingConfig(), config)


def _objective(trainer: Trainer) -> MaskGRObjective:
    assert isinstance(trainer.objective, MaskGRObjective)
    return trainer.objective


def _drawn(options: dict[str, Any], repeat: int) -> Sequences:
    objective = _objective(_trainer(options, repeat))
    return objective.draw(np.arange(len(objective.segments)), torch.Generator().manual_seed(3))


def _items(sequences: Sequences) -> list[tuple[int, ...]]:
    pairs = zip(sequences.rows, sequences.is_item, strict=True)
    return [tuple(rows[is_item].tolist()) for rows, is_item in pairs]


def test_published_sequences_are_whole_segments_with_masks_anywhere() -> None:
    sequences = _drawn({"target_share": 0.0}, 200)
    assert sequences.whole.all()
    found = set(_items(sequences))
    assert {(1, 2, 3), (4, 5), (6, 7, 8, 9, 10), (21, 22, 23, 24, 25)} <= found
    assert all(1 < len(items) <= LENGTH + 1 for items in found)
    assert not any(20 in items for items in found)  # nothing comes before or after it
    assert set(range(6, 15)) == {item for items in found for item in items if 6 <= item < 15}
    assert not sequences.masked[~sequences.is_item].any()
    assert (sequences.rows[~sequences.is_item] == NUM_ITEMS).all()
    assert sequences.is_item[:, -1].all()  # filler is at the start
    of_items = sequences.masked[sequences.is_item].double()
    assert float(of_items.mean()) == pytest.approx(0.5, abs=0.02)


def test_the_others_have_masks_in_their_last_item_and_end_after_any_target() -> None:
    sequences = _drawn({"target_share": 1.0}, 200)
    assert not sequences.whole.any()
    assert not sequences.masked[:, :-1].any()
    assert sequences.masked[:, -1].any(dim=1).all()
    found = _items(sequences)
    shares = {
        items: sum(one == items for one in found) / 200 for items in {(1, 2), (1, 2, 3), (4, 5)}
    }
    assert shares == pytest.approx({(1, 2): 0.5, (1, 2, 3): 0.5, (4, 5): 1}, abs=0.15)
    assert {items[-1] for items in found} == {2, 3, 5, *range(7, 15), *range(22, 26)}
    is_full = sequences.masked[:, -1].all(dim=1).double()  # 4 of 5 by default, and a third
    assert float(is_full.mean()) == pytest.approx(0.8 + 0.2 / L, abs=0.05)
    share = float(_drawn({"target_share": 0.3}, 200).whole.double().mean())
    assert share == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("attention", ["prefix", "full"])
@pytest.mark.parametrize(("position", "over_rows"), [(1.0, 0.0), (0.0, 2.0), (0.5, 1.5)])
def test_the_loss_is_the_weighted_sum_written_out(
    attention: str, position: float, over_rows: float
) -> None:
    """Each sequence goes through the network by itself, without filler."""
    trainer = _trainer(
        {"attention": attention}, position_weight=position, catalogue_weight=over_rows
    )
    objective, model, catalogue = _objective(trainer), trainer.model, trainer.trie.catalogue
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.repeat_bias.fill_(0.7)
    minibatch = np.arange(len(objective.segments))
    for seed in range(3):
        found = objective.loss(minibatch, 0.0, torch.Generator().manual_seed(seed))
        drawn = objective.draw(minibatch, torch.Generator().manual_seed(seed))
        expected = 0.0
        for chosen in (drawn.whole, ~drawn.whole):
            total = mass = of_rows = 0.0
            num_rows = 0
            for i in chosen.nonzero()[:, 0].tolist():
                rows = drawn.rows[i][drawn.is_item[i]]
                masked = drawn.masked[i][drawn.is_item[i]]
                true = torch.from_numpy(catalogue.codes[rows].astype(np.int64))
                given = torch.from_numpy(catalogue.vectors[rows]).float()
                given[masked.any(dim=1)] = 0
                given[-1] = 0
                logits = model.logits(
                    model.states(
                        torch.where(masked, V, true)[None],
                        given[None],
                        torch.ones(1, len(rows), dtype=torch.bool),
                    )
                )[0].detach()
                losses = -logits.log_softmax(dim=-1).gather(-1, true[..., None])[..., 0]
                total += float(drawn.weights[i] * losses[masked].sum())
                mass += float(drawn.weights[i] * masked.sum())
                if masked[-1].any():
                    num_rows += 1
                    of_rows += _row_loss(catalogue, logits[-1], rows, masked[-1], objective, i)
            share = float(chosen.double().mean())
            expected += share * position * (total / mass if mass else 0)
            expected += share * over_rows * (of_rows / num_rows if num_rows else 0)
        assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_with_causal_attention_every_target_of_a_segment_is_learnt(dropout: float) -> None:
    """Each goes through the network by itself, behind the items before it."""
    trainer = _trainer(
        {"attention": "causal"}, position_weight=0.5, catalogue_weight=1.5, history_dropout=dropout
    )
    objective, model, catalogue = trainer.objective, trainer.model, trainer.trie.catalogue
    assert isinstance(objective, CausalObjective)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.repeat_bias.fill_(0.7)
    segments = objective.segments
    minibatch = np.arange(len(segments))
    found = objective.loss(minibatch, 0.0, torch.Generator().manual_seed(5)).detach()
    targets = [
        (segment, place)
        for segment in minibatch.tolist()
        for place in range(int(segments.firsts[segment]), int(segments.ends[segment]))
    ]
    assert len(targets) == sum(len(one) - 1 for one in HISTORIES)
    generator = torch.Generator().manual_seed(5)
    masked, weights = mask_one_item(len(targets), L, objective.full_share, generator)
    hears = torch.rand(len(segments), generator=generator) >= dropout
    assert hears.all() == (dropout == 0)
    total = mass = of_rows = 0.0
    for (segment, place), mask, weight in zip(targets, masked, weights, strict=True):
        start = int(segments.starts[segment]) if hears[segment] else place
        rows = segments.rows[start : place + 1].astype(np.int64)
        true = torch.from_numpy(catalogue.codes[rows].astype(np.int64))
        partial = true.clone()
        partial[-1][mask] = V
        given = torch.from_numpy(catalogue.vectors[rows]).float()
        given[-1] = 0
        there = torch.ones(1, len(rows), dtype=torch.bool)
        logits = model.logits(model.states(partial[None], given[None], there))[0, -1].detach()
        losses = -logits.log_softmax(dim=-1).gather(-1, true[-1][:, None])[:, 0]
        total += float(weight * losses[mask].sum())
        mass += float(weight * mask.sum())
        scores = torch.stack(
            [
                logits[torch.arange(L), codes]
                for codes in torch.from_numpy(catalogue.codes.astype(np.int64))
            ]
        )[:, mask].sum(dim=1)
        seen = segments.rows[int(segments.begins[segment]) : place].tolist() * bool(hears[segment])
        scores[list(set(seen))] += 0.7
        fits = (
            torch.from_numpy(catalogue.codes.astype(np.int64))[:, ~mask] == true[-1][~mask]
        ).all(dim=1)
        of_rows += float(scores[fits].logsumexp(0) - scores[rows[-1]])
    expected = 0.5 * total / mass + 1.5 * of_rows / len(targets)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def _row_loss(
    catalogue: Catalogue,
    logits: torch.Tensor,
    rows: torch.Tensor,
    masked: torch.Tensor,
    objective: MaskGRObjective,
    segment: int,
) -> float:
    """-log of the target's share among compatible rows; rows: of the sequence."""
    target, segments = int(rows[-1]), objective.segments
    begin = int(segments.begins[segment])
    last = begin + segments.rows[begin:].tolist().index(target)  # no user has an item twice
    history = set(segments.rows[begin:last].tolist())
    scores = {}
    for row in range(NUM_ITEMS):
        codes = catalogue.codes[row].astype(int)
        if all(masked[p] or codes[p] == catalogue.codes[target, p] for p in range(L)):
            score = sum(float(logits[p, codes[p]]) for p in range(L) if masked[p])
            scores[row] = score + 0.7 * (row in history)
    return math.log(sum(map(math.exp, scores.values()))) - scores[target]


def test_the_papers_loss_alone_teaches_no_repeat_bias() -> None:
    for weights, is_learnt in (((1.0, 0.0), False), ((1.0, 1.0), True)):
        position, over_rows = weights
        trainer = _trainer({}, position_weight=position, catalogue_weight=over_rows)
        for _ in range(3):
            trainer.step(np.arange(len(_objective(trainer).segments)))
        assert (float(trainer.model.repeat_bias.detach()) != 0) == is_learnt


def test_vectors_do_not_give_masked_codes_away() -> None:
    """What is computed does not depend on vectors of items with a mask, nor on the last one's."""
    trainer = _trainer({"target_share": 0.0}, position_weight=1, catalogue_weight=0)
    objective = _objective(trainer)
    minibatch = np.array([2])  # the first segment of the longest history
    for seed in range(100):
        drawn = objective.draw(minibatch, torch.Generator().manual_seed(seed))
        rows, hidden = drawn.rows[0], drawn.masked[0].any(dim=1)
        hidden[-1] = True
        if drawn.masked.any() and 1 < int(hidden.sum()) < len(rows):
            break
    else:
        pytest.fail("no sequence has items with and without masks")

    def loss() -> float:
        return float(objective.loss(minibatch, 0, torch.Generator().manual_seed(seed)).detach())

    before = loss()
    objective.vectors[rows[hidden]] += 3
    assert loss() == before
    objective.vectors[rows[~hidden]] += 3
    assert loss() != before


def test_the_published_network_has_the_published_sizes_and_can_be_trained() -> None:
    config = load_config("maskgr-paper", [])
    assert (config.fit.catalogue_weight, config.model.options["target_share"]) == (0, 0)
    codes = np.random.default_rng(0).integers(0, 256, (NUM_ITEMS, 4)).astype(np.uint16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    vectors = np.random.default_rng(1).normal(size=(NUM_ITEMS, 16)).astype(np.float16)
    popularity = np.zeros(NUM_ITEMS, np.int64)
    catalogue = Catalogue(item_ids, codes, 256, popularity, vectors, content_dims=8)
    fit = config.fit.model_copy(update={"epochs": 1, "threads": 1})
    torch.manual_seed(0)
    trainer = Trainer(_split(), SidTrie(catalogue), config.model, config.masking, fit)
    layers = [p for name, p in trainer.model.named_parameters() if name.startswith("layers")]
    matrices = 4 * 128 * 128 + 2 * 128 * 3072
    biases_and_norms = 4 * 128 + 3072 + 128 + 4 * 128
    assert sum(p.numel() for p in layers) == 8 * (matrices + biases_and_norms)
    minibatch = np.arange(len(_objective(trainer).segments))
    losses = [trainer.step(minibatch) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    trainer.check_finite()
