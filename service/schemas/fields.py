"""What all schemas share: ids, whole numbers, and the base classes of requests and answers.

Unknown fields are refused, so that a misspelt field does not silently mean a default. Knows no
request.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

MAX_FIELD_CHARS = 100
MAX_ID_CHARS = 256
MAX_NEAR = 20  # unknown fields of a request that are compared with the known ones: it takes time
# User ids are path segments and Redis hash tags. Clients remove `.` and `..` from a path before
# they send it, even when escaped. Such a user could be stored, but never erased.
USER_ID = re.compile(r"^(?!\.{1,2}$)[^/{}\x00-\x1f\x7f]+$")
NEW_ITEM_ID = re.compile(r"^(?!\.{1,2}$)[^\x00-\x1f\x7f]+$")


def _check_user_id(user_id: str) -> str:
    if not USER_ID.fullmatch(user_id):
        message = "must not be . or .., nor contain / { } or control characters"
        raise PydanticCustomError("user_id", message)
    return user_id


def _check_new_item_id(item_id: str) -> str:
    if not NEW_ITEM_ID.fullmatch(item_id):
        message = "must not be . or .., nor contain control characters"
        raise PydanticCustomError("item_id", message)
    return item_id


def _without_point(value: Any) -> Any:
    """3 for 3.0. JSON has one kind of number, and JSON Schema calls both integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digits_only(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value, re.ASCII):
        raise PydanticCustomError("digits", "must be a whole number, written in digits")
    return value


UserId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID_CHARS),
    AfterValidator(_check_user_id),
    Field(json_schema_extra={"pattern": USER_ID.pattern}),
]
# Every id that a bundle may hold (`StoredItemId` in service/bundles/items.py) can be named. An
# added id must fit into a path, too.
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
NewItemId = Annotated[
    ItemId,
    AfterValidator(_check_new_item_id),
    Field(json_schema_extra={"pattern": NEW_ITEM_ID.pattern}),
]
# Comes after the bounds of every integer that a client sends.
WHOLE_NUMBER = BeforeValidator(_without_point)
# Comes after the bounds of every integer of a query: Pydantic would read 1_0 as 10.
DIGITS = BeforeValidator(_digits_only)
TimeoutMs = Annotated[int, Field(ge=1, le=10_000), WHOLE_NUMBER]


def is_user_id(text: str) -> bool:
    """Whether the service accepts the text as a user id."""
    return len(text) <= MAX_ID_CHARS and bool(USER_ID.fullmatch(text)) and is_text(text)


def is_item_id(text: str) -> bool:
    """Whether the service accepts the text as the id of an item."""
    return 1 <= len(text) <= MAX_ID_CHARS and is_text(text)


def is_new_item_id(text: str) -> bool:
    """Whether an item may be added under that id."""
    return is_item_id(text) and bool(NEW_ITEM_ID.fullmatch(text))


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: it has no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def field_name(loc: Iterable[str | int]) -> str:
    """`history.1` for ("history", 1). It is cut, because a client may send a name of any length."""
    return ".".join(str(part) for part in loc)[:MAX_FIELD_CHARS]


_near_left: ContextVar[list[int] | None] = ContextVar("_near_left", default=None)


class NearFieldsCounted:
    """Only so many unknown fields are compared with the known ones in here, with what is inside.

    A class, because it is entered for every request, and a generator takes longer.
    """

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        # Inside of another one, that one counts.
        self._token = None if _near_left.get() else _near_left.set([MAX_NEAR])

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _near_left.reset(self._token)


class RequestModel(BaseModel):
    """What a client sends: no unknown fields, no conversions. It says which fields it knows."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _names_its_fields(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        with NearFieldsCounted():
            try:
                return handler(value)
            except ValidationError as error:
                known = [field.alias or name for name, field in cls.model_fields.items()]
                lines = [_told(one, known) for one in error.errors(include_url=False)]
                raise ValidationError.from_exception_data(error.title, lines) from None

    @model_validator(mode="before")
    @classmethod
    def _is_an_object(cls, value: Any) -> Any:
        if not isinstance(value, dict | cls):
            raise PydanticCustomError("object", "must be a JSON object")
        return value


class AnswerModel(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(frozen=True)


def _told(error: ErrorDetails, known: Sequence[str]) -> InitErrorDetails:
    """The same error; of an unknown field, with those that are known. It has a message already."""
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden" and len(error["loc"]) == 1:
        near = _near(str(error["loc"][0])[:MAX_FIELD_CHARS], known)
        meant = f"did you mean {near[0]}? There" if near else "there"
        kind, message = "unknown_field", f"is no field here; {meant} are {', '.join(known)}"
    said = PydanticCustomError(kind, "{message}", {"message": message})
    return InitErrorDetails(type=said, loc=error["loc"], input=error["input"])


def _near(name: str, known: Sequence[str]) -> list[str]:
    """The known name that is most like this one, unless the request has had its share."""
    left = _near_left.get()
    if not left or not left[0]:
        return []
    left[0] -= 1
    return difflib.get_close_matches(name, known, n=1)


def entry_or_error(model: type[RequestModel]) -> PlainValidator:
    """Validates an entry of a list on its own, so that a wrong one does not stop the others.

    The result is the entry, or the ValidationError that says what is wrong with it.
    """

    def validated(value: Any) -> RequestModel | ValidationError:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            return error

    return PlainValidator(validated, json_schema_input_type=model)
