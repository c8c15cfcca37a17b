"""The body of a request as JSON that has one meaning only.

Python's parser guesses the encoding, and of a name that stands twice in an object it takes the last
value, where a gateway may have looked at the first. And it goes as deep as the stack of Python,
where whatever else is called fails: the watch of the garbage collector did. Here the body is UTF-8,
every name stands once, and brackets are nested a few deep. Knows nothing of what bodies mean.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from service.errors import InvalidRequest

MOST_NESTED = 200  # what pydantic's parser reads


class JsonRequest(Request):
    """A request whose `json` raises JSONDecodeError or InvalidRequest; a byte order mark is no
    part of it.

    whole_body: None until the body has arrived
    """

    whole_body: bytes | None = None

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = self.whole_body = await self.body()
            try:
                text = body.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise json.JSONDecodeError("it is not UTF-8", "", error.start) from None
            self._json = parsed(text, "body")
        return self._json


def parsed(text: str, param: str) -> Any:
    """The value of a JSON text. Raises JSONDecodeError or InvalidRequest.

    param: where the request has the text
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            message = f"an object of the {param} has the same name twice; send each name once"
            raise InvalidRequest(message, param=param)
        return found

    try:
        if text.count("[") + text.count("{") > MOST_NESTED:
            _refuse_deep(text)
        return json.loads(text, object_pairs_hook=distinct)
    except RecursionError:
        message = f"the {param} has more than {MOST_NESTED} brackets within one another; send fewer"
        raise InvalidRequest(message, param=param) from None


def _refuse_deep(text: str) -> None:
    """Raise RecursionError, not from the end of the stack, if no half a surrogate comes first."""
    try:
        from_json(text)
    except ValueError as error:  # whatever else is wrong, Python's parser says so
        if str(error).startswith("recursion limit exceeded"):
            raise RecursionError from None
