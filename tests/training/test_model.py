"""The network: shapes, what it may and may not see, and parity of its ONNX export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from service.decoding.onnx_denoiser import OnnxDenoiser
from training import export
from training.config import ModelConfig
from training.errors import TrainingError
from training.model import MaskedDiffusionModel
from training.torch_denoiser import TorchDenoiser

L, V = 3, 7


def _model(**settings: Any) -> MaskedDiffusionModel:
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, num_heads=2, encoder_layers=1, decoder_layers=2, history_length=6
    ).model_copy(update=settings)
    return MaskedDiffusionModel(config, num_subspaces=L, num_codes=V).eval()


def _history(lengths: list[int], padded_to: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.arange(padded_to) < np.array(lengths)[:, None]
    codes = rng.integers(0, V, (len(lengths), padded_to, L)).astype(np.uint16)
    codes[~mask] = V
    return codes, mask


@pytest.mark.parametrize("history_tokens", ["pooled", "flat"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_padding_batching_and_beams_change_nothing(history_tokens: str, tied_head: bool) -> None:
    denoiser = TorchDenoiser(_model(history_tokens=history_tokens, tied_head=tied_head))
    codes, mask = _history([2, 0, 5], padded_to=6)
    sids = np.full((3, 4, L), V, np.uint16)
    sids[:, 1:, 0] = np.arange(3)
    together = denoiser.denoise(denoiser.encode(codes, mask), sids, np.array([3, 3, 3]))
    assert together.shape == (3, 4, L, V)
    assert np.allclose(np.exp(together).sum(axis=-1), 1, atol=1e-5)
    for job, length in enumerate([2, 0, 5]):
        cut = max(1, length)
        memory = denoiser.encode(codes[job : job + 1, :cut], mask[job : job + 1, :cut])
        for beam in range(4):
            alone = denoiser.denoise(memory, sids[job : job + 1, beam : beam + 1], np.array([3]))
            assert np.allclose(alone[0, 0], together[job, beam], atol=1e-5)


def test_the_decoder_sees_every_position_in_both_directions_and_the_history_order() -> None:
    denoiser = TorchDenoiser(_model())
    codes, mask = _history([4], padded_to=4)
    memory = denoiser.encode(codes, mask)

    def log_probs(sid: list[int], memory: Any = memory, difficulty: int = 2) -> np.ndarray:
        sids = np.array([[sid]], np.uint16)
        return denoiser.denoise(memory, sids, np.array([difficulty]))[0, 0]

    base = log_probs([V, 1, V])
    assert not np.allclose(log_probs([V, 2, V])[0], base[0])
    assert not np.allclose(log_probs([V, 2, V])[2], base[2])
    assert not np.allclose(log_probs([V, 1, V], difficulty=3), base)
    reversed_memory = denoiser.encode(codes[:, ::-1].copy(), mask)
    assert not np.allclose(log_probs([V, 1, V], reversed_memory), base)


def test_difficulty_can_be_switched_off() -> None:
    denoiser = TorchDenoiser(_model(difficulty_embedding=False))
    memory = denoiser.encode(*_history([4], padded_to=4))
    sids = np.full((1, 1, L), V, np.uint16)
    easy, hard = (denoiser.denoise(memory, sids, np.array([j])) for j in (1, 3))
    assert np.array_equal(easy, hard)


@pytest.mark.parametrize("history_tokens", ["pooled", "flat"])
def test_the_exported_graphs_agree_with_torch(history_tokens: str) -> None:
    model = _model(history_tokens=history_tokens)
    encoder, decoder, difference = export.export_graphs(model)
    assert difference < 1e-5
    for graph in (encoder, decoder):
        assert b"model.py" not in graph  # no stack traces with the paths of this machine
    shipped = OnnxDenoiser(encoder, decoder, num_subspaces=L, num_codes=V, history_length=6)
    codes, mask = _history([3, 1], padded_to=3)
    memory = shipped.encode(codes, mask)
    sids = np.full((2, 1, L), V, np.uint16)
    both = shipped.denoise(memory, sids, np.array([3, 3]))
    second = shipped.denoise(shipped.select(memory, np.array([1])), sids[1:], np.array([3]))
    assert np.allclose(both[1:], second, atol=1e-6)
    expected = TorchDenoiser(model)
    assert np.allclose(
        both, expected.denoise(expected.encode(codes, mask), sids, np.array([3, 3])), atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"decoder\.onnx gives log_probs of \[3, 7\], not \[3, 8\]"
    ):
        OnnxDenoiser(encoder, decoder, num_subspaces=L, num_codes=8, history_length=6)
    with pytest.raises(ValueError, match=r"encoder\.onnx has inputs"):
        OnnxDenoiser(decoder, encoder, num_subspaces=L, num_codes=V, history_length=6)


def test_an_export_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PARITY_TOLERANCE", 0.0)
    with pytest.raises(TrainingError, match="differ from the network"):
        export.export_graphs(_model())
