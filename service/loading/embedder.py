"""A server that embeds texts, like Text Embeddings Inference: POST /embed, and GET /info.

`{"inputs": [text, ...]}` is answered with `[[number, ...], ...]`. By default such a server takes 32
texts a call. /info says how many it takes and which model it has; a server without /info works too.
Its answers are checked before they are used. Knows nothing of items or bundles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import httpx
import numpy as np
import structlog
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError

from service.errors import EmbedderUnavailable, EmbedderUnfit

READ_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 30.0  # for the whole call: a server may send a byte now and then
TEXTS_A_CALL = 32
MAX_ANSWER_BYTES = 32 << 20
TRY_LATER = {408, 424, 425, 429}  # 424: its model failed
TOO_MUCH = {413, 422}  # too many texts, too long a text, or one that it does not take
LARGEST = float(np.finfo(np.float32).max)

Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
EMBEDDINGS = TypeAdapter(list[list[Number]])

log = structlog.get_logger()


class TextRefused(Exception):
    """The embedder does not accept this text. place: its index among the given texts"""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class _Info(BaseModel):
    model_id: str | None = None
    max_client_batch_size: int = Field(default=TEXTS_A_CALL, ge=1)


@dataclass(frozen=True)
class Embedded:
    """embeddings: one for each text, of one length; model: as the server calls it, if it does."""

    embeddings: list[list[float]]
    model: str | None


class Embedder:
    """url: with or without a slash at its end. It may hold a password, so it is never shown."""

    def __init__(self, url: SecretStr) -> None:
        self._url = url.get_secret_value().rstrip("/")

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts. Raises EmbedderUnavailable, EmbedderUnfit, or TextRefused."""
        found: list[list[float]] = []
        async with httpx.AsyncClient(timeout=READ_TIMEOUT_S) as client:
            info = await self._info(client)
            for start in range(0, len(texts), info.max_client_batch_size):
                piece = texts[start : start + info.max_client_batch_size]
                found += await self._piece(client, piece, start)
        if len({len(embedding) for embedding in found}) > 1:
            raise _unfit("it answers with embeddings of several lengths")
        return Embedded(found, info.model_id)

    async def _info(self, client: httpx.AsyncClient) -> _Info:
        """What /info says. Other servers that imitate the API may not have it."""
        status, data = await self._asked(client, "GET", "/info")
        try:
            return _Info.model_validate_json(data) if status == 200 else _Info()
        except ValidationError:
            return _Info()

    async def _piece(
        self, client: httpx.AsyncClient, texts: Sequence[str], first: int
    ) -> list[list[float]]:
        """Embed some texts, in halves if they are too much for a call. first: index of the first"""
        status, data = await self._asked(
            client, "POST", "/embed", {"inputs": list(texts), "truncate": True}
        )
        if status in TOO_MUCH:
            if len(texts) == 1:
                raise TextRefused(first)
            half = len(texts) // 2
            return await self._piece(client, texts[:half], first) + await self._piece(
                client, texts[half:], first + half
            )
        if status in TRY_LATER or status >= 500:
            raise _unavailable(f"it answers {status}")
        if status != 200:
            raise _unfit(f"it answers {status}; see UNMASK_EMBEDDER_URL")
        try:
            embeddings = await asyncio.to_thread(EMBEDDINGS.validate_json, data)
        except ValidationError as error:
            raise _unfit("it answers with something else than lists of numbers") from error
        if len(embeddings) != len(texts):
            raise _unfit("it does not answer with one embedding a text")
        return embeddings

    async def _asked(
        self, client: httpx.AsyncClient, method: str, path: str, body: object = None
    ) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        data = bytearray()
        try:
            async with (
                asyncio.timeout(CALL_TIMEOUT_S),
                client.stream(method, self._url + path, json=body) as answer,
            ):
                async for part in answer.aiter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        raise _unfit(f"it answers with more than {MAX_ANSWER_BYTES} bytes")
            return answer.status_code, bytes(data)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise _unfit("UNMASK_EMBEDDER_URL is no URL that can be asked") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _unavailable(type(error).__name__) from error


def _unavailable(reason: str) -> EmbedderUnavailable:
    log.error("embedder_failed", reason=reason)
    return EmbedderUnavailable(f"the embedder did not answer with embeddings: {reason}")


def _unfit(reason: str) -> EmbedderUnfit:
    log.error("embedder_failed", reason=reason)
    return EmbedderUnfit(f"the embedder cannot be used: {reason}")
