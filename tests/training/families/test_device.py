"""What a step does on a device, tried on one that is everywhere: torch's "meta".

A meta tensor has a shape and no values. So whatever would have to come back to the host raises, as
reading a loss does. What it does not notice, a tensor of the host among those of the device, is
noticed by `OneDevice`. No real GPU was at hand: `python -m training device-check` is for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from service.decoding import Catalogue, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Interactions, Split, leave_last_out
from training.errors import ConfigError, FitDiverged
from training.families import device as devices
from training.families.device import device_of, matrix_type, picked
from training.fitting import training_loop
from training.fitting.checkpoint import on_host
from training.fitting.training_loop import Trainer
from training.pipeline.run import _said

NUM_ITEMS, NUM_USERS = 60, 80
META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

PAPER = {"position_weight": 1.0, "catalogue_weight": 0.0}
BOTH = {"position_weight": 1.0, "history_dropout": 0.1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mdgr": ({}, {"position_weight": 0.5}),
    "mdgr, rows drawn": ({}, {"sampled_rows": 20, "history_dropout": 0.2}),
    "mdgr to the letter": ({"options": {"encoder": "bidirectional"}}, PAPER),
    "maskgr, full": ({"family": "maskgr", "options": {"attention": "full"}}, BOTH),
    "maskgr, prefix and dense": (
        {"family": "maskgr", "options": {"attention": "prefix", "dense": True}},
        {"position_weight": 1.0, "sampled_rows": 20},
    ),
    "maskgr, causal and dense": (
        {"family": "maskgr", "options": {"attention": "causal", "dense": True}},
        BOTH,
    ),
    "tiger": ({"family": "tiger"}, PAPER | {"history_dropout": 0.1}),
    "liger": ({"family": "tiger", "options": {"dense": True}}, PAPER | {"sampled_rows": 20}),
}


class OneDevice(TorchDispatchMode):
    """Fails where an operation has tensors of the host and of the device, unless it copies.

    num_there: operations on the device
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_there = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        kinds = {one.device.type for one in tensors if one.ndim or one.device.type == "meta"}
        assert len(kinds) < 2 or func in COPIES, f"{func} has tensors of {kinds}"
        self.num_there += "meta" in kinds
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def world() -> tuple[Split, SidTrie]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, NUM_USERS)
    rows = rng.integers(0, NUM_ITEMS, lengths.sum()).astype(np.int32)
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    log = Interactions(tuple(map(str, range(NUM_USERS))), item_ids, indptr, rows)
    codes = rng.integers(0, 5, (NUM_ITEMS, 4)).astype(np.uint16)
    vectors = rng.standard_normal((NUM_ITEMS, 8)).astype(np.float16)
    popularity = np.arange(NUM_ITEMS, 0, -1)
    catalogue = Catalogue(item_ids, codes, 5, popularity, vectors, content_dims=5)
    return leave_last_out(log), SidTrie(catalogue)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "device_of", lambda asked: META)


def trainer_of(world: tuple[Split, SidTrie], case: str) -> Trainer:
    model, fit = CASES[case]
    sizes = {"width": 16, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 1}
    return Trainer(
        *world,
        ModelConfig(**sizes, history_length=5, **model),
        MaskingConfig(),
        FitConfig(epochs=2, minibatch=64, validation_users=20, threads=1, **fit),
    )


def minibatches(trainer: Trainer) -> Iterator[Any]:
    return trainer.objective.minibatches(64, trainer.generator)


