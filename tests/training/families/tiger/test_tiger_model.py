"""TIGER's network: what it may and may not see, its loss, and parity of its ONNX export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.decoding import Histories
from training.config import ModelConfig
from training.families.denoiser import TorchDenoiser
from training.families.export import PARITY_TOLERANCE, export_graphs
from training.families.tiger.model import Tiger

L, V, D = 3, 7, 4


def tiger(**settings: Any) -> Tiger:
    """Weights far from their small first values, so that every difference is visible."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, num_heads=2, encoder_layers=2, decoder_layers=2, history_length=6
    ).model_copy(update=settings)
    model = Tiger(config, num_subspaces=L, num_codes=V, vector_dims=D)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 * parameter.requires_grad)
    return model.eval()


def histories_of(lengths: list[int], padded_to: int) -> Histories:
    rng = np.random.default_rng(1)
    mask = np.arange(padded_to) < np.array(lengths)[:, None]
    codes = rng.integers(0, V, (len(lengths), padded_to, L)).astype(np.uint16)
    vectors = rng.standard_normal((len(lengths), padded_to, D)).astype(np.float16)
    codes[~mask], vectors[~mask] = V, 0
    return Histories(codes, vectors, mask)


def log_probs_of(model: Tiger, histories: Histories, sids: NDArray[Any]) -> NDArray[np.float32]:
    """At all positions: (jobs, beams, L, V)."""
    denoiser = TorchDenoiser(model)
    positions = np.broadcast_to(np.arange(L), sids.shape).copy()
    return denoiser.denoise(denoiser.encode(histories), sids.astype(np.uint16), positions)


@pytest.mark.parametrize("item_vectors", [True, False])
@pytest.mark.parametrize("tied_head", [True, False])
def test_padding_batching_and_beams_change_nothing(item_vectors: bool, tied_head: bool) -> None:
    model = tiger(item_vectors=item_vectors, tied_head=tied_head)
    lengths = [2, 0, 5]
    histories = histories_of(lengths, padded_to=6)
    sids = np.random.default_rng(2).integers(0, V + 1, (3, 4, L))
    together = log_probs_of(model, histories, sids)
    assert np.allclose(np.exp(together).sum(axis=-1), 1, atol=1e-5)
    for job, length in enumerate(lengths):
        own = Histories(*(array[job : job + 1, : max(1, length)] for array in histories))
        for beam in range(4):
            alone = log_probs_of(model, own, sids[job : job + 1, beam : beam + 1])
            assert np.allclose(alone[0, 0], together[job, beam], atol=1e-5)


def test_a_position_sees_the_history_and_the_codes_before_it_only() -> None:
    model, histories = tiger(), histories_of([4], padded_to=4)
    sids = np.array([[[1, 2, 3]]])
    before = log_probs_of(model, histories, sids)[0, 0]
    for position in range(L):
        changed = sids.copy()
        changed[..., position] = V
        after = log_probs_of(model, histories, changed)[0, 0]
        differs = np.abs(after - before).max(axis=-1) > 1e-4
        assert differs.tolist() == [other > position for other in range(L)]
    other = histories.codes.copy()
    other[0, 0, 1] = (other[0, 0, 1] + 1) % V
    after = log_probs_of(model, histories._replace(codes=other), sids)[0, 0]
    assert (np.abs(after - before).max(axis=-1) > 1e-4).all()


def test_the_age_of_an_item_matters() -> None:
    model, histories = tiger(), histories_of([3], padded_to=3)
    sids = np.full((1, 1, L), V)
    before = log_probs_of(model, histories, sids)
    turned = Histories(histories.codes[:, ::-1], histories.vectors[:, ::-1], histories.mask)
    assert np.abs(log_probs_of(model, turned, sids) - before).max() > 1e-4


def test_training_and_serving_compute_the_same() -> None:
    model, histories = tiger(), histories_of([2, 5, 1], padded_to=5)
    sids = np.random.default_rng(3).integers(0, V, (3, 1, L))
    with torch.inference_mode():
        history = model.encoded(
            torch.from_numpy(histories.codes.astype(np.int64)),
            torch.from_numpy(histories.vectors.astype(np.float32)),
            torch.from_numpy(histories.mask),
        )
        logits = model.logits(model.states(torch.from_numpy(sids[:, 0]), history))
    learnt = logits.log_softmax(dim=-1).numpy()
    assert np.allclose(learnt, log_probs_of(model, histories, sids)[:, 0], atol=1e-5)


def test_the_export_computes_the_same() -> None:
    difference = export_graphs(tiger(encoder_layers=1, decoder_layers=1)).difference
    assert difference <= PARITY_TOLERANCE
