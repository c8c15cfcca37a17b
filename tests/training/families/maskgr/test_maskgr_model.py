"""The network: what attends to what, one result by two ways, and parity of its ONNX export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.decoding import Histories
from service.decoding.network import OnnxDenoiser
from training.config import ModelConfig
from training.errors import ConfigError
from training.families import family_of
from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.maskgr.layer import Layer, rotated, rotations
from training.families.maskgr.model import MaskGR

L, V, D, LENGTH = 3, 7, 4, 5
BOTH = pytest.mark.parametrize("attention", ["prefix", "full"])
ALL = pytest.mark.parametrize("attention", ["prefix", "full", "causal"])


def _model(attention: str, **settings: Any) -> MaskGR:
    """Weights far from their first values, so that every difference is visible."""
    torch.manual_seed(0)
    config = ModelConfig(
        family="maskgr",
        width=16,
        num_heads=2,
        encoder_layers=2,
        history_length=LENGTH,
        options={"attention": attention},
    ).model_copy(update=settings)
    model = MaskGR(config, num_subspaces=L, num_codes=V, vector_dims=D)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _sequences(lengths: list[int], items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, vectors and where there are items. The last item is to be filled, one code is known.

    lengths: items of each sequence, with the last one
    """
    random = torch.Generator().manual_seed(1)
    is_item = torch.arange(items) >= items - torch.tensor(lengths)[:, None]
    codes = torch.randint(0, V, (len(lengths), items, L), generator=random)
    vectors = torch.randn(len(lengths), items, D, generator=random)
    codes[:, -1, 1:], codes[~is_item] = V, V
    vectors[:, -1], vectors[~is_item] = 0, 0
    return codes, vectors, is_item


def _histories(codes: Tensor, vectors: Tensor, is_item: Tensor, length: int) -> Histories:
    """Histories of sequences as the denoiser gets them: without the last item, filler at the end"""
    counts = (is_item.sum(dim=1) - 1).numpy()
    mask = np.arange(length) < counts[:, None]
    of_codes = np.full((*mask.shape, L), V, np.uint16)
    of_vectors = np.zeros((*mask.shape, D), np.float16)
    is_old = is_item.numpy().copy()
    is_old[:, -1] = False
    of_codes[mask], of_vectors[mask] = codes.numpy()[is_old], vectors.numpy()[is_old]
    return Histories(of_codes, of_vectors, mask)


@torch.inference_mode()
def _states(model: MaskGR, codes: Tensor, vectors: Tensor, is_item: Tensor) -> Tensor:
    return model.states(codes, vectors, is_item)


def test_only_with_full_attention_does_a_history_see_the_item_that_is_filled() -> None:
    codes, vectors, is_item = _sequences([4, 6], items=6)
    changed = codes.clone()
    changed[:, -1, 0] = (codes[:, -1, 0] + 1) % V
    for attention in ("prefix", "full"):
        model = _model(attention)
        before = _states(model, codes, vectors, is_item)
        after = _states(model, changed, vectors, is_item)
        assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-2)
        is_old = is_item.clone()
        is_old[:, -1] = False
        moved = (before - after)[is_old].abs().amax(dim=(1, 2))
        assert (moved == 0).all() if attention == "prefix" else (moved > 1e-4).all()


@BOTH
def test_every_code_and_vector_of_a_history_is_seen_from_both_sides(attention: str) -> None:
    model = _model(attention)
    codes, vectors, is_item = _sequences([4], items=4)
    before = _states(model, codes, vectors, is_item)[0]
    for item in range(3):
        for position in range(L):
            changed = codes.clone()
            changed[0, item, position] = (codes[0, item, position] + 1) % V
            moved = (_states(model, changed, vectors, is_item)[0] - before).abs().amax(dim=-1)
            assert (moved > 1e-4).all()  # earlier codes too
        changed = vectors.clone()
        changed[0, item] += 1
        assert not torch.allclose(_states(model, codes, changed, is_item)[0, -1], before[-1])
    blind = _model(attention, item_vectors=False)
    assert torch.equal(
        _states(blind, codes, vectors, is_item), _states(blind, codes, 0 * vectors, is_item)
    )


def test_with_causal_attention_an_item_sees_itself_and_what_is_older() -> None:
    model = _model("causal")
    codes, vectors, is_item = _sequences([5], items=5)
    before = _states(model, codes, vectors, is_item)[0]
    for item in range(4):
        changed = codes.clone()
        changed[0, item, 2] = (codes[0, item, 2] + 1) % V
        moved = (_states(model, changed, vectors, is_item)[0] - before).abs().amax(dim=-1)
        assert (moved[:item] == 0).all()
        assert (moved[item:] > 1e-4).all()  # its own earlier codes too
    assert model.max_horizon == 1


