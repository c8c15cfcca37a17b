"""A condition of a request's `filter`: which values an item may have of an attribute.

Which attributes there are, and of which type, depends on the bundle: the recommender checks that.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.schemas.fields import RequestModel

AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeText = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Number = Annotated[float, Field(allow_inf_nan=False)]
MAX_DATE_CHARS = 40


def _check_value(value: Any) -> str | float:
    if isinstance(value, str):
        return TEXT.validate_python(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PydanticCustomError("filter_value", "must be a text or a number")
    return float(value)


def _check_bound(value: Any) -> str | float:
    if isinstance(value, str) and len(value) > MAX_DATE_CHARS:
        raise PydanticCustomError("filter_value", "must be a number, or a date such as 2026-11-30")
    return _check_value(value)


TEXT: TypeAdapter[str] = TypeAdapter(AttributeText)
# One validator each, so that an error is said once, and not for every type that could be meant.
FilterValue = Annotated[
    str | float, PlainValidator(_check_value, json_schema_input_type=AttributeText | Number)
]
Values = Annotated[list[FilterValue], Field(min_length=1, max_length=50)]
# A number, or a date such as 2026-11-30 or 2026-11-30T08:00:00Z.
Bound = Annotated[
    str | float,
    PlainValidator(
        _check_bound,
        json_schema_input_type=Annotated[
            str, StringConstraints(min_length=1, max_length=MAX_DATE_CHARS)
        ]
        | Number,
    ),
]


class FilterCondition(RequestModel):
    """What an item must have of an attribute. All that is given must hold."""

    any_of: Values | None = Field(None, alias="any", description="One of these values.")
    none_of: Values | None = Field(
        None, alias="not", description="None of these values. Items without a value pass."
    )
    gt: Bound | None = Field(None, description="Greater than this number, or later than this date.")
    gte: Bound | None = Field(None, description="As `gt`, or equal.")
    lt: Bound | None = Field(None, description="Less than this number, or earlier.")
    lte: Bound | None = Field(None, description="As `lt`, or equal.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.any_of is None and self.none_of is None and not self.bounds:
            raise PydanticCustomError("filter", "must have any, not, gt, gte, lt or lte")
        return self

    @property
    def bounds(self) -> dict[str, float | str]:
        """The bounds that are given, by name."""
        bounds = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {name: bound for name, bound in bounds.items() if bound is not None}


VALUES: TypeAdapter[list[str | float]] = TypeAdapter(Values, config=ConfigDict(strict=True))


def _of_list(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """A list of values is short for `any`. An error in it is at its place in the list."""
    if not isinstance(value, list | dict | FilterCondition):
        message = 'must be a list such as ["A"], or a condition such as {"not": ["A"]}'
        raise PydanticCustomError("filter", message)
    return handler({"any": VALUES.validate_python(value)} if isinstance(value, list) else value)


def _of_attributes(value: Any) -> Any:
    if not isinstance(value, dict):
        message = 'must be an object of attributes, such as {"category": ["A"]}'
        raise PydanticCustomError("filter", message)
    return value


Filter = Annotated[
    dict[
        AttributeName,
        Annotated[
            FilterCondition,
            WrapValidator(_of_list, json_schema_input_type=Values | FilterCondition),
        ],
    ],
    Field(max_length=8),
    BeforeValidator(_of_attributes),
]
FILTER: TypeAdapter[dict[str, FilterCondition]] = TypeAdapter(
    Filter, config=ConfigDict(strict=True)
)
