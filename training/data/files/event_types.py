"""Reads the column that says what happened: viewed, put into the cart, bought.

Says which lines count, with which weight, and which of them may be held out. Types that are so
different that a model of all lines alike would be nonsense are refused, until somebody has said
what counts. Knows nothing of users, items and times.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from training.config import InteractionsConfig
from training.data.files.table import Kind, Table, shown
from training.errors import ConfigError, DataError

# What the column may be called where nobody has said so, the likeliest first.
EVENT_COLUMNS = (
    "event_type", "eventtype", "event", "event_name", "eventname", "action_type", "actiontype",
    "action", "behavior_type", "behaviortype", "behavior", "feedback_type", "feedbacktype",
)  # fmt: skip
KINDS: dict[str, Kind] = dict.fromkeys(EVENT_COLUMNS, "label")
# The steps of a shop's funnel, by words that a type holds, and the weight that is proposed.
STEPS = (
    (re.compile(r"(?<!re)view|click|impression|detail|browse|visit|^pv$"), 1),
    (re.compile(r"cart|basket|wish|fav|bookmark|checkout"), 2),
    (
        re.compile(
            r"purchas|transaction|^buy|bought|^orders?$|_order$|^ordered|sale|paid"
            r"|order.?(completed|placed|confirmed|created)"
        ),
        3,
    ),
)
BOUGHT = len(STEPS) - 1
# What a user refuses, by the names that the service has for it; interactions are not that.
REFUSALS = ("not_interested", "undo_not_interested")
UNDONE = re.compile(r"remove|delete|cancel|return|refund|^un|dislike|hide")
MAX_TYPES = 1000  # a column of more holds something else
MAX_SHOWN_TYPES = 6


@dataclass(frozen=True, eq=False)
class EventTypes:
    """What the event types of a log's lines say.

    counts:  lines of each type, most first; "" where there is none; empty without such a column
    kept:    (lines,) bool, which lines count; None = all
    weights: (lines,) float32 of the lines kept, mean 1; None = alike
    targets: (lines,) bool of the lines kept, which may be held out; None = all
    name:    of the column, as the file writes it
    """

    counts: dict[str, int]
    kept: pl.Series | None = None
    weights: pl.Series | None = None
    targets: pl.Series | None = None
    name: str | None = None


def event_column(table: Table) -> str | None:
    """The name in `table.columns` of the column of event types; None if there is none."""
    for name in EVENT_COLUMNS:
        column = table.columns.get(name)
        if column is not None and (
            column.dtype in (pl.String, pl.Categorical, pl.Enum) or column.dtype.is_integer()
        ):
            return name
    return None


def event_types(
    table: Table, config: InteractionsConfig, notes: list[str], warnings: list[str]
) -> EventTypes:
    """Which lines of the table count.

    Raises ConfigError for types in the configuration that the table does not have, DataError for a
    funnel of which nobody has said what counts.
    """
    column = event_column(table)
    if "event_type" in config.columns and column != "event_type":
        raise DataError(
            f"{table.path}: {shown(config.columns['event_type'])} must be text or whole numbers to "
            "say which event a line is of"
        )
    asked = bool(config.events or config.targets)
    if column is None:
        if asked:
            raise ConfigError(
                f"interactions.{'events' if config.events else 'targets'}: {table.path} has no "
                f"column event_type or the like; it has {table.listed()}; say which one is meant: "
                "--set interactions.columns.event_type=..."
            )
        return EventTypes({})
    types, counted = types_of(table, column), counted_types(table)
    counts, written = counted.counts, counted.name or column
    if not asked and len(counts) > MAX_TYPES:
        return EventTypes({}, name=written)
    if not asked:
        refused = {name: counts[name] for name in REFUSALS if name in counts}
        others = {name: number for name, number in counts.items() if name not in refused}
        _look_at(table, written, others, warnings)
        if refused:
            notes.append(
                f"{table.path.name}: left out, as users refuse items by them: {_counted(refused)}"
            )
            return EventTypes(counts, ~types.is_in(REFUSALS), name=written)
        return counted
    _check_known(table, written, counts, config)
    kept, named = None, types
    if config.events:
        kept = types.is_in(list(config.events))
        named = types.filter(kept)
        left_out = {name: number for name, number in counts.items() if name not in config.events}
        if left_out:
            notes.append(
                f"{table.path.name}: left out, as interactions.events does not name them: "
                f"{_counted(left_out)}"
            )
    weights = None
    if len(set(config.events.values())) > 1:
        by_type = {name: float(weight) for name, weight in config.events.items()}
        raw = named.replace_strict(by_type, return_dtype=pl.Float64)
        weights = (raw / raw.mean()).cast(pl.Float32)
    targets = named.is_in(list(config.targets)) if config.targets else None
    notes.append(
        f"{table.path.name}: {shown(written)} says what counts: "
        f"{_counted({name: counts[name] for name in config.events or counts})}"
        + (f"; held out are {' and '.join(config.targets)}" if config.targets else "")
    )
    return EventTypes(counts, kept, weights, targets, written)


def types_of(table: Table, column: str) -> pl.Series:
    return table.columns[column].cast(pl.String).fill_null("").str.strip_chars()


def counted_types(table: Table) -> EventTypes:
    """How many lines are of which type, and nothing of what that means."""
    column = event_column(table)
    if column is None:
        return EventTypes({})
    counted = types_of(table, column).value_counts(sort=True, name="lines")
    written = table.names.get(column, column)
    return EventTypes(dict(zip(counted[column], counted["lines"], strict=True)), name=written)


def proposed(counts: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Weights that a person may want for these event types, and what was bought, as targets.

    Both are empty if the types are no steps of a shop.
    """
    weights = {}
    targets = []
    for name in counts:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
        for step in reversed(range(len(STEPS))):
            words, weight = STEPS[step]
            if words.search(plain) and not UNDONE.search(plain):
                weights[name] = weight
                targets += [name] * (step == BOUGHT)
                break
    return weights, targets


