"""The training loop: an interrupted and continued run ends exactly like an uninterrupted one."""

from __future__ import annotations

import copy
import io
import itertools
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logs import log_of
from rich.console import Console

from service.decoding import Catalogue, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Interactions, Split, leave_last_out
from training.families.mdgr.model import MaskedDiffusionModel
from training.families.mdgr.objective import MDGRObjective
from training.fitting import training_loop
from training.fitting.checkpoint import write_checkpoint
from training.fitting.refit import refit
from training.fitting.training_loop import FitState, fit, learning_rate

NUM_ITEMS = 20
MODEL = ModelConfig(width=16, num_heads=2, encoder_layers=1, decoder_layers=1, history_length=5)
CONFIG = FitConfig(
    epochs=4, minibatch=16, validate_every_epochs=1, validation_users=20, threads=1, bf16=False
)


def _split() -> Split:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 30)
    return leave_last_out(
        Interactions(
            tuple(map(str, range(30))),
            tuple(map(str, range(NUM_ITEMS))),
            np.concatenate(([0], np.cumsum(lengths))),
            rng.integers(0, NUM_ITEMS, lengths.sum()).astype(np.int32),
        )
    )


def _trie() -> SidTrie:
    codes = np.random.default_rng(1).integers(0, 4, (NUM_ITEMS, 3)).astype(np.uint16)
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 5)).astype(np.float16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    return SidTrie(Catalogue(item_ids, codes, 4, np.zeros(NUM_ITEMS, np.int64), vectors))


def _fit(
    folder: Path,
    stop: int | None = None,
    *,
    split: Split | None = None,
    config: FitConfig = CONFIG,
    console: Console | None = None,
) -> tuple[MaskedDiffusionModel, FitState]:
    return fit(
        split or _split(),
        _trie(),
        folder,
        model_config=MODEL,
        masking=MaskingConfig(),
        config=config,
        console=console or Console(quiet=True),
        stop_after_epochs=stop,
    )


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, whole_state = _fit(tmp_path / "whole")
    _, cut_state = _fit(tmp_path / "cut", stop=2)
    assert cut_state.epoch == 2
    torch.rand(7)  # whatever else the process drew in between
    resumed, resumed_state = _fit(tmp_path / "cut")
    assert resumed_state.epoch == whole_state.epoch == 4
    assert resumed_state.validations == whole_state.validations
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert (tmp_path / "cut" / "scalars.jsonl").read_text().count('"recall@10"') == 4


def test_a_fit_of_so_many_cpu_minutes_ends_when_they_are_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on a quarter of a second whenever it is read, so once in a step."""
    clock = itertools.count(0, 0.25)
    monkeypatch.setattr(training_loop.time, "process_time", lambda: next(clock))
    config = CONFIG.model_copy(update={"minutes": 10 / 60, "patience": 1, "epochs": 1})
    said = io.StringIO()
    whole, state = _fit(tmp_path / "whole", config=config, console=Console(file=said))
    assert "0.166667 CPU minutes, on " in said.getvalue()
    assert (state.step, state.cpu_seconds) == (40, 10)
    steps_of_an_epoch = -(-_split().train.num_interactions // 16)
    assert state.epoch >= 40 / steps_of_an_epoch > 2, "the last epoch is part of one"
    assert state.validations[-1]["epoch"] == state.epoch
    lines = (tmp_path / "whole" / "scalars.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["learning_rate"] == pytest.approx(learning_rate(39 / 40, config))

    _, cut = _fit(tmp_path / "cut", stop=2, config=config)
    assert 0 < cut.cpu_seconds < 10
    torch.rand(7)
    continued, again = _fit(tmp_path / "cut", config=config, console=Console(file=said))
    assert "resumed after epoch 2\n" in said.getvalue()
    assert (again.step, again.validations) == (40, state.validations)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], tensor, rtol=0, atol=0)
    finished, _ = _fit(tmp_path / "cut", config=config)
    torch.testing.assert_close(finished.state_dict(), continued.state_dict(), rtol=0, atol=0)


def test_the_log_of_a_resumed_run_has_no_step_twice(tmp_path: Path) -> None:
    _fit(tmp_path, stop=2)
    log = tmp_path / "scalars.jsonl"
    done = log.read_text()
    step = json.loads(done.splitlines()[-1])["step"]
    after_the_checkpoint = json.dumps({"step": step + 1, "epoch": 2, "loss": 1.0})
    log.write_text(f'{done}{after_the_checkpoint}\n{{"step": {step + 2}, "lo')  # cut off
    _fit(tmp_path)
    assert log.read_text().startswith(done)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(steps)
    assert after_the_checkpoint not in log.read_text()


def test_the_learning_rate_decays_whatever_the_sizes_of_minibatches(tmp_path: Path) -> None:
    """A minibatch has at least one whole segment, here with three times the samples asked for."""
    config = CONFIG.model_copy(update={"minibatch": 1, "epochs": 3})
    split = leave_last_out(log_of([[1, 2, 3, 4, 5, 6]] * 8, NUM_ITEMS))
    _fit(tmp_path, split=split, config=config)
    last = json.loads((tmp_path / "scalars.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3 * 8
    assert last["learning_rate"] < 0.05 * config.learning_rate


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, state = _fit(tmp_path)
    again, same_state = _fit(tmp_path)
    assert same_state.step == state.step
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items()
    )


@pytest.mark.parametrize(("repeats", "sign"), [(False, -1), (True, 1)])
def test_the_repeat_bias_is_learnt(repeats: bool, sign: int, tmp_path: Path) -> None:
    """Users have random new items and never a repeat; or only the items they began with."""
    rng = np.random.default_rng(3)
    walks = [
        rng.choice(rng.permutation(NUM_ITEMS)[:2], 8) if repeats else rng.permutation(NUM_ITEMS)[:8]
        for _ in range(60)
    ]
    split = leave_last_out(log_of([walk.tolist() for walk in walks], NUM_ITEMS))
    model, _ = _fit(tmp_path, split=split)
    assert sign * model.repeat_bias.item() > 0.3


def test_the_learning_rate_ramps_up_then_decays() -> None:
    config = FitConfig(learning_rate=1.0, ramp_share=0.1, final_learning_rate=0.05)
    rates = [learning_rate(step / 100, config) for step in range(101)]
    assert rates[0] < 0.01
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert all(early >= late for early, late in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("asked", "samples", "told"), [(None, 10**9, 200), (7, 10**9, 7), (None, 1, 2)]
)
def test_how_many_epochs_are_planned_is_told(
    tmp_path: Path, asked: int | None, samples: int, told: int
) -> None:
    printed = io.StringIO()
    config = CONFIG.model_copy(update={"epochs": asked, "samples": samples})
    _fit(tmp_path, stop=0, config=config, console=Console(file=printed, width=200))
    assert f"{told} epochs of " in printed.getvalue()


def test_a_refit_learns_what_it_is_told_in_so_many_steps_and_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, _ = _fit(tmp_path / "fit")
    before = copy.deepcopy(fitted.state_dict())
    known = log_of([[1, 2, 3, 4, 5, 6]] * 50, NUM_ITEMS)  # 250 samples: 16 steps an epoch

    def go_on(folder: Path) -> tuple[torch.nn.Module, FitState]:
        return refit(
            fitted,
            _split(),
            known,
            _trie(),
            folder,
            share=0.25,
            steps=40,
            model_config=MODEL,
            masking=MaskingConfig(),
            config=CONFIG,
            console=Console(quiet=True),
        )

    model, state = go_on(tmp_path / "whole")
    assert state.step == 40
    assert state.validations == []
    rates = [
        json.loads(line)["learning_rate"]
        for line in (tmp_path / "whole" / "scalars.jsonl").read_text().splitlines()
    ]
    assert rates[0] < learning_rate(0.75, CONFIG) < 0.2 * CONFIG.learning_rate
    assert rates[-1] < 0.03 * CONFIG.learning_rate
    for name, weights in before.items():  # what went in is as it was
        assert torch.equal(weights, fitted.state_dict()[name])

    def loss(network: torch.nn.Module) -> float:
        objective = MDGRObjective(
            network,
            replace(_split(), train=known),
            _trie(),
            model_config=MODEL,
            masking=MaskingConfig(partial_share=0),
            config=CONFIG,
        )
        network.eval()
        found = objective.loss(np.arange(50), 1.0, torch.Generator().manual_seed(0))
        return float(found.detach())

    assert loss(model) < 0.95 * loss(fitted)

    def written_then_stopped(checkpoint: Path, snapshot: dict[str, Any]) -> None:
        write_checkpoint(checkpoint, snapshot)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_loop, "write_checkpoint", written_then_stopped)
        with pytest.raises(KeyboardInterrupt):
            go_on(tmp_path / "cut")
    resumed, resumed_state = go_on(tmp_path / "cut")
    assert resumed_state.step == 40
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