@pytest.mark.parametrize("case", CASES)
def test_a_step_asks_nothing_of_its_device_and_mixes_no_tensors(
    world: tuple[Split, SidTrie], case: str, on_meta: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(world, case)
    assert {one.device for one in trainer.model.state_dict().values()} == {META}
    # torch's fused AdamW is not made for meta.
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    with OneDevice() as seen:
        losses = [trainer.step(minibatch) for minibatch in minibatches(trainer)]
    assert len(losses) > 3
    assert {loss.device for loss in losses} == {META}
    assert seen.num_there > 100 * len(losses)
    assert {one.grad.device for one in trainer.model.parameters() if one.grad is not None} == {META}


def test_mixed_tensors_are_noticed() -> None:
    there = torch.zeros(3, 3, device=META)
    with OneDevice():
        there @ there
        there.new_zeros(()) + torch.zeros(())
        torch.zeros(3).to(META)
        with pytest.raises(AssertionError, match="tensors of"):
            there @ torch.zeros(3, 3)
        with pytest.raises(AssertionError, match="tensors of"):
            there[torch.zeros(2, dtype=torch.int64)]


def test_a_loss_that_is_not_finite_is_noticed_where_losses_are_logged(
    world: tuple[Split, SidTrie], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device no step waits for its loss; the log does."""
    trainer = trainer_of(world, "mdgr")
    monkeypatch.setattr(training_loop, "HOST", META)  # so that the host is taken for a device
    monkeypatch.setattr(training_loop, "LOG_EVERY", 2)
    with torch.no_grad():
        trainer.model.bias.fill_(torch.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(FitDiverged, match="the loss is nan"):
        list(trainer.epoch())
    assert trainer.state.step == 2


def test_a_checkpoint_is_of_no_device(world: tuple[Split, SidTrie]) -> None:
    snapshot = trainer_of(world, "mdgr").snapshot()
    assert {one.device.type for one in tree_leaves(snapshot) if isinstance(one, Tensor)} == {"cpu"}
    nested = {"a": [torch.ones(2), {"b": torch.zeros(1)}], "c": 1.5}
    moved = on_host(nested)
    assert torch.equal(moved["a"][0], torch.ones(2))
    assert moved["a"][1] == {"b": torch.zeros(1)}
    assert moved["c"] == 1.5
    with pytest.raises(NotImplementedError):  # it does ask the device
        on_host([{"deep": torch.ones(2, device=META)}])


def test_stages_that_are_done_are_done_for_every_device() -> None:
    written = {_said(FitConfig(device=device)) for device in ("auto", "cpu", "cuda", "mps")}
    assert len(written) == 1
    assert _said(FitConfig(epochs=3)) not in written
    assert FitConfig(device="cuda").model_dump()["device"] == "cuda"
    assert "device" not in FitConfig().model_dump()


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"),
    [(True, False, "cuda"), (False, True, "mps"), (True, True, "cuda"), (False, False, "cpu")],
)
def test_auto_is_the_best_that_is_there(
    cuda: bool, mps: bool, auto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_of("auto").type == auto
    assert device_of("cpu").type == "cpu"
    for asked, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert device_of(asked).type == asked  # type: ignore[arg-type]
        else:
            with pytest.raises(ConfigError, match=rf"fit\.device={asked}.*set fit\.device=auto"):
                device_of(asked)  # type: ignore[arg-type]


def test_each_process_of_a_team_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"process 2 .* no GPU of its own: there are 2\."):
        device_of("auto")
    assert device_of("cpu") == torch.device("cpu")


def test_a_type_that_the_device_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cpu": True, "cuda": False}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there["cpu"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **asked: there["cuda"])
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    assert matrix_type(cpu, bf16=True) == torch.bfloat16
    assert matrix_type(cpu, bf16=False) == torch.float32
    assert matrix_type(cuda, bf16=True) == matrix_type(mps, bf16=True) == torch.float32
    there.update(cpu=False, cuda=True)
    assert matrix_type(cpu, bf16=True) == torch.float32
    assert matrix_type(cuda, bf16=True) == torch.bfloat16


def test_a_mask_of_the_host_picks_what_it_picks_there(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(12.0).reshape(3, 4).requires_grad_()
    mask = torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    expected = values[mask]
    monkeypatch.setattr(devices, "HOST", META)  # so that places are sent
    found = picked(values, mask)
    assert torch.equal(found, expected)
    assert torch.equal(picked(values, mask.any(dim=1)), values[mask.any(dim=1)])
    for one in (expected, found):
        values.grad = None
        (one * torch.arange(6.0)).sum().backward()
        assert values.grad is not None
        assert values.grad[mask].tolist() == [0, 1, 2, 3, 4, 5]
