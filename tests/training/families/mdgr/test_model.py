"""The network: shapes, what it may and may not see, and parity of its ONNX export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from service.decoding import Histories
from service.decoding.network.onnx_denoiser import OnnxDenoiser
from training.config import ModelConfig
from training.errors import TrainingError
from training.families import export
from training.families.denoiser import TorchDenoiser
from training.families.mdgr.model import MaskedDiffusionModel, newest_place
from training.families.network import Dropout

L, V, D = 3, 7, 4
ALL = np.arange(L)
SHALLOW = {"encoder_layers": 1, "decoder_layers": 1}  # what is exported; each layer takes seconds


def _model(*, vector_dims: int = D, **settings: Any) -> MaskedDiffusionModel:
    """Weights far from their small first values, so that every difference is visible."""
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


def _of_all_beams(positions: np.ndarray, sids: np.ndarray) -> np.ndarray:
    """The same positions for every beam: (jobs, beams, n)."""
    return np.broadcast_to(positions, (*sids.shape[:2], len(positions))).copy()


def _cut(histories: Histories, job: int, length: int) -> Histories:
    return Histories(*(array[job : job + 1, :length] for array in histories))


@pytest.mark.parametrize("item_vectors", [True, False])
@pytest.mark.parametrize("tied_head", [True, False])
def test_padding_batching_and_beams_change_nothing(item_vectors: bool, tied_head: bool) -> None:
    denoiser = TorchDenoiser(_model(item_vectors=item_vectors, tied_head=tied_head))
    histories = _histories([2, 0, 5], padded_to=6)
    sids = np.full((3, 4, L), V, np.uint16)
    sids[:, 1:, 0] = np.arange(3)
    positions = _of_all_beams(ALL, sids)
    together = denoiser.denoise(denoiser.encode(histories), sids, positions)
    assert together.shape == (3, 4, L, V)
    assert np.allclose(np.exp(together).sum(axis=-1), 1, atol=1e-5)
    for job, length in enumerate([2, 0, 5]):
        memory = denoiser.encode(_cut(histories, job, max(1, length)))
        for beam in range(4):
            alone = denoiser.denoise(
                memory, sids[job : job + 1, beam : beam + 1], positions[:1, :1]
            )
            assert np.allclose(alone[0, 0], together[job, beam], atol=1e-5)


@pytest.mark.parametrize("tied_head", [True, False])
def test_what_is_not_asked_for_is_left_out_and_changes_nothing(tied_head: bool) -> None:
    """Beams ask for different positions; one of them unsorted and with a repeat."""
    model = _model(tied_head=tied_head)
    sids = torch.tensor([[[V, 1, V], [2, V, V]], [[V, V, V], [0, 1, V]]])
    asked = torch.tensor([[[0, 2], [2, 1]], [[1, 0], [2, 2]]])
    with torch.inference_mode():
        state = torch.randn(2, 16)
        everything = model.denoise(sids, state)
        some = model.denoise(sids, state, asked)
        assert everything.shape == (2, 2, L, V)
        assert some.shape == (2, 2, 2, V)
        for job, beam, slot in np.ndindex(2, 2, 2):
            expected = everything[job, beam, asked[job, beam, slot]]
            assert torch.allclose(some[job, beam, slot], expected, atol=1e-5)

        histories = _histories([5, 2], padded_to=5)
        codes, vectors = (torch.from_numpy(array) for array in histories[:2])
        places = torch.tensor([[4, 0, 3], [1, 1, 0]])
        states = model.encode(codes.long(), vectors.float(), places)
        expected = _states(model, histories)[torch.arange(2)[:, None], places]
        assert torch.allclose(states, expected, atol=1e-5)


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


def test_the_newest_place_is_that_of_the_last_item_or_of_one_filler() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]) > 0
    assert newest_place(mask).tolist() == [[1], [0], [3]]


def test_the_decoder_sees_every_position_in_both_directions_and_the_history_order() -> None:
    denoiser = TorchDenoiser(_model())
    histories = _histories([4], padded_to=4)
    memory = denoiser.encode(histories)

    def log_probs(sid: list[int], memory: Any = memory) -> np.ndarray:
        sids = np.array([[sid]], np.uint16)
        return denoiser.denoise(memory, sids, ALL[None, None])[0, 0]

    base = log_probs([V, 1, V])
    assert not np.allclose(log_probs([V, 2, V])[0], base[0])
    assert not np.allclose(log_probs([V, 2, V])[2], base[2])
    assert not np.allclose(log_probs([V, V, V]), base)
    reversed_memory = denoiser.encode(Histories(*(array[:, ::-1].copy() for array in histories)))
    assert not np.allclose(log_probs([V, 1, V], reversed_memory), base)


def test_difficulty_is_the_number_of_masks_of_a_beam_and_can_be_switched_off() -> None:
    """Each beam has its own difficulty; without a MASK it is the same as with one MASK."""
    sids = torch.tensor([[[V, V, V], [V, 1, V], [0, 1, V], [0, 1, 2]]])
    for switched_on in (True, False):
        model, state = _model(difficulty_embedding=switched_on), torch.ones(1, 16)
        with torch.inference_mode():
            before = model.denoise(sids, state)
            for difficulty, concerned in ((3, [0]), (2, [1]), (1, [2, 3])):
                model.difficulty_embedding.weight[difficulty - 1] += torch.linspace(-1, 1, 16)
                now = model.denoise(sids, state)
                changed = (now - before).abs().amax(dim=(0, 2, 3)) > 1e-3
                assert changed.nonzero()[:, 0].tolist() == (concerned if switched_on else [])
                before = now


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
    encoder, decoder, difference, _ = export.export_graphs(model)
    assert difference < 1e-5
    for graph in (encoder, decoder):
        assert b"model.py" not in graph  # no stack traces with the paths of this machine
    sizes: dict[str, Any] = {"num_subspaces": L, "history_length": 6, "repeat_bias": -0.5}
    shipped = OnnxDenoiser(encoder, decoder, num_codes=V, **sizes)
    assert shipped.repeat_bias == -0.5
    histories = _histories([3, 1, 0], padded_to=3, vector_dims=vector_dims)
    memory = shipped.encode(histories)
    assert memory.shape() == [3, 16]
    expected = TorchDenoiser(model)
    sids = np.full((3, 1, L), V, np.uint16)
    sids[2, 0, 1] = 5
    for positions in (ALL, ALL[[0, 2]], ALL[2:]):
        asked = _of_all_beams(positions, sids)
        all_three = shipped.denoise(memory, sids, asked)
        second = shipped.denoise(shipped.select(memory, np.array([1])), sids[1:2], asked[1:2])
        assert np.allclose(all_three[1:2], second, atol=1e-6)
        expected_log_probs = expected.denoise(expected.encode(histories), sids, asked)
        assert np.allclose(all_three, expected_log_probs, atol=1e-5)
    with pytest.raises(ValueError, match=r"decoder\.onnx gives log_probs of 7 codes, not 8"):
        OnnxDenoiser(encoder, decoder, num_codes=8, **sizes)
    with pytest.raises(ValueError, match=r"encoder\.onnx reads SIDs of 3 codes, not 4"):
        OnnxDenoiser(encoder, decoder, num_codes=V, **(sizes | {"num_subspaces": 4}))
    with pytest.raises(ValueError, match=r"encoder\.onnx has inputs"):
        OnnxDenoiser(decoder, encoder, num_codes=V, **sizes)


def test_an_export_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PARITY_TOLERANCE", 0.0)
    with pytest.raises(TrainingError, match="differ from the network"):
        export.export_graphs(_model(**SHALLOW))
