"""The network: shapes, what it may and may not see, and parity of its ONNX export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from service.decoding import Histories
from service.decoding.onnx_denoiser import OnnxDenoiser
from training import export
from training.config import ModelConfig
from training.errors import TrainingError
from training.model import Dropout, MaskedDiffusionModel
from training.torch_denoiser import TorchDenoiser, newest_state

L, V, D = 3, 7, 4
SHALLOW = {"encoder_layers": 1, "decoder_layers": 1}  # what is exported; each layer takes seconds


def _model(*, vector_dims: int = D, **settings: Any) -> MaskedDiffusionModel:
    """Weights far from their small first values, so that every difference shows."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, num_heads=2, encoder_layers=2, decoder_layers=2, history_length=6
    ).model_copy(update=settings)
    model = MaskedDiffusionModel(config, num_subspaces=L, num_codes=V, vector_dims=vector_dims)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _histories(lengths: list[int], padded_to: int, *, vector_dims: int = D) -> Histories:
    rng = np.random.default_rng(1)
    mask = np.arange(padded_to) < np.array(lengths)[:, None]
    codes = rng.integers(0, V, (len(lengths), padded_to, L)).astype(np.uint16)
    vectors = rng.standard_normal((len(lengths), padded_to, vector_dims)).astype(np.float16)
    codes[~mask], vectors[~mask] = V, 0
    return Histories(codes, vectors, mask)


def _states(model: MaskedDiffusionModel, histories: Histories) -> torch.Tensor:
    with torch.inference_mode():
        return model.encode(
            torch.from_numpy(histories.codes.astype(np.int64)),
            torch.from_numpy(histories.vectors.astype(np.float32)),
        )


def _cut(histories: Histories, job: int, length: int) -> Histories:
    return Histories(*(array[job : job + 1, :length] for array in histories))


@pytest.mark.parametrize("item_vectors", [True, False])
@pytest.mark.parametrize("tied_head", [True, False])
def test_padding_batching_and_beams_change_nothing(item_vectors: bool, tied_head: bool) -> None:
    denoiser = TorchDenoiser(_model(item_vectors=item_vectors, tied_head=tied_head))
    histories = _histories([2, 0, 5], padded_to=6)
    sids = np.full((3, 4, L), V, np.uint16)
    sids[:, 1:, 0] = np.arange(3)
    together = denoiser.denoise(denoiser.encode(histories), sids, np.array([3, 3, 3]))
    assert together.shape == (3, 4, L, V)
    assert np.allclose(np.exp(together).sum(axis=-1), 1, atol=1e-5)
    for job, length in enumerate([2, 0, 5]):
        memory = denoiser.encode(_cut(histories, job, max(1, length)))
        for beam in range(4):
            alone = denoiser.denoise(memory, sids[job : job + 1, beam : beam + 1], np.array([3]))
            assert np.allclose(alone[0, 0], together[job, beam], atol=1e-5)


def test_states_are_causal_and_one_pass_equals_a_pass_for_each_prefix() -> None:
    model, length = _model(), 6
    histories = _histories([length], padded_to=length)
    states = _states(model, histories)
    assert states.shape == (1, length, 16)
    other = _histories([length], padded_to=length)
    for place in range(length):
        prefix = _states(model, _cut(histories, 0, place + 1))
        assert torch.allclose(prefix[0], states[0, : place + 1], atol=1e-5)
        for changed in (other.codes, other.vectors):
            changed[0, place] = (changed[0, place] + 1) % V
        changed_states = _states(model, other)
        assert torch.equal(changed_states[0, :place], states[0, :place])
        assert not torch.allclose(changed_states[0, place:], states[0, place:], atol=1e-2)
        for array, original in zip(other, histories, strict=True):
            array[:] = original


def test_filler_behind_a_history_reaches_no_state() -> None:
    model = _model()
    histories = _histories([3], padded_to=6)
    states = _states(model, histories)
    histories.codes[0, 3:], histories.vectors[0, 3:] = 1, 2
    assert torch.equal(_states(model, histories)[0, :3], states[0, :3])


