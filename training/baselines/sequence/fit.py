"""Training of a sequence model: minibatches, AdamW, and the checkpoint of the best validation.

The same for SASRec and BERT4Rec. After each epoch ndcg@10 over the whole catalogue is measured on a
fixed draw of validation users; the weights of the best epoch stay. Keeps nothing on disk: a run
takes minutes. Knows no data set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from joblib import cpu_count
from numpy.typing import NDArray

from training.baselines.scorer import ranks
from training.baselines.sequence.config import BERT4RecConfig, SASRecConfig
from training.baselines.sequence.models import BERT4Rec, SASRec, SequenceModel
from training.baselines.sequence.padded import training_minibatches
from training.data import Segments, Split
from training.errors import DataError, FitDiverged
from training.evaluation import draw_windows, ndcg_at, recall_at


class SequenceScorer:
    """A trained sequence model as a Scorer.

    epochs: one line an epoch: {"epoch", "loss", "recall@10", "ndcg@10" (validation), "seconds"}.
    best_epoch: the one whose weights `model` has, 0 before training.
    """

    def __init__(self, name: str, model: SequenceModel) -> None:
        self.name, self.model = name, model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.epochs: list[dict[str, float]] = []
        self.best_epoch = 0

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32; see Scorer."""
        return self.model.scores(histories)


def fit_sequence_model(
    split: Split,
    config: SASRecConfig | BERT4RecConfig,
    *,
    exclude_seen: bool = True,
    advance: Callable[[dict[str, float]], None] = lambda line: None,
) -> SequenceScorer:
    """Train on `split.train`; the result holds the weights of the best validation ndcg@10.

    The type of `config` says which model. exclude_seen: of the lists of validation.
    advance: called with each epoch's line (SequenceScorer).
    Same split, config and number of threads: same weights. Sets torch's seed and threads.
    Raises DataError when no user has two training items, FitDiverged when a loss is not finite.
    """
    torch.set_num_threads(config.threads or cpu_count())
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    scorer = untrained(config, split.train.num_items)
    model = scorer.model
    segments = Segments.of(split.train, config.history_length)
    if not len(segments):
        raise DataError("no user has two training items, so there is no next item to learn")
    validation = draw_windows(split.validation, config.validation_users, config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )
    started, best_ndcg, best = time.monotonic(), -1.0, {}
    for epoch in range(1, config.epochs + 1):
        model.train()
        losses = []
        for minibatch in training_minibatches(
            segments, config.minibatch, split.train.num_items, generator
        ):
            loss = model.loss(minibatch, generator)
            if not loss.isfinite():
                raise FitDiverged(
                    f"the fit of {scorer.name} has diverged: the loss is {loss.item()} in epoch "
                    f"{epoch}; a learning rate of {config.learning_rate:g} is too large"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found = ranks(validation, scorer, k=10, exclude_seen=exclude_seen)
        line = {
            "epoch": epoch,
            "loss": sum(losses) / len(losses),
            "recall@10": recall_at(found, 10),
            "ndcg@10": ndcg_at(found, 10),
            "seconds": time.monotonic() - started,
        }
        scorer.epochs.append(line)
        advance(line)
        if line["ndcg@10"] > best_ndcg:
            best_ndcg, scorer.best_epoch = line["ndcg@10"], epoch
            best = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - scorer.best_epoch >= config.patience:
            break
    model.load_state_dict(best)
    model.eval()
    return scorer


def untrained(config: SASRecConfig | BERT4RecConfig, num_items: int) -> SequenceScorer:
    """A model with weights as drawn, for `fit_sequence_model` and to load saved weights into."""
    if isinstance(config, SASRecConfig):
        return SequenceScorer(config.name, SASRec(config, num_items=num_items))
    return SequenceScorer(config.name, BERT4Rec(config, num_items=num_items))
