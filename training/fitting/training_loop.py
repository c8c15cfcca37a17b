"""Training of a network: optimiser, learning-rate schedule, averaging, validation, checkpoints.

What is learnt is the objective of the network's family. Validation asks the production decoder, by
default in one call, where every row is scored exactly. After every epoch a checkpoint is written. A
run that was cut off continues from it and ends bit for bit where an uninterrupted one ends, unless
it was given minutes (then learning rate and masks follow the time that steps have taken) or goes on
on another device (which draws other random numbers). If a checkpoint is damaged, or of other
inputs, a sentence says so and the fit starts from the beginning.
A loss that is not finite ends the fit with a sentence. Knows no file outside its stage folder.

fit/checkpoint.pt   model, averaged and best weights, optimiser, random states, validations, key
fit/scalars.jsonl   one JSON object a logged step: {"step", "epoch", "loss", ...}
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from service.bundles import DecodingDefaults
from service.decoding import Catalogue, Decoder, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data import Split
from training.errors import DataError, FitDiverged
from training.evaluation import draw_windows, fewest_calls, ranks_at, recall_at
from training.families import HOST, device_of, family_of, random_state, set_random_state
from training.fitting.checkpoint import cut_after, on_host, read_checkpoint, write_checkpoint
from training.fitting.team import Team, led, taken, tell, threads
from training.stages import remove

LOG_EVERY = 20  # steps
MOST_EPOCHS = 200  # unless asked for: few samples are seen often enough
SCALAR_RATE = 30.0  # times the learning rate: the repeat bias has several nats to go


@dataclass
class FitState:
    """Everything but tensors that a resumed run needs, and what the run reports at its end.

    cpu_seconds: of all steps, over all threads; on a device, by the clock
    seconds_fitting: by the clock, validation too
    """

    epoch: int = 0
    step: int = 0
    seconds_fitting: float = 0.0
    cpu_seconds: float = 0.0
    best_recall: float = -1.0
    best_epoch: int = 0
    without_gain: int = 0
    validations: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Continuation:
    """A fit that goes on from weights: the last `share` of the learning rates, in `steps` steps.

    weights: state of a network of the same family and sizes
    """

    weights: dict[str, Tensor]
    share: float
    steps: int


def fit(
    split: Split,
    trie: SidTrie,
    folder: Path,
    *,
    model_config: ModelConfig,
    masking: MaskingConfig,
    config: FitConfig,
    console: Console,
    exclude_seen: bool = True,
    key: str = "",
    stop_after_epochs: int | None = None,
    after: Continuation | None = None,
) -> tuple[nn.Module, FitState]:
    """Train, or continue training; the model of the best validation recall@10, on the host.

    Without validation users it is the model after the last step.
    trie: the catalogue's; folder: the stage folder (checkpoint, scalar log).
    exclude_seen: of the lists that checkpoints are compared by
    key: of all that the fit depends on; a checkpoint with another key is not used
    stop_after_epochs: leave the loop early, as an interruption would (the checkpoint stays).
    after: where to begin; None = at random weights, with the whole of the learning rates
    Raises FitDiverged when a loss or a parameter is not finite any more.
    """
    torch.set_num_threads(threads(config.threads))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"

    def beginning() -> Trainer:
        torch.manual_seed(config.seed)
        return Trainer(
            split, trie, model_config, masking, config,
            exclude_seen=exclude_seen, after=after, alone=False,
        )  # fmt: skip

    trainer = beginning()
    snapshot = read_checkpoint(checkpoint, key, console)
    if snapshot is not None:
        try:
            trainer.restore(snapshot)
        except (KeyError, TypeError, ValueError, RuntimeError):
            console.print(f"{checkpoint.name} was written by another version: the fit starts again")
            trainer, snapshot = beginning(), None  # part of it may have been restored
    if snapshot is None:
        remove(checkpoint)
        num_samples = trainer.objective.num_samples
        if trainer.seconds is not None:
            minutes = "CPU minutes" if trainer.device == HOST else "minutes"
            console.print(f"{config.minutes:g} {minutes}, on {num_samples:,} samples an epoch")
        elif after is None:
            console.print(f"{trainer.epochs} epochs of {num_samples:,} samples (or set fit.epochs)")
        else:
            console.print(f"{after.steps:,} more steps, on {num_samples:,} samples")
    elif not trainer.finished:
        of_all = "" if trainer.seconds is not None else f" of {trainer.epochs}"
        console.print(f"resumed after epoch {trainer.state.epoch}{of_all}")
    if trainer.device != HOST:
        console.print(f"on {trainer.device.type}")
    if trainer.team.size > 1:
        console.print(f"{trainer.team.size} processes, each with its share of every minibatch")
    tell(Task(split, trie.catalogue, model_config, masking, config, after, snapshot))
    model = trainer.model
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=trainer.finished,
    )
    log_file = folder / "scalars.jsonl"
    cut_after(trainer.state.step, log_file)
    with progress, log_file.open("a", buffering=1) as log:
        task = progress.add_task("fit", total=1.0, completed=trainer.progress)
        most = math.inf if stop_after_epochs is None else stop_after_epochs
        while tell(not trainer.finished and trainer.state.epoch < most):
            for scalars in taken(trainer.epoch()):
                progress.update(task, completed=trainer.progress)
                if scalars:
                    log.write(json.dumps(scalars) + "\n")
            if "recall@10" in scalars:
                console.print(
                    f"epoch {trainer.state.epoch}: loss {scalars['loss']:.3f}, "
                    f"validation recall@10 {scalars['recall@10']:.4f}"
                )
            write_checkpoint(checkpoint, {**trainer.snapshot(), "key": key})
    model.load_state_dict(trainer.best)
    return model.eval().to(HOST), trainer.state


@dataclass(frozen=True)
class Task:
    """What the other processes of a team need to learn with the leader."""

    split: Split
    catalogue: Catalogue
    model: ModelConfig
    masking: MaskingConfig
    config: FitConfig
    after: Continuation | None
    snapshot: dict[str, Any] | None


def learn_together(command: Callable[[], int]) -> int:
    """Run a command in the processes of torchrun, all of which learn in its fits; exit status."""
    return led(command, _follow)


def _follow(task: Task) -> bool | None:
    """Learn with the leader, epoch by epoch, until it says that the fit is over, or all is."""
    torch.set_num_threads(threads(task.config.threads))
    torch.manual_seed(task.config.seed)
    trainer = Trainer(
        task.split, SidTrie(task.catalogue), task.model, task.masking, task.config,
        after=task.after, alone=False,
    )  # fmt: skip
    if task.snapshot is not None:
        trainer.restore(task.snapshot)
    while said := tell():
        try:
            for _ in trainer.epoch():
                pass
        except FitDiverged:  # for all of them, and the leader says so
            continue
    return None if said is None else False


def load_best(folder: Path, catalogue: Catalogue, config: ModelConfig) -> nn.Module:
    """The model of the best validation recall@10 of a finished `fit` in this folder."""
    model = family_of(config.family).build(catalogue, config)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["best"])
    return model.eval()


class Trainer:
    """One run's model, objective, optimiser and state. torch's random state draws the weights.

    epochs: of the whole run; progress: the share of it that is done
    seconds: of CPU time, or on a device by the clock, for all steps; None = there are `epochs`
    """

    def __init__(
        self,
        split: Split,
        trie: SidTrie,
        model_config: ModelConfig,
        masking: MaskingConfig,
        config: FitConfig,
        *,
        exclude_seen: bool = True,
        after: Continuation | None = None,
        alone: bool = True,
    ) -> None:
        """alone: without the processes of torchrun, of which others would have to follow"""
        self.trie, self.config, self.exclude_seen = trie, config, exclude_seen
        self.family = family_of(model_config.family)
        self.family.check(model_config)
        self.device = device_of(config.device)
        self.model = model = self.family.build(trie.catalogue, model_config).to(self.device)
        self.objective = objective = self.family.objective(
            model, split, trie, model_config=model_config, masking=masking, config=config
        )
        if not objective.num_samples:
            raise DataError("no user has two training items, so there is no next item to learn")
        if after is not None:
            model.load_state_dict(after.weights)
        self.team = Team(model, objective, config.seed, alone=alone)
        self.after = after
        self.validation = draw_windows(split.validation, config.validation_users, config.seed)
        self.averaged = copy.deepcopy(model).eval()
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.state = FitState()
        self.best: dict[str, Tensor] = _copy(model)
        enough = round(config.samples / objective.num_samples)
        self.epochs = config.epochs or min(max(2, enough), MOST_EPOCHS)
        if after is not None:
            self.epochs = math.ceil(after.steps * config.minibatch / objective.num_samples)
        self.seconds: float | None = None
        if after is None and config.minutes is not None:
            self.seconds = 60 * config.minutes
        self.progress = 0.0

    @property
    def finished(self) -> bool:
        if self.seconds is not None:
            return self.state.cpu_seconds >= self.seconds
        patience_ended = (
            self.state.without_gain >= self.config.patience
            and self.state.epoch >= self.config.early_stop_from * self.epochs
        )
        return self.state.epoch >= self.epochs or patience_ended

    def epoch(self) -> Iterator[dict[str, float]]:
        """Train one epoch; yields after each step, with scalars every LOG_EVERY and at its end.

        An epoch ends early when the CPU time is spent.
        """
        started = time.monotonic()
        losses = []
        order = self.team.begin_epoch(self.state.epoch, self.generator)
        minibatches = list(self.objective.minibatches(self.config.minibatch, order))
        if self.after is not None:  # the last epoch may be part of one
            minibatches = minibatches[: self.after.steps - self.state.step]
        clock = time.process_time if self.device == HOST else time.monotonic
        for done, minibatch in enumerate(minibatches, start=1):
            before = clock()
            losses.append(self.step(minibatch))
            self.state.cpu_seconds += clock() - before
            if self.seconds is not None:
                if self.team.size > 1:
                    self.state.cpu_seconds = tell(self.state.cpu_seconds)
                self.progress = min(1.0, self.state.cpu_seconds / self.seconds)
            elif self.after is None:
                self.progress = (self.state.epoch + done / len(minibatches)) / self.epochs
            else:
                self.progress = self.state.step / self.after.steps
            if self.state.step % LOG_EVERY == 0:
                yield self._scalars(losses[-LOG_EVERY:])
            else:
                yield {}
            if self.seconds is not None and self.finished:
                break
        self.check_finite()
        self.state.epoch += 1
        scalars = self._scalars(losses)
        last = self.state.epoch == self.epochs if self.seconds is None else self.finished
        if not len(self.validation):
            self.best = _copy(self.averaged)
        elif last or self.state.epoch % self.config.validate_every_epochs == 0:
            scalars |= self._validate() if self.team.leads else {}
        self.state.seconds_fitting += time.monotonic() - started
        yield scalars | {"seconds": round(self.state.seconds_fitting, 1)}

    def snapshot(self) -> dict[str, Any]:
        """All that `restore` needs; only tensors and plain values, so it loads without pickle."""
        snapshot = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
            "generator": self.generator.get_state(),
            "torch_generator": torch.get_rng_state(),
        }
        if (drawn := random_state(self.device)) is not None:
            snapshot[f"{self.device.type}_generator"] = drawn
        whole: dict[str, Any] = on_host(snapshot)
        return whole

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.model.load_state_dict(snapshot["model"])
        self.averaged.load_state_dict(snapshot["averaged"])
        self.best = snapshot["best"]
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.state = FitState(**snapshot["state"])
        self.progress = self.state.epoch / self.epochs
        if self.seconds is not None:
            self.progress = min(1.0, self.state.cpu_seconds / self.seconds)
        if self.after is not None:
            self.progress = self.state.step / self.after.steps
        self.generator.set_state(snapshot["generator"])
        torch.set_rng_state(snapshot["torch_generator"])
        if (drawn := snapshot.get(f"{self.device.type}_generator")) is not None:
            set_random_state(self.device, drawn)

    def step(self, minibatch: Any) -> Tensor:
        """Train on a minibatch of the objective; returns the loss, on the device."""
        share = 1.0 if self.after is None else self.after.share
        place = 1 - share * (1 - self.progress)  # in the whole of the schedule
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(place, self.config) * group["rate"]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        value = self.team.learn(minibatch, place, self.generator)
        if self.device == HOST:  # a device would have to be waited for: `_scalars` looks there
            self._check_loss(float(value))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.state.step += 1
        self._average()
        return value

    def _check_loss(self, value: float) -> None:
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")

    def check_finite(self) -> None:
        """Raise FitDiverged if a parameter is not finite: no loss shows what the last step did."""
        if not all(bool(tensor.isfinite().all()) for tensor in self.averaged.parameters()):
            raise self._diverged("a parameter of the network is not finite")

    def _diverged(self, what: str) -> FitDiverged:
        rate = self.config.learning_rate
        return FitDiverged(
            f"the fit has diverged: {what} in epoch {self.state.epoch + 1}, at step "
            f"{self.state.step + 1}, at a learning rate of "
            f"{self.optimizer.param_groups[0]['lr']:.3g}. No bundle is made. Try a smaller step: "
            f"--set fit.learning_rate={rate / 5:.1g} (it is {rate:g}), or a smaller fit.clip_norm"
        )

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights; early on they average fewer steps."""
        decay = min(self.config.ema_decay, self.state.step / (self.state.step + 10))
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay
        )

    def _validate(self) -> dict[str, float]:
        num_subspaces = self.trie.catalogue.num_subspaces
        beam_width = self.config.validation_beam_width
        if self.family.autoregressive:
            decoding = fewest_calls(num_subspaces, beam_width, autoregressive=True)
        else:
            r_warm, m_par = self.config.validation_schedule.params(num_subspaces)
            decoding = DecodingDefaults(
                r_warm=r_warm, m_par=m_par, beam_width=beam_width, ranking=self.config.ranking
            )
        found = ranks_at(
            self.validation,
            Decoder(self.trie, self.family.denoiser(self.averaged)),
            decoding,
            k=10,
            exclude_seen=self.exclude_seen,
        )
        recall = recall_at(found.item, 10)
        self.state.validations.append({"epoch": self.state.epoch, "recall@10": recall})
        if recall > self.state.best_recall:
            self.state.best_recall, self.state.best_epoch = recall, self.state.epoch
            self.state.without_gain = 0
            self.best = _copy(self.averaged)
        else:
            self.state.without_gain += 1
        return {"recall@10": recall}

    def _scalars(self, losses: list[Tensor]) -> dict[str, float]:
        loss = sum(torch.stack(losses).tolist()) / len(losses)
        self._check_loss(loss)
        return {
            "step": self.state.step,
            "epoch": self.state.epoch,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }


def learning_rate(progress: float, config: FitConfig) -> float:
    """Linear ramp over `ramp_share` of the steps, then a cosine down to `final_learning_rate`."""
    if progress < config.ramp_share:
        return config.learning_rate * (progress / config.ramp_share + 1e-3)
    decayed = (progress - config.ramp_share) / (1 - config.ramp_share)
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * decayed)) / 2)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only; scalars, as the repeat bias is, learn faster."""
    parameters = list(model.parameters())
    kinds = (
        ([p for p in parameters if p.ndim > 1], weight_decay, 1.0),
        ([p for p in parameters if p.ndim == 1], 0.0, 1.0),
        ([p for p in parameters if p.ndim == 0], 0.0, SCALAR_RATE),
    )
    return [{"params": p, "weight_decay": decay, "rate": rate} for p, decay, rate in kinds]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
