"""An A/B experiment: which users get which variant of decoding or bundle.

The hash of salt and user_id chooses the variant. So every replica gives the same user the same
variant, and nothing is stored. Another salt shuffles the users again. Read from a TOML file. Knows
nothing of requests or bundles in memory.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from service.bundles import REFERENCE, Bundle, one_line
from service.errors import InvalidRequest, SettingsInvalid
from service.recommending.planning import fixed_plan
from service.schemas import MAX_BEAM_WIDTH, RecommendRequest

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
DEFAULT = "default"  # the variant when no experiment runs
PINNED = "pinned"  # the variant of a request that chose its own decoding
MAX_VARIANTS = 8


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Model):
    """What the users of this variant get. What it leaves out is as for everybody.

    bundle: name@version, kept in memory beside the active one
    """

    name: Name
    weight: float = Field(gt=0)
    bundle: Annotated[str, StringConstraints(pattern=f"^{REFERENCE.pattern}$")] | None = None
    r_warm: int | None = Field(None, ge=0)
    m_par: int | None = Field(None, ge=1)
    beam_width: int | None = Field(None, ge=1, le=MAX_BEAM_WIDTH)

    @property
    def decoding(self) -> dict[str, int]:
        """The settings of decoding that it sets."""
        asked = {"r_warm": self.r_warm, "m_par": self.m_par, "beam_width": self.beam_width}
        return {name: value for name, value in asked.items() if value is not None}


class Experiment(_Model):
    """Variants, and the share of users that each gets, by weight."""

    name: Name
    salt: str
    variants: tuple[Variant, ...] = Field(min_length=2, max_length=MAX_VARIANTS)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or {DEFAULT, PINNED} & set(names):
            raise ValueError(f"variants need distinct names other than {DEFAULT} and {PINNED}")
        return self

    def variant_of(self, user_id: str) -> Variant:
        """The user's variant, always the same."""
        digest = hashlib.blake2b(f"{self.salt}\0{user_id}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest) / 2**64 * sum(variant.weight for variant in self.variants)
        for variant in self.variants:
            place -= variant.weight
            if place < 0:
                return variant
        return self.variants[-1]


def load_experiment(path: Path) -> Experiment:
    """Read an experiment from its TOML file. Raises SettingsInvalid with one sentence."""
    try:
        return Experiment.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsInvalid(f"experiment {path}: {where}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"experiment {path}: {one_line(error)}") from error


def check_defaults(max_queue_rows: int, experiment: Experiment | None, bundle: Bundle) -> None:
    """Raise SettingsInvalid when all requests that ask for nothing special would be refused.

    Any bundle may answer the requests of a variant that names none.
    """
    ref, defaults = bundle.manifest.ref, bundle.manifest.decoding
    plain = RecommendRequest.model_validate({"user_id": "anybody"})
    asked: dict[str, dict[str, int]] = {"": {}}
    for variant in experiment.variants if experiment else ():
        if variant.bundle in (None, ref):
            asked[f"variant {variant.name} of the experiment: "] = variant.decoding
    for whose, decoding in asked.items():
        settled = defaults.model_copy(update=decoding)
        try:
            width = fixed_plan(plain, settled, bundle.manifest).decoding.beam_width
        except InvalidRequest as error:
            raise SettingsInvalid(f"{whose}bundle {ref}: {error}") from error
        if max_queue_rows < width:
            raise SettingsInvalid(
                f"{whose}UNMASK_MAX_QUEUE_ROWS={max_queue_rows} is below {width}, the "
                f"default beam_width of bundle {ref}; set it to {width} or more"
            )
