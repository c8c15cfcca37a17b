"""Configuration of a training run: one pydantic model for each stage, all that `--set` may set.

A stage gets its own section and nothing else, so this room knows no stage. Every field has a unit
or a range. It imports neither torch nor the service: a command's --help would take seconds.

Reading order: `sections` (what all share), `data`, `network`, `measuring`, `run` (all of them).
"""

from training.config.data import CodebookConfig, EmbeddingsConfig, InteractionsConfig, ItemsConfig
from training.config.measuring import EvaluationConfig, NeighboursConfig
from training.config.network import (
    ExportConfig,
    FitConfig,
    MaskingConfig,
    ModelConfig,
    RefitConfig,
    ScheduleConfig,
)
from training.config.run import BundleConfig, RunConfig
from training.config.sections import (
    STAGES,
    AttributeType,
    CodebookKind,
    Collisions,
    ComparisonTable,
    Device,
    Noise,
    Order,
    Ranking,
    Retrieval,
    Section,
    StageName,
)

__all__ = [
    "STAGES",
    "AttributeType",
    "BundleConfig",
    "CodebookConfig",
    "CodebookKind",
    "Collisions",
    "ComparisonTable",
    "Device",
    "EmbeddingsConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FitConfig",
    "InteractionsConfig",
    "ItemsConfig",
    "MaskingConfig",
    "ModelConfig",
    "NeighboursConfig",
    "Noise",
    "Order",
    "Ranking",
    "RefitConfig",
    "Retrieval",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "StageName",
]
