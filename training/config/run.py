"""A whole run: one section for each stage, and what the bundle is called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.config.data import (
    CodebookConfig,
    EmbeddingsConfig,
    InteractionsConfig,
    ItemsConfig,
)
from training.config.measuring import EvaluationConfig, NeighboursConfig
from training.config.network import (
    ExportConfig,
    FitConfig,
    MaskingConfig,
    ModelConfig,
    RefitConfig,
)
from training.config.sections import Section, later


class BundleConfig(Section):
    """What the bundle is called and carries."""

    name: str = Field("unmask", max_length=100, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    version: str = Field(
        "",
        max_length=100,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$",
        description="empty = date and hash of the run",
    )
    held_out_users: int = Field(
        1000, ge=0, le=1_000_000, description="test users shipped for replay and priming"
    )
    content_text: Literal["title. categories"] | None = Field(
        None,
        description="what of each item was embedded, where --embeddings are given: recorded for "
        "those who add items; absent = not known",
    )
    map: bool = later(
        True, "give every item a place in two dimensions, which the service's page shows"
    )
    content_model: str | None = Field(
        None, min_length=1, max_length=500, description="the model that did it, likewise"
    )


class RunConfig(Section):
    """A whole run: one section per stage."""

    interactions: InteractionsConfig = InteractionsConfig()
    items: ItemsConfig = ItemsConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    codebook: CodebookConfig = CodebookConfig()
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    fit: FitConfig = FitConfig()
    export: ExportConfig = ExportConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    refit: RefitConfig = RefitConfig()
    bundle: BundleConfig = BundleConfig()
