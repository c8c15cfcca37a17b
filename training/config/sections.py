"""What all sections share: their base class, and values that may be chosen in several of them.

Unknown keys are refused, because a misspelt key must not vanish. Knows no section.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

# As in `service.decoding`, which is not imported: a command's --help would take seconds.
CodebookKind = Literal["opq", "residual", "rqvae", "random"]
AttributeType = Literal["text", "number", "date"]  # as in `service.bundles`
Collisions = Literal["keep", "digit", "reassign"]
Ranking = Literal["rows", "best", "path"]
Order = Literal["confidence", "entropy", "margin", "left_to_right", "random", "raw_confidence"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Noise = Literal["uniform", "cosine"]
Retrieval = Literal["generate", "dense", "fused"]

StageName = Literal["codebook", "fit", "export", "trial", "evaluation", "refit", "bundle"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class ComparisonTable(StrEnum):
    """Tables of a comparison that can be asked for; runs of several seeds always have theirs."""

    SYSTEMS = "systems"
    SCHEDULES = "schedules"
    LENGTHS = "lengths"
    ABLATIONS = "ablations"
    DENSITY = "density"
    REFIT = "refit"
    SCRATCH = "scratch"
    COLD = "cold"
    FAMILIES = "families"
    NFE = "nfe"
    SEVERAL_ITEMS = "several-items"
    FAMILY_DENSITY = "family-density"


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def later(default: Any, description: str, **bounds: Any) -> Any:
    """A field that is not written while it has its default.

    So what was recorded before there was such a field is the same as now: stages stay done.
    """
    return Field(
        default, description=description, exclude_if=lambda value: value == default, **bounds
    )
