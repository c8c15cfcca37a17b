"""`model.options` of this family, and the network that they choose."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.decoding import Catalogue
from training.config import ModelConfig, Section
from training.families.mdgr.model import MaskedDiffusionModel
from training.families.mdgr.published import PublishedModel


class Options(Section):
    """`model.options` of this family."""

    encoder: Literal["causal", "bidirectional"] = Field(
        "causal",
        description="causal: one pass over a history serves all of its targets, and the decoder "
        "reads one state; bidirectional: a pass for each target, and the decoder attends to all "
        "states, as published",
    )


def build(catalogue: Catalogue, config: ModelConfig) -> MaskedDiffusionModel | PublishedModel:
    """An untrained model of the catalogue's sizes.

    Another family with this network may have other options, so only its own is read here.
    """
    is_published = config.options.get("encoder") == "bidirectional"
    kind = PublishedModel if is_published else MaskedDiffusionModel
    return kind(
        config,
        num_subspaces=catalogue.num_subspaces,
        num_codes=catalogue.num_codes,
        vector_dims=catalogue.vectors.shape[1],
    )
