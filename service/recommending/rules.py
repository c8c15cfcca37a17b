"""What a request says about items, in the terms of one bundle: its filter, boosts and caps.

Names and types of attributes are checked here, because they depend on the bundle. Knows nothing of
users, rows or answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.bundles import AttributeType, Bundle, Condition, seconds_of
from service.errors import InvalidRequest
from service.schemas import FilterCondition, RecommendRequest

Conditions = Mapping[str, Condition]


@dataclass(frozen=True)
class Rules:
    """What a request says about items.

    filter: what an item must fulfil, by attribute
    boosts: for each boost what an item must fulfil, and what its score gains then
    """

    filter: Conditions
    boosts: Sequence[tuple[Conditions, float]]


def rules_of(request: RecommendRequest, bundle: Bundle) -> Rules:
    """The rules of a request. Raises InvalidRequest for what the bundle's attributes cannot do."""
    check_caps(request.max_per, bundle)
    boosts = [
        (conditions_of(boost.filter, bundle, f"boost.{place}.filter"), boost.weight)
        for place, boost in enumerate(request.boost)
    ]
    return Rules(conditions_of(request.filter, bundle), boosts)


def check_caps(max_per: Iterable[str], bundle: Bundle) -> None:
    """Raise InvalidRequest for attributes that the bundle does not have, or that are no texts."""
    types = bundle.manifest.filters
    for name in max_per:
        _check_known(name, types, f"max_per.{name}", "cap by")
        if types[name] != "text":
            message = f"is a {types[name]}; only attributes of texts are capped, such as category"
            raise InvalidRequest(message, param=f"max_per.{name}")


def conditions_of(
    wanted: Mapping[str, FilterCondition], bundle: Bundle, param: str = "filter"
) -> Conditions:
    """What a filter asks of each attribute of a bundle.

    param: where the request has the filter
    Raises InvalidRequest for an attribute that the bundle does not have, and for a condition that
    does not go with its type.
    """
    types = bundle.manifest.filters
    for name in wanted:
        _check_known(name, types, f"{param}.{name}", "filter by")
    return {
        name: _condition(f"{param}.{name}", types[name], asked) for name, asked in wanted.items()
    }


def _check_known(name: str, types: Mapping[str, AttributeType], param: str, verb: str) -> None:
    if name not in types:
        known = ", ".join(f"{known} ({kind})" for known, kind in types.items())
        raise InvalidRequest(f"items have no such attribute; {verb}: {known}", param=param)


def _condition(param: str, kind: AttributeType, asked: FilterCondition) -> Condition:
    any_of, none_of = asked.any_of, asked.none_of
    values, bounds = (*(any_of or ()), *(none_of or ())), asked.bounds
    text, number, date = kind == "text", kind == "number", kind == "date"
    if text and (bounds or not all(isinstance(value, str) for value in values)):
        message = 'is text: ask for texts, as in ["A", "B"] or {"not": ["C"]}'
    elif number and any(isinstance(value, str) for value in (*values, *bounds.values())):
        message = 'is a number: ask for numbers, as in {"gte": 5, "lt": 10} or [5, 10]'
    elif date and values:
        message = 'is a date: ask for a range, as in {"gte": "2026-11-01", "lt": "2026-12-01"}'
    else:
        seconds = {which: _bound(f"{param}.{which}", each) for which, each in bounds.items()}
        return Condition(any_of, none_of or (), seconds)
    raise InvalidRequest(message, param=param)


def _bound(param: str, value: float | str) -> float:
    """A number, or the seconds since 1970 of a date."""
    try:
        return seconds_of(value) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        message = "is no date; write 2026-11-30 or 2026-11-30T08:00:00Z"
        raise InvalidRequest(message, param=param) from None
