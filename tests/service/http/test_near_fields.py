"""Unknown fields are compared with the known ones, which takes time: so for a few of them only."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service.http.app import filter_of_query
from service.http.error_map import MAX_ERROR_DETAILS
from service.schemas import BatchRequest, EventsRequest, ItemsQuery, RecommendRequest

MANY = {f"bosst{n}": 1 for n in range(200)}
EVENT = {"event_id": "e", "user_id": "u", "item_id": "a", "event_type": "click"}
CONDITIONS = json.dumps({f"a{n}": {"anyy": 1} for n in range(200)})


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were compared."""
    names: list[str] = []
    close = difflib.get_close_matches

    def counted(name: str, *others: Any, **how: Any) -> list[str]:
        names.append(name)
        return close(name, *others, **how)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return names


@pytest.mark.parametrize(
    "ask",
    [
        lambda: RecommendRequest.model_validate({"user_id": "u", **MANY}),
        lambda: RecommendRequest.model_validate({"user_id": "u", "boost": [MANY] * 8, **MANY}),
        lambda: RecommendRequest.model_validate({"user_id": "u", "filter": {"a": MANY}}),
        lambda: BatchRequest.model_validate({"requests": [{"user_id": "u", **MANY}] * 32}),
        lambda: EventsRequest.model_validate({"events": [EVENT | {"vallue": 3}] * 100}),
        lambda: ItemsQuery.model_validate(MANY),
        lambda: filter_of_query(ItemsQuery(filter=CONDITIONS)),
    ],
    ids=["request", "boosts", "filter", "batch", "events", "url", "filter_of_url"],
)
def test_few_fields_of_a_request_are_compared(ask: Callable[[], Any], compared: list[str]) -> None:
    with suppress(ValidationError, RequestValidationError):  # the entries of a list keep theirs
        ask()
    assert len(compared) == MAX_ERROR_DETAILS


def test_each_request_has_its_share(compared: list[str]) -> None:
    for _ in range(3):
        with pytest.raises(ValidationError) as caught:
            RecommendRequest.model_validate({"user_id": "u", **MANY})
        said = [error["msg"] for error in caught.value.errors()]
        assert len(said) == len(MANY)
        assert all("did you mean boost? There are" in one for one in said[:MAX_ERROR_DETAILS])
        assert all("is no field here; there are" in one for one in said[MAX_ERROR_DETAILS:])
    assert len(compared) == 3 * MAX_ERROR_DETAILS
