"""JSON about items: one item, similar items, and changes of items.

As in `service.schemas.fields`, unknown fields are refused. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.schemas.fields import WHOLE_NUMBER, AnswerModel, ItemId, NewItemId, RequestModel
from service.schemas.filters import AttributeName, AttributeText, Number
from service.schemas.recommend import Attributes, CodesInCommon

MAX_SIMILAR = 100


class ItemResponse(AnswerModel):
    """An item of the active bundle.

    popularity_rank: from 1, the most popular; same_sid: other items with the same semantic ID
    """

    item_id: str
    title: str
    categories: list[str]
    attributes: Attributes
    sid: list[int]
    popularity_rank: int
    same_sid: list[str]
    bundle: str


class SimilarRequest(RequestModel):
    """Ask for the items most similar to another one."""

    k: Annotated[int, Field(ge=1, le=MAX_SIMILAR), WHOLE_NUMBER] = Field(
        10, description="How many items."
    )


class SimilarResponse(AnswerModel):
    """Items that share codes with the item: most shared codes first, then by popularity."""

    item_id: str
    similar: list[CodesInCommon]
    bundle: str


class NewItem(RequestModel):
    """An item to add: with its embedding, or with the text that the embedder will embed."""

    item_id: NewItemId
    title: str = Field(max_length=1000)
    categories: list[AttributeText] = Field([], max_length=50)
    attributes: dict[
        AttributeName,
        Annotated[list[AttributeText], Field(min_length=1, max_length=50)] | Number | AttributeText,
    ] = Field(
        {},
        max_length=50,
        description="Of those that the bundle has: a list of texts, a number, or a date such as "
        "2026-11-30.",
    )
    embedding: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        max_length=8192,
        description="Made like the content embeddings of the training items; without it the text "
        '"title. categories" is embedded.',
    )


class ItemsRequest(RequestModel):
    """Items to add to the active bundle, and items to remove from it."""

    add: list[NewItem] = Field([], max_length=100)
    remove: list[ItemId] = Field([], max_length=1000)


class ItemsResponse(AnswerModel):
    """What changed, and how many items the bundle has now."""

    bundle: str
    added: int
    removed: int
    num_items: int