def test_a_state_sees_codes_vectors_and_the_order_of_all_items_before_it() -> None:
    histories = _histories([5], padded_to=5)
    model, blind = _model(), _model(item_vectors=False)
    newest, blind_newest = _states(model, histories)[0, -1], _states(blind, histories)[0, -1]
    for place in range(5):
        others = Histories(*(array.copy() for array in histories))
        others.codes[0, place] = (others.codes[0, place] + 1) % V
        assert not torch.allclose(_states(model, others)[0, -1], newest, atol=1e-3)
        others = Histories(*(array.copy() for array in histories))
        others.vectors[0, place] += 1
        assert not torch.allclose(_states(model, others)[0, -1], newest, atol=1e-3)
        assert torch.equal(_states(blind, others)[0, -1], blind_newest)
    swapped = Histories(*(array[:, [1, 0, 2, 3, 4]] for array in histories))
    assert not torch.allclose(_states(model, swapped)[0, -1], newest, atol=1e-3)


def test_the_newest_state_is_that_of_the_last_item_or_of_one_filler() -> None:
    states = torch.arange(3 * 4 * 2).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]) > 0
    assert torch.equal(newest_state(states, mask), states[[0, 1, 2], [1, 0, 3]])


def test_the_decoder_sees_every_position_in_both_directions_and_the_history_order() -> None:
    denoiser = TorchDenoiser(_model())
    histories = _histories([4], padded_to=4)
    memory = denoiser.encode(histories)

    def log_probs(sid: list[int], memory: Any = memory, difficulty: int = 2) -> np.ndarray:
        sids = np.array([[sid]], np.uint16)
        return denoiser.denoise(memory, sids, np.array([difficulty]))[0, 0]

    base = log_probs([V, 1, V])
    assert not np.allclose(log_probs([V, 2, V])[0], base[0])
    assert not np.allclose(log_probs([V, 2, V])[2], base[2])
    assert not np.allclose(log_probs([V, 1, V], difficulty=3), base)
    reversed_memory = denoiser.encode(Histories(*(array[:, ::-1].copy() for array in histories)))
    assert not np.allclose(log_probs([V, 1, V], reversed_memory), base)


def test_difficulty_can_be_switched_off() -> None:
    denoiser = TorchDenoiser(_model(difficulty_embedding=False))
    memory = denoiser.encode(_histories([4], padded_to=4))
    sids = np.full((1, 1, L), V, np.uint16)
    easy, hard = (denoiser.denoise(memory, sids, np.array([j])) for j in (1, 3))
    assert np.array_equal(easy, hard)


def test_dropout_drops_its_rate_keeps_the_mean_and_rests_outside_training() -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(0.25), torch.ones(200_000)
    dropped = dropout(x)
    assert torch.unique(dropped).tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("vector_dims", [D, 0])
def test_the_exported_graphs_agree_with_torch(vector_dims: int) -> None:
    model = _model(vector_dims=vector_dims, item_vectors=vector_dims > 0, **SHALLOW)
    encoder, decoder, difference = export.export_graphs(model)
    assert difference < 1e-5
    for graph in (encoder, decoder):
        assert b"model.py" not in graph  # no stack traces with the paths of this machine
    sizes: dict[str, Any] = {"num_subspaces": L, "history_length": 6, "repeat_bias": -0.5}
    shipped = OnnxDenoiser(encoder, decoder, num_codes=V, **sizes)
    assert shipped.repeat_bias == -0.5
    histories = _histories([3, 1, 0], padded_to=3, vector_dims=vector_dims)
    memory = shipped.encode(histories)
    assert memory.shape == (3, 16)
    sids = np.full((3, 1, L), V, np.uint16)
    all_three = shipped.denoise(memory, sids, np.array([3, 3, 3]))
    second = shipped.denoise(shipped.select(memory, np.array([1])), sids[1:2], np.array([3]))
    assert np.allclose(all_three[1:2], second, atol=1e-6)
    expected = TorchDenoiser(model)
    expected_log_probs = expected.denoise(expected.encode(histories), sids, np.array([3, 3, 3]))
    assert np.allclose(all_three, expected_log_probs, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"decoder\.onnx gives log_probs of \[3, 7\], not \[3, 8\]"
    ):
        OnnxDenoiser(encoder, decoder, num_codes=8, **sizes)
    with pytest.raises(ValueError, match=r"encoder\.onnx has inputs"):
        OnnxDenoiser(decoder, encoder, num_codes=V, **sizes)


def test_an_export_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PARITY_TOLERANCE", 0.0)
    with pytest.raises(TrainingError, match="differ from the network"):
        export.export_graphs(_model(**SHALLOW))