def test_masked_copies_are_the_ends_of_the_sequences_before_them() -> None:
    """All items at once as if each were the last one; also those that must not know the others."""
    model = _model("causal")
    random = torch.Generator().manual_seed(2)
    codes = torch.randint(0, V, (2, 4, L), generator=random)
    vectors = torch.randn(2, 4, D, generator=random)
    codes[1, 3], vectors[1, 3] = V, 0  # filler at the end
    copies = torch.where(torch.rand(codes.shape, generator=random) < 0.6, V, codes)
    with torch.inference_mode():
        states, lower = model.states_of_copies(codes, vectors, copies, torch.tensor([True, True]))
        deaf, _ = model.states_of_copies(codes, vectors, copies, torch.tensor([False, True]))
        for sequence, item in ((0, 0), (0, 1), (0, 3), (1, 1), (1, 2)):
            cut = codes[sequence, : item + 1].clone()
            cut[-1] = copies[sequence, item]
            given = vectors[sequence, : item + 1].clone()
            given[-1] = 0
            there = torch.ones(1, item + 1, dtype=torch.bool)
            wanted, below = model.both_states(cut[None], given[None], there)
            assert torch.allclose(states[sequence, item], wanted[0, -1], atol=1e-5)
            assert torch.allclose(lower[sequence, item], below[0, -1], atol=1e-5)
            alone, _ = model.both_states(cut[None, -1:], given[None, -1:], there[:, -1:])
            wanted = alone if sequence == 0 else wanted
            assert torch.allclose(deaf[sequence, item], wanted[0, -1], atol=1e-5)


@ALL
def test_filler_changes_nothing(attention: str) -> None:
    model = _model(attention)
    codes, vectors, is_item = _sequences([3, 1], items=6)
    states = _states(model, codes, vectors, is_item)
    for sequence, length in enumerate((3, 1)):
        own = slice(sequence, sequence + 1)
        alone = _states(model, codes[own, -length:], vectors[own, -length:], is_item[own, -length:])
        assert torch.allclose(alone[0], states[sequence, -length:], atol=1e-5)
    codes[~is_item], vectors[~is_item] = 1, 2
    assert torch.equal(_states(model, codes, vectors, is_item)[is_item], states[is_item])


def test_rotary_positions_know_how_far_apart_tokens_are_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = Layer(ModelConfig(width=16, num_heads=2)).eval()
    x, table = torch.randn(2, 6, 16), rotations(40, 8)
    no_bias = torch.zeros(2, 1, 1, 6)
    with torch.inference_mode():
        here = layer(x, no_bias, table[:6])
        assert torch.allclose(layer(x, no_bias, table[30:36]), here, atol=1e-5)
        assert not torch.allclose(layer(x, no_bias, table[:12:2]), here, atol=1e-3)
        swapped = layer(x[:, [1, 0, 2, 3, 4, 5]], no_bias, table[:6])
        assert not torch.allclose(swapped[:, 2:], here[:, 2:], atol=1e-4)
    one, other = torch.randn(2, 1, 1, 1, 8)
    product = [
        float((rotated(one, table[[a]]) * rotated(other, table[[b]])).sum())
        for a, b in ((3, 1), (20, 18), (39, 37))
    ]
    assert product == pytest.approx([product[0]] * 3, abs=1e-5)
    assert float(rotated(one, table[[7]]).norm()) == pytest.approx(float(one.norm()), abs=1e-5)


@ALL
@pytest.mark.parametrize("tied_head", [True, False])
def test_two_parts_give_what_whole_sequences_give(attention: str, tied_head: bool) -> None:
    """Short, full and empty histories, more than one beam, some of the positions, any padding."""
    model = _model(attention, tied_head=tied_head)
    codes, vectors, is_item = _sequences([3, 6, 1, 2], items=LENGTH + 1)
    vectors = vectors.half().float()  # as the denoiser gets them
    other = codes.clone()
    other[:, -1, 0], other[:, -1, 1] = V, 2
    with torch.inference_mode():
        wanted = [
            model.logits(_states(model, each, vectors, is_item))[:, -1].log_softmax(dim=-1)
            for each in (codes, other)
        ]
    expected = torch.stack(wanted, dim=1).numpy()  # (jobs, beams, L, V)
    sids = torch.stack((codes[:, -1], other[:, -1]), dim=1).numpy().astype(np.uint16)
    denoiser = TorchDenoiser(model)
    memory = denoiser.encode(_histories(codes, vectors, is_item, LENGTH))
    assert memory.shape == (4, model.memory_size)
    positions = np.broadcast_to(np.arange(L), (4, 2, L)).copy()
    together = denoiser.denoise(memory, sids, positions)
    assert np.allclose(together, expected, atol=1e-5)
    some = positions[:, :, [2, 0]]
    assert np.allclose(denoiser.denoise(memory, sids, some), expected[:, :, [2, 0]], atol=1e-5)
    nobody = denoiser.denoise(denoiser.select(memory, np.array([2, 2])), sids[[2, 2]], some[:2])
    assert np.allclose(nobody, expected[[2, 2]][:, :, [2, 0]], atol=1e-5)
    short = [0, 2, 3]
    cut = (codes[short], vectors[short], is_item[short])
    memory = denoiser.encode(_histories(*cut, 2))  # padded to the longest of them
    for place, job in enumerate(short):
        own = denoiser.select(memory, np.array([place]))
        alone = denoiser.denoise(own, sids[job : job + 1, 1:], positions[:1, 1:])
        assert np.allclose(alone[0], expected[job, 1:], atol=1e-5)


