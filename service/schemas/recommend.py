"""What is asked for a user and what is answered: fields, bounds, one sentence each.

The recommender checks bounds that depend on the bundle (r_warm, m_par). Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.decoding import MAX_HORIZON, Order, Ranking, Retrieval
from service.schemas.fields import (
    WHOLE_NUMBER,
    AnswerModel,
    ItemId,
    RequestModel,
    TimeoutMs,
    UserId,
)
from service.schemas.filters import AttributeName, Filter

Fallback = Literal["history", "off", "all"]  # when popular items answer: see UNMASK_FALLBACK
HistorySource = Literal["store", "request", "unavailable"]
DegradedReason = Literal[
    "history_unavailable", "history_unknown", "schedule_reduced", "decode_failed", "deadline"
]
MAX_K = 100
MAX_BEAM_WIDTH = 200
MAX_FINISH_ROWS = 1_000_000
MAX_CANDIDATES = 1000
MAX_BOOSTS = 8
MAX_BOOST = 5.0
MAX_PINS = 20
MAX_GUIDANCE = 10.0
MAX_HISTORY_LIMIT = 10_000
# The fields that say how to decode. A test checks that they are those of `DecodingDefaults`.
DECODING_FIELDS = (
    "r_warm",
    "m_par",
    "beam_width",
    "ranking",
    "finish_rows",
    "order",
    "remask",
    "guidance",
    "retrieval",
)


# Why a field has no meaning for sequences of items.
_NOT_OF_SEQUENCES = {
    "after": "answers have no next page; leave `after` out",
    "explore": "no place is kept for new items; leave `explore` out",
    "explain": "it is not recorded how items were found; leave `explain` out",
    "max_per": "sequences are not capped; leave `max_per` out",
    "pin": "sequences have no pinned items; leave `pin` out",
    "schedule": 'schedule must not be "auto": the bundle was measured with one item at a time',
}


class Boost(RequestModel):
    """What the log-probability of items gains if they fulfil conditions."""

    filter: Filter = Field(min_length=1, description="As in the request: all must be fulfilled.")
    weight: float = Field(
        ge=-MAX_BOOST, le=MAX_BOOST, description="Added to the score; 0.7 doubles a probability."
    )


class RecommendFields(RequestModel):
    """What is asked for a user, alone or in a batch."""

    user_id: UserId = Field(description="Whose history to read; any string you like.")
    k: Annotated[int, Field(ge=1, le=MAX_K), WHOLE_NUMBER] = Field(
        10, description="How many items, or sequences of items if `horizon` is above 1."
    )
    horizon: Annotated[int, Field(ge=1, le=MAX_HORIZON), WHOLE_NUMBER] = Field(
        1,
        description="How many next items are predicted together. Above 1 the answer has "
        "`sequences` of so many items, and `after`, `explore`, `explain`, `max_per`, `pin` and "
        "`schedule: auto` are refused; `/info` says the `max_horizon` of the bundle.",
    )
    schedule: Literal["auto", "fixed"] | None = Field(
        None,
        description="`auto`: of the decodings that the bundle has measured, the best that should "
        "be in time; then no setting of the decoding may be given. Default: the service's.",
    )
    r_warm: Annotated[int, Field(ge=0), WHOLE_NUMBER] | None = Field(
        None, description="First decode steps, one position each; default: the bundle's."
    )
    m_par: Annotated[int, Field(ge=1), WHOLE_NUMBER] | None = Field(
        None, description="Positions filled by each later step; default: the bundle's."
    )
    beam_width: Annotated[int, Field(ge=1, le=MAX_BEAM_WIDTH), WHOLE_NUMBER] | None = Field(
        None, description="Beams kept at each step, at least k; default: the bundle's, or k."
    )
    ranking: Ranking | None = Field(
        None,
        description="What a beam is worth: the probability of its rows (`rows`), of its codes "
        "(`path`), or of its codes and its best completion (`best`); default: the bundle's.",
    )
    finish_rows: Annotated[int, Field(ge=0, le=MAX_FINISH_ROWS), WHOLE_NUMBER] | None = Field(
        None,
        description="When the beams own at most this many rows, all of these are scored and the "
        "search ends; 0 = never; default: the bundle's.",
    )
    order: Order | None = Field(
        None,
        description="Which masked positions a beam fills first: those with the most probable code "
        "(`confidence`), with the lowest `entropy`, with the largest `margin` between the two most "
        "probable codes, from `left_to_right`, by chance (`random`), or as by confidence but "
        "counting codes that no item has too (`raw_confidence`, not with ranking `rows`); default: "
        "the bundle's.",
    )
    remask: Annotated[int, Field(ge=0), WHOLE_NUMBER] | None = Field(
        None,
        description="When the search ends, this many codes of each beam, those of which the "
        "network was least certain, are masked again and refilled by one more call; 0 = none; "
        "default: the bundle's.",
    )
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = Field(
        None,
        description="How far codes are pulled away from what is probable without a history "
        "(classifier-free guidance). Above 0, each step has two calls, and the bundle's network "
        "must have been trained for it; default: the bundle's.",
    )
    retrieval: Retrieval | None = Field(
        None,
        description="What finds items: beams (`generate`), the network's dense head alone, without "
        "a search (`dense`), or both (`fused`). The last two need a bundle with a dense head. "
        "Default: the bundle's.",
    )
    history: list[ItemId] | None = Field(
        None,
        max_length=500,
        description="Item ids, oldest to newest; when given, the stored history is not read.",
    )
    exclude_items: list[ItemId] = Field(
        [], max_length=1000, description="Items not to return; unknown ids are ignored."
    )
    exclude_seen: bool = Field(True, description="Leave out every item of the history.")
    candidates: list[ItemId] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="Rank only these items. The search starts from them, as with a filter; those "
        "that the bundle does not have are named in `warnings`.",
    )
    filter: Filter = Field(
        {},
        description="Only items that fulfil the condition of each attribute. A list is short for "
        "`any`; see docs/how-to/serve.md.",
    )
    explore: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of the places for new items, which had no interactions in training: the "
        "best of them, by the same search and filter. Rounded up to whole places.",
    )
    boost: list[Boost] = Field(
        [],
        max_length=MAX_BOOSTS,
        description="Raises or lowers the scores of items inside the search, so that boosted items "
        "are found. Boosts of one item add up, to at most 5 either way.",
    )
    max_per: dict[AttributeName, Annotated[int, Field(ge=1, le=MAX_K), WHOLE_NUMBER]] = Field(
        {},
        max_length=8,
        description='Most items of the answer with the same value of an attribute: `{"category": '
        "2}` allows two of each category as items name it. Items without a value are not capped.",
    )
    pin: dict[ItemId, Annotated[int, Field(ge=1, le=MAX_K), WHOLE_NUMBER]] = Field(
        {},
        max_length=MAX_PINS,
        description='Items that get a rank of their own: `{"item-7": 1}` puts it first. An item '
        "that the answer may not have is not pinned, and `warnings` says why.",
    )
    after: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="A recommendation_id of this user. The answer is its next page, without the "
        "items of that answer and of the pages before it.",
    )
    metadata: bool = Field(
        False, description="Whether items come with their categories and attributes."
    )
    explain: bool = Field(
        False,
        description="Whether items come with how beams found them; only with retrieval `generate`.",
    )

    @model_validator(mode="after")
    def _beams_hold_k_items(self) -> Self:
        if self.beam_width is not None and self.beam_width < self.k:
            raise PydanticCustomError("beam_width", "must be at least k")
        return self

    @model_validator(mode="after")
    def _auto_is_free_to_choose(self) -> Self:
        if self.schedule == "auto" and self.pins_decoding:
            raise PydanticCustomError(
                "schedule",
                'with schedule "auto", r_warm, m_par, beam_width, ranking, finish_rows, order, '
                "remask, guidance and retrieval must not be given",
            )
        return self

    @model_validator(mode="after")
    def _pins_have_places(self) -> Self:
        ranks = list(self.pin.values())
        if any(rank > self.k for rank in ranks):
            raise PydanticCustomError("pin", "ranks must be at most k")
        if len(set(ranks)) < len(ranks):
            raise PydanticCustomError("pin", "each item needs a rank of its own")
        return self

    @model_validator(mode="after")
    def _sequences_are_plain(self) -> Self:
        if self.horizon > 1:
            for name, is_asked in (
                ("after", self.after is not None),
                ("explore", self.explore > 0),
                ("explain", self.explain),
                ("max_per", bool(self.max_per)),
                ("pin", bool(self.pin)),
                ("schedule", self.schedule == "auto"),
            ):
                if is_asked:
                    sentence = f"with a horizon above 1, {_NOT_OF_SEQUENCES[name]}"
                    raise PydanticCustomError(name, sentence)
        return self

    @property
    def attributes(self) -> set[str]:
        """The attributes of items that the request names."""
        return {*self.filter, *self.max_per, *(name for one in self.boost for name in one.filter)}

    @property
    def pins_decoding(self) -> bool:
        """Whether the request itself says how to decode."""
        given = self.model_fields_set.intersection(DECODING_FIELDS)  # null means not given
        return any(getattr(self, name) is not None for name in given)


class RecommendRequest(RecommendFields):
    """Ask for k items for a user. Only `user_id` is required."""

    timeout_ms: TimeoutMs | None = Field(
        None, description="Deadline, from receipt; default: the service's."
    )


class CodesInCommon(AnswerModel):
    """An item that shares codes with another one, and how many codes."""

    item_id: str
    codes: int


class Explanation(AnswerModel):
    """How an item was found. Lists are by position of its SID, or by denoiser call.

    filled_by_call: for each position, the call that filled it, from 1
    log_probs: for each position, of its code in that call; null where no call was asked for it
    survivors, beam_scores: for each call, the items left in the item's beam, and the beam's score
    history_in_common: items of the history that share most codes with it
    """

    filled_by_call: list[int]
    log_probs: list[float | None]
    survivors: list[int]
    beam_scores: list[float | None]
    history_in_common: list[CodesInCommon]


def only_with(name: str) -> Any:
    """A field that is left out, and not null, unless the request asks for it."""
    return Field(
        None, exclude_if=lambda value: value is None, description=f"Only there with `{name}`."
    )


# Of an item, by name: several texts, a number, or a date.
Attributes = dict[str, list[str] | float | str]


class RecommendedItem(AnswerModel):
    """One item. `score` is its log-probability, null for popular and pinned items.

    With `boost` it is that of the boosted model; ranked by `path` or `best`, the log-probability
    and the item's boosts, not normalised. Scores are comparable within one answer only. An explored
    item's is its log-probability among the new items, so it is comparable with those of other
    explored items only.
    """

    item_id: str
    title: str
    rank: int
    score: float | None
    sid: list[int]
    explored: bool = Field(False, description="Whether it has a place of `explore`.")
    pinned: bool = Field(False, description="Whether it has a place of `pin`; it has no score.")
    categories: list[str] | None = only_with("metadata")
    attributes: Attributes | None = only_with("metadata")
    explanation: Explanation | None = only_with("explain")


class ItemOfSequence(AnswerModel):
    """One of the next items, as the sequence says."""

    item_id: str
    title: str
    sid: list[int]
    categories: list[str] | None = only_with("metadata")
    attributes: Attributes | None = only_with("metadata")


class RecommendedSequence(AnswerModel):
    """The next items in their order, all different. `score` is their joint log-probability.

    It is null for popular items.
    """

    rank: int
    score: float | None
    items: list[ItemOfSequence]


class UsedDecoding(AnswerModel):
    """How the items were decoded. `nfe` is the number of denoiser calls, without the encoder.

    `nfe` is smaller than the length of `schedule` if `finish_rows` ended the search early. A call
    for `remask` is one more; with `guidance`, every call counts twice. With retrieval `dense`
    nothing is searched: `nfe` is 0 and `schedule` empty, and the settings of the search did
    nothing.
    """

    r_warm: int
    m_par: int
    beam_width: int
    ranking: Ranking
    finish_rows: int
    order: Order
    remask: int = 0
    guidance: float = 0.0
    retrieval: Retrieval
    schedule: list[int]
    nfe: int
    adjusted: bool = Field(description='Whether `schedule="auto"` took less than the best.')


class UsedVariant(AnswerModel):
    """The experiment that runs, and the variant that this answer counts for."""

    name: str
    variant: str


class UsedHistory(AnswerModel):
    """The history behind an answer. `unknown_items` of its `length` items are not in the bundle."""

    source: HistorySource
    length: int
    unknown_items: int


class RecommendResponse(AnswerModel):
    """Items, best first. `decoding` is null when the items are the popular ones.

    If the request has a `horizon` above 1, `items` is empty and `sequences` is there instead.
    warnings: what the request asked for and did not get, such as a category that no item has
    """

    recommendation_id: str
    user_id: str
    served_by: Literal["model", "popular"]
    degraded: bool
    degraded_reasons: list[DegradedReason]
    warnings: list[str]
    bundle: str
    experiment: UsedVariant | None
    items: list[RecommendedItem]
    sequences: list[RecommendedSequence] | None = Field(
        None,
        exclude_if=lambda sequences: sequences is None,
        description="Only with a `horizon` above 1: the best sequences, best first.",
    )
    decoding: UsedDecoding | None
    history: UsedHistory
    timings_ms: dict[str, float]

    @property
    def item_ids(self) -> tuple[str, ...]:
        """All items of the answer, each once, in the order in which they come."""
        if self.sequences is None:
            return tuple(item.item_id for item in self.items)
        found = (item.item_id for sequence in self.sequences for item in sequence.items)
        return tuple(dict.fromkeys(found))


class HistoryResponse(AnswerModel):
    """A user's stored items, oldest to newest. Empty for an unknown user.

    refused: all items in which the user is not interested, each once
    """

    user_id: str
    history: list[str]
    refused: list[str]