def _look_at(table: Table, written: str, counts: dict[str, int], warnings: list[str]) -> None:
    """Say that there are several types. Raises DataError if something was bought, others not."""
    if len(counts) < 2:
        return
    weights, targets = proposed(list(counts))
    said = f"the column {shown(written)} has {_counted(counts)}"
    if targets and len(weights) > len(targets):
        events = ", ".join(f"{_key(name)} = {weight}" for name, weight in weights.items())
        raise DataError(
            f"{table.path}: {said}; these are steps of a shop, and a model of all of them alike "
            "recommends what is looked at. Say which count and how much, and what is to be "
            f'predicted, for instance --set "interactions.events={{{events}}}" --set '
            f'"interactions.targets={targets}"; or give them all the weight 1'
        )
    warnings.append(
        f"{table.path.name}: {said}, and every line counts alike; interactions.events says which "
        "count, interactions.targets what is held out"
    )


def _check_known(
    table: Table, written: str, counts: dict[str, int], config: InteractionsConfig
) -> None:
    for setting, names in (("events", [*config.events]), ("targets", [*config.targets])):
        for name in names:
            if name not in counts:
                close = difflib.get_close_matches(name, counts, n=1, cutoff=0.5)
                alike = [each for each in counts if each.lower() == name.lower()] or close
                hint = f"did you mean {shown(alike[0])}? " if alike else ""
                raise ConfigError(
                    f"interactions.{setting}: no line of {table.path} has {name} as its "
                    f"{shown(written)}; {hint}There are {_counted(counts)}"
                )
    for name in config.targets:
        if config.events and name not in config.events:
            raise ConfigError(
                f"interactions.targets: {name} is none of interactions.events, "
                f"{', '.join(config.events)}"
            )


def _counted(counts: dict[str, int]) -> str:
    listed = [
        f"{shown(name) if name else 'nothing'} ({number:,})"
        for name, number in list(counts.items())[:MAX_SHOWN_TYPES]
    ]
    more = len(counts) - MAX_SHOWN_TYPES
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def _key(name: str) -> str:
    """A key of TOML, inside a text in double quotes."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f"'{name}'"
