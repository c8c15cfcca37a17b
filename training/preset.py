"""Makes a validated configuration from a preset and the `--set` options.

A preset is a TOML file with a table for each section of `training.config`. `--set` wins over the
preset. Knows nothing of what settings mean.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config import RunConfig
from training.errors import ConfigError


def load_config(preset: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a preset (a name from `training/presets`, or a path to a TOML file) and apply overrides.

    overrides: strings `section.key=value`, the value in TOML syntax; bare words count as strings;
        `section.key.name=value` sets one value of a table
    Raises ConfigError that names the wrong preset or key.
    """
    path = Path(preset)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(f"no preset file {path}")
        text = path.read_text()
    else:
        entry = resources.files("training") / "presets" / f"{preset}.toml"
        if not entry.is_file():
            raise ConfigError(f"no preset {preset!r}; there are: {', '.join(preset_names())}")
        text = entry.read_text()
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"preset {preset} is not valid TOML: {error}") from error
    return validate_config(values, overrides, source=f"preset {preset}")


def validate_config(
    values: dict[str, Any], overrides: list[str] | None = None, *, source: str
) -> RunConfig:
    """Apply overrides to nested values and validate. Raises ConfigError that names the source."""
    set_by_hand = [_apply(values, override) for override in overrides or []]
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        what = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            whose = "--set" if name.startswith(tuple(set_by_hand)) else source
            said = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                said = _unknown(name)
            what.append(f"{whose}: {name}: {said}")
        raise ConfigError("; ".join(what)) from error


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, sorted."""
    folder = resources.files("training") / "presets"
    return sorted(
        e.name.removesuffix(".toml") for e in folder.iterdir() if e.name.endswith(".toml")
    )


def _unknown(name: str) -> str:
    sections = [(section, field.annotation) for section, field in RunConfig.model_fields.items()]
    known = [f"{section}.{key}" for section, kind in sections if kind for key in kind.model_fields]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "; training/config has them all"
    return f"there is no such setting{hint}"


def _apply(values: dict[str, Any], override: str) -> str:
    """Put an override into nested values; returns its key."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not 2 <= len(parts) <= 3:
        raise ConfigError(
            f"--set wants section.key=value, e.g. fit.epochs=3, got {override!r}; "
            "training/config has all keys"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    section: Any = values
    for depth, part in enumerate(parts[:-1], 1):
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            name = ".".join(parts[:depth])
            raise ConfigError(f"{name} must be a table of settings, not {section!r}")
    section[parts[-1]] = value
    return ".".join(parts)


def config_of(facts: dict[str, Any], bundle: Path, overrides: list[str] | None = None) -> RunConfig:
    """The configuration in the facts of a bundle's manifest, with overrides."""
    recorded = recorded_config(facts.get("config"))
    return validate_config(recorded, overrides, source=f"bundle {bundle}")


def recorded_config(facts: object) -> dict[str, Any]:
    """The configuration that a bundle records, for `validate_config`; empty if it records none.

    Old bundles do not record `collapse_repeats`: repeats were always kept then. What they record of
    `transition_weight`, which counts of the neighbour prior no longer have, is left out.
    """
    recorded: dict[str, Any] = dict(facts) if isinstance(facts, dict) else {}
    interactions = recorded.get("interactions")
    if isinstance(interactions, dict):
        recorded["interactions"] = {"collapse_repeats": False, **interactions}
    neighbours = recorded.get("neighbours")
    if isinstance(neighbours, dict):
        kept = {name: neighbours[name] for name in neighbours if name != "transition_weight"}
        recorded["neighbours"] = kept
    return recorded
