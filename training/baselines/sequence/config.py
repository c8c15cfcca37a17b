"""Configuration of the sequence models: sections like those of `training.config`, one a model.

Defaults are for small sparse data (5-core Amazon) and one processor. Knows no torch.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from training.config import Section


class SequenceConfig(Section):
    """What SASRec and BERT4Rec share: shape of the network, optimisation, checkpoint choice."""

    width: int = Field(128, ge=2)
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(2, ge=1)
    ffn_multiple: int = Field(1, ge=1, description="hidden width of the feed-forward, in widths")
    dropout: float = Field(0.3, ge=0, lt=1)
    history_length: int = Field(20, ge=1, description="newest items the model sees")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    minibatch: int = Field(768, ge=1, description="targets, in as many sequences as have them")
    epochs: int = Field(60, ge=1)
    patience: int = Field(5, ge=1, description="epochs without a better validation before a stop")
    validation_users: int = Field(5000, ge=1)
    threads: int = Field(0, ge=0, description="torch threads; 0 = the processors we may use")
    seed: int = 7

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class SASRecConfig(SequenceConfig):
    """Causal: every item of a sequence but the first is a target in one pass (arXiv 1808.09781)."""

    loss: Literal["ce", "sampled", "bce"] = Field(
        "ce",
        description="softmax over all items, over the target and sampled negatives, or the paper's "
        "one sampled negative a target",
    )
    num_negatives: int = Field(256, ge=1, description="of the loss `sampled`, drawn uniformly")

    @property
    def name(self) -> str:
        """What tables call the model."""
        return f"SASRec ({self.loss})"


def published_sasrec(**changes: Any) -> SASRecConfig:
    """SASRec as it does best in a comparison of its kind (arXiv 2508.06450, Amazon 2014).

    256 sampled negatives, width 64, one layer with one head, dropout .2, the newest 50 items. The
    published code names width 256 too: see decision 040.
    """
    published = {"width": 64, "num_layers": 1, "num_heads": 1, "dropout": 0.2, "history_length": 50}
    return SASRecConfig(**({"loss": "sampled", **published} | changes))


class BERT4RecConfig(SequenceConfig):
    """Bidirectional: masked items of a sequence are the targets (arXiv 1904.06690)."""

    patience: int = Field(
        15, ge=1, description="longer: it learns slowly, and improves in fits and starts"
    )
    mask_probability: float = Field(0.6, gt=0, le=1, description="of each item; 0.6 = their Beauty")
    last_share: float = Field(
        0.1, ge=0, le=1, description="share of sequences with only the last item masked"
    )

    @property
    def name(self) -> str:
        """What tables call the model."""
        return "BERT4Rec"
