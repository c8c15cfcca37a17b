"""JSON about items: one item, similar and trending items, lists, and changes of items.

As in `service.schemas.fields`, unknown fields are refused. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.schemas.events import MAX_TIMESTAMP_S
from service.schemas.fields import (
    DIGITS,
    MAX_ID_CHARS,
    WHOLE_NUMBER,
    AnswerModel,
    ItemId,
    NewItemId,
    RequestModel,
)
from service.schemas.filters import AttributeName, AttributeText, Filter, Number
from service.schemas.recommend import (
    MAX_K,
    Attributes,
    CodesInCommon,
    DegradedReason,
    only_with,
)

MAX_SIMILAR = 100
MAX_PAGE = 100  # items of a page of `GET /items`
MAX_POINTS = 50_000  # items of a map
ItemOrder = Literal["popular", "latest"]


class ItemResponse(AnswerModel):
    """An item of the active bundle.

    popularity_rank: from 1, the most popular; same_sid: other items with the same semantic ID
    hidden: whether it is not recommended now
    """

    item_id: str
    title: str
    categories: list[str]
    attributes: Attributes
    sid: list[int]
    popularity_rank: int
    hidden: bool
    same_sid: list[str]
    bundle: str


class ItemsQuery(RequestModel):
    """Which items to list, and in which order: the parameters of a URL."""

    model_config = ConfigDict(strict=False)

    q: str = Field(
        "", max_length=200, description="Words, or parts of words, that a title has, all of them."
    )
    id_prefix: str = Field("", max_length=MAX_ID_CHARS, description="How the item_id begins.")
    filter: str | None = Field(
        None, max_length=20_000, description="The `filter` of POST /recommend, as JSON."
    )
    order: ItemOrder = Field(
        "popular",
        description="`popular`: most popular first, then items without interactions. `latest`: "
        "only items that were added or replaced while serving, newest first.",
    )
    after: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_ID_CHARS + 10,
        description="`next` of the page before, as it is.",
    )
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), DIGITS] = Field(
        20, description="Most items of the page."
    )


class FoundItem(AnswerModel):
    """An item of the active bundle.

    popularity_rank: from 1, the most popular
    hidden: whether it is not recommended now; added: whether it was added, or replaced, while
    serving
    """

    item_id: str
    title: str
    categories: list[str]
    attributes: Attributes
    popularity_rank: int
    hidden: bool
    added: bool


class FoundItemsResponse(AnswerModel):
    """A page of items.

    next: the `after` of the next page, whatever it looks like; null after the last page. A page may
    have fewer items than `limit`, or none, and still have a next: it ends when so many titles were
    looked at.
    warnings: what the filter asks for and no item has
    """

    items: list[FoundItem]
    next: str | None
    warnings: list[str]
    bundle: str


class MapQuery(RequestModel):
    """How many items of the map: the parameters of a URL."""

    model_config = ConfigDict(strict=False)

    limit: Annotated[int, Field(ge=1, le=MAX_POINTS), DIGITS] = Field(
        20_000, description="Most items of the map: the most popular."
    )


class MapGroupsQuery(MapQuery):
    """What puts the items of the map into groups: one of `position` and `attribute`."""

    position: Annotated[int | None, Field(ge=0), DIGITS] = Field(
        None, description="Items with the same code at this position, from 0, are a group."
    )
    attribute: AttributeName | None = Field(
        None,
        description="Items with the same value are a group: `category`, or an attribute of the "
        "bundle.",
    )


class MapResponse(AnswerModel):
    """Where the most popular items of the active bundle are on the map of its catalogue.

    item_ids: most popular first, then items without interactions
    places: of these items, x and y of each: base64 of unsigned 16-bit numbers, the low byte first.
    The corners of the map are 0 and 65534. An item whose numbers are both 65535 has no place. An
    item that was added while serving is where the item is that it is most like
    items_tag: another one if `item_ids` are others; `GET /map/groups` has it too
    num_items: of the whole catalogue
    positions, attributes: what `GET /map/groups` may ask for
    """

    bundle: str
    items_tag: str
    num_items: int
    item_ids: list[str]
    places: str
    positions: int
    attributes: list[str]


class MapGroupsResponse(AnswerModel):
    """The group of each item of `GET /map` with the same `limit`.

    items_tag: as in `GET /map`, while the items are the same
    groups: in the order of the items, base64 of unsigned 16-bit numbers, the low byte first;
    65535 = the item is in none
    names: of the groups, from number 0; null when the numbers are codes
    ordered: whether the groups are ranges of numbers or dates, the lowest first
    """

    bundle: str
    items_tag: str
    groups: str
    names: list[str] | None
    ordered: bool


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


class TrendingRequest(RequestModel):
    """Ask for the k items that most users had lately. Nothing is required."""

    k: Annotated[int, Field(ge=1, le=MAX_K), WHOLE_NUMBER] = Field(
        10, description="How many items."
    )
    filter: Filter = Field({}, description="As in `POST /recommend`.")
    max_per: dict[AttributeName, Annotated[int, Field(ge=1, le=MAX_K), WHOLE_NUMBER]] = Field(
        {}, max_length=8, description="As in `POST /recommend`."
    )
    exclude_items: list[ItemId] = Field(
        [], max_length=1000, description="Items not to return; unknown ids are ignored."
    )
    metadata: bool = Field(
        False, description="Whether items come with their categories and attributes."
    )


class TrendingItem(AnswerModel):
    """One item.

    recent_users: how many users had it lately: each counts once a day, and half as much after every
    half-life. Null for an item that fills the list, because it is popular in the bundle
    """

    item_id: str
    title: str
    rank: int
    recent_users: float | None
    categories: list[str] | None = only_with("metadata")
    attributes: Attributes | None = only_with("metadata")


class TrendingResponse(AnswerModel):
    """The items that most users had lately, then the most popular ones of the bundle.

    degraded: whether the store did not answer, so that what happened lately may not be in the list
    half_life_hours: after so long an event counts half as much
    warnings: what the request asks for and no item has
    """

    items: list[TrendingItem]
    half_life_hours: float
    degraded: bool
    degraded_reasons: list[DegradedReason]
    warnings: list[str]
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
    texts: dict[AttributeName, Annotated[str, Field(max_length=10_000)]] = Field(
        {},
        max_length=50,
        description="What the item's text columns say, of those that the bundle has "
        "(`text_columns` of `content` in `GET /info`). It is embedded and not kept. A column that "
        "is an attribute too need not be here.",
    )
    embedding: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        max_length=8192,
        description="Made like the content embeddings of the training items; without it the text "
        '"title. categories. texts" is embedded.',
    )


class HiddenItem(RequestModel):
    """An item that is not recommended for a while."""

    item_id: ItemId
    until: float | None = Field(
        None,
        ge=0,
        lt=MAX_TIMESTAMP_S,
        description="When it comes back by itself, in Unix seconds; without it, never.",
    )


class ItemsRequest(RequestModel):
    """Changes of the items of all bundles of the active bundle's name."""

    add: list[NewItem] = Field(
        [], max_length=100, description="Added, or put in the place of those that are there."
    )
    remove: list[ItemId] = Field(
        [], max_length=1000, description="Taken out of the catalogue, until that is undone."
    )
    undo: list[ItemId] = Field(
        [],
        max_length=1000,
        description="Additions and removals of these items are taken back: they are as in the "
        "files of the bundle.",
    )
    hide: list[HiddenItem] = Field(
        [],
        max_length=1000,
        description="Not recommended for a while, e.g. out of stock; they stay in the catalogue.",
    )
    unhide: list[ItemId] = Field(
        [], max_length=1000, description="Recommended again, as far as `hide` does not name them."
    )


class ItemsResponse(AnswerModel):
    """What changed, how many items the bundle has now, and how many of them are hidden."""

    bundle: str
    added: int
    removed: int
    num_items: int
    hidden: int


class ItemChange(AnswerModel):
    """A change that the store keeps. Of each item there is one of `added` and `removed` at most.

    at, until: Unix seconds; in_effect: whether the active bundle has it. An item that was added is
    not in effect in a bundle that was made later and knows the item from training.
    """

    item_id: str
    change: Literal["added", "removed", "hidden"]
    at: float
    until: float | None
    in_effect: bool


class ItemChangesResponse(AnswerModel):
    """Changes, oldest first. `next`: the `after` of the next page; null after the last page."""

    bundle: str
    changes: list[ItemChange]
    next: int | None