def test_several_items_to_fill_are_the_end_of_one_whole_sequence() -> None:
    """With full attention. Short histories too, and all positions or some of them."""
    model = _model("full")
    codes, vectors, is_item = _sequences([4, 6, 3], items=LENGTH + 1)
    vectors = vectors.half().float()
    codes[:, -2:], vectors[:, -2:] = V, 0
    codes[:, -2, 1] = 2
    with torch.inference_mode():
        states = _states(model, codes, vectors, is_item)
        expected = model.logits(states)[:, -2:].log_softmax(dim=-1).flatten(1, 2).numpy()
    denoiser = TorchDenoiser(model)
    cut = codes[:, :-1], vectors[:, :-1], is_item[:, :-1]  # what is before both of them
    memory = denoiser.encode(_histories(*cut, LENGTH - 1))
    sids = codes[:, -2:].flatten(1, 2)[:, None].numpy().astype(np.uint16)
    positions = np.broadcast_to(np.arange(2 * L), (3, 1, 2 * L)).copy()
    together = denoiser.denoise(memory, sids, positions)
    assert np.allclose(together[:, 0], expected, atol=1e-5)
    of_some = denoiser.denoise(memory, sids, positions[:, :, [0, 2, 5]])
    assert np.allclose(of_some[:, 0], expected[:, [0, 2, 5]], atol=1e-5)


@BOTH
def test_items_to_fill_see_each_other_and_a_single_one_is_as_ever(attention: str) -> None:
    model = _model(attention)
    sequences = _sequences([4, 6], items=LENGTH + 1)
    denoiser = TorchDenoiser(model)
    memory = denoiser.encode(_histories(*sequences, LENGTH))
    sids = np.full((2, 3, 2 * L), V, np.uint16)
    sids[:, 1, 0] = sids[:, 2, L + 1] = 3  # something is known of the first, or of the second
    positions = np.broadcast_to(np.arange(2 * L), (2, 3, 2 * L)).copy()
    found = denoiser.denoise(memory, sids, positions)
    assert np.abs(found[:, 1, L:] - found[:, 0, L:]).max() > 1e-3
    assert np.abs(found[:, 2, :L] - found[:, 0, :L]).max() > 1e-3
    assert np.abs(found[:, 0, :L] - found[:, 0, L:]).max() > 1e-3  # the slots are not alike


@pytest.mark.parametrize(("attention", "layers"), [("full", 1), ("causal", 2)])
def test_the_exported_graphs_agree_with_torch(attention: str, layers: int) -> None:
    """And without vectors. Graphs of attention prefix are exported in test_served."""
    model = _model(attention, item_vectors=False, encoder_layers=layers)
    encoder, decoder, difference, _ = export_graphs(model)
    assert difference < 1e-5
    shipped = OnnxDenoiser(
        encoder, decoder, num_subspaces=L, num_codes=V, history_length=LENGTH, repeat_bias=-0.5
    )
    denoiser = TorchDenoiser(model)
    sequences = _sequences([3, 6, 1], items=LENGTH + 1)
    sids = np.repeat(sequences[0][:, -1:].numpy().astype(np.uint16), 2, axis=1)
    positions = np.broadcast_to([1, 2], (3, 2, 2)).astype(np.int64)
    histories = _histories(*sequences, LENGTH)
    memory = shipped.encode(histories)
    assert memory.shape() == [3, model.memory_size]
    together = shipped.denoise(memory, sids, positions)
    expected = denoiser.denoise(denoiser.encode(histories), sids, positions)
    assert np.allclose(together, expected, atol=1e-5)
    for job, length in enumerate((2, 5, 1)):  # the last history is empty
        alone = shipped.encode(Histories(*(array[job : job + 1, :length] for array in histories)))
        alone = shipped.denoise(alone, sids[:1] * 0 + sids[job], positions[:1])
        assert np.allclose(alone[0], together[job], atol=1e-5)


def test_options_and_sizes_that_are_wrong_are_said() -> None:
    family = family_of("maskgr")
    family.check(ModelConfig(options={"attention": "full", "target_share": 0.25}))
    for options, said in (
        ({"attention": "no"}, r"model\.options\.attention: Input should be 'prefix', 'full' or"),
        ({"attention": "causal", "target_share": 0.25}, "no sequence has masks anywhere"),
        ({"target_share": 2}, r"model\.options\.target_share: .* less than or equal to 1"),
        ({"decoder_layers": 2}, r"model\.options\.decoder_layers: .* has no such option"),
    ):
        with pytest.raises(ConfigError, match=said):
            family.check(ModelConfig(family="maskgr", options=options))
    with pytest.raises(ConfigError, match=r"width must be a multiple of 2 \* num_heads"):
        _model("prefix", width=12, num_heads=4)
