"""Why an item is in an answer, or is not: what is asked and what is told, call by call.

The request is that of a recommendation, and names an item. Numbers of one answer go together: the
parts of the score add up to it, and each step goes on where the last one ended. Knows nothing of
how it is found out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.fields import WHOLE_NUMBER, AnswerModel, ItemId
from service.schemas.recommend import (
    Attributes,
    DegradedReason,
    RecommendRequest,
    UsedDecoding,
    UsedHistory,
    UsedVariant,
)

NotInAnswer = Literal[
    "seen", "refused", "excluded", "hidden", "filtered", "beam_died", "lower_score", "capped"
]
InAnswer = Literal["found", "pinned", "explored", "popular"]


def _one_item(value: Any) -> Any:
    if isinstance(value, int | float) and value > 1:
        sentence = "must be 1 here: only answers of single items are explained; leave it out"
        raise PydanticCustomError("horizon", sentence)
    return value


class ExplainRequest(RecommendRequest):
    """Ask how an item comes to its rank in the answer to this request, or why it has none."""

    item_id: ItemId = Field(description="An item of the bundle that answers.")
    horizon: Annotated[int, Field(ge=1, le=1), WHOLE_NUMBER, BeforeValidator(_one_item)] = Field(
        1, description="Only single items are explained."
    )


class TitledItem(AnswerModel):
    """An item by its id and title."""

    item_id: str
    title: str


class ExplainedItem(TitledItem):
    """The item that is explained. popularity_rank: from 1, the most popular"""

    sid: list[int]
    categories: list[str]
    attributes: Attributes
    popularity_rank: int


class FilledPosition(AnswerModel):
    """A position that a call filled in the item's beam, with the item's code there.

    position: from 0, a place in `sid`
    settled: whether there was nothing to choose: all items of the beam have this code, or all that
        are left once the other positions are filled
    probability: of the code among those that items of the beam have there, as the search sees it:
        ranked by `rows`, the share of the items that have it; else the network's, divided among
        these codes
    network_probability: what the network said of the code, among all codes; null where it was not
        asked
    rank: of the code among them by `probability`, from 1; num_codes: how many they are
    """

    position: int
    code: int
    settled: bool
    probability: float
    network_probability: float | None
    rank: int
    num_codes: int


class DeadBeam(AnswerModel):
    """A partial SID that was not kept, or after the last call an item that is not in the answer.

    sid: null where a position is masked
    place: among all that the call gave, from 1
    survivors: allowed items that agree with it; example: the most popular of them
    """

    sid: list[int | None]
    place: int
    score: float | None
    survivors: int
    example: TitledItem


class ExplainedStep(AnswerModel):
    """A call of the denoiser, and what it did to the item's beam.

    call: from 1; with guidance, the two calls of a step count as one. 0 = nothing was left to ask
    kind: `fill`, or `refill` if codes were masked again (`remask`)
    filled: the positions it filled, ascending; none if nothing was left to decide
    survivors_before, survivors: allowed items that agreed with the item's beam before and after
    beams: live beams before it; candidates: what they could become; kept: how many of these lived.
        In the last call these are items, and those that lived were found
    place: of the item's among the candidates, from 1; null = beyond those that are counted
    score: of the item's candidate; last_kept_score: of the last one that lived
    lived: whether the item's was kept
    dead_beams: the best of those that were not
    """

    call: int
    kind: Literal["fill", "refill"]
    filled: list[FilledPosition]
    survivors_before: int
    survivors: int
    beams: int
    candidates: int
    kept: int
    place: int | None
    score: float | None
    last_kept_score: float | None
    lived: bool
    dead_beams: list[DeadBeam]


class TypicalCategory(AnswerModel):
    """A category. share: of the 200 most popular items with a code; share_of_all: of all items"""

    category: str
    share: float
    share_of_all: float


class ExplainedCode(AnswerModel):
    """What one code of the item stands for.

    num_items: items of the bundle that have it, hidden ones too
    items: the most popular of them
    categories: those that are most typical of it: more frequent among its items than among all
    history: items of the history that have it, newest first
    """

    position: int
    code: int
    num_items: int
    items: list[TitledItem]
    categories: list[TypicalCategory]
    history: list[TitledItem]


class ScoreParts(AnswerModel):
    """What the item's score is the sum of.

    network: log-probabilities of its codes, as the network gave them
    neighbour_prior: what it gains from the items of the history that others had before it
    repeat_bias: what it gains, or loses, because the history holds it
    boost: what the request's boosts give it
    dense: what the dense head changes (retrieval `fused`); all, if it alone has found the item
    normalisation: the rest. Ranked by `rows`, probabilities of codes that no item has, or that were
        decided without a call, are divided among the items that are allowed; 0 ranked by `path`
    """

    network: float
    neighbour_prior: float
    repeat_bias: float
    boost: float
    dense: float
    normalisation: float


class PriorReason(TitledItem):
    """An item of the history, and its share of what the neighbour prior gives the item."""

    share: float


class ExplainResponse(AnswerModel):
    """Why an item is in the answer to a request, or is not.

    sentences: the same in plain English, the most important first
    rank, score: as in the answer. If the item is not in it, `rank` is null, and `score` is there if
        the last call scored the item (with retrieval `fused`, never)
    reason: why it is not in the answer; null if it is
    died_at_call: the call after which the item's beam was not kept, if that is the reason
    in_answer_as: why it is in the answer: found by the search, pinned, one of the new items of
        `explore`, or popular, if there was no history to work with; null if it is not
    steps: none for items that were not found by a search or that it could not return
    score_parts: null if there is no score
    because: the history items that the neighbour prior came from, the largest share first; null if
        the prior gives the item nothing
    """

    user_id: str
    item: ExplainedItem
    sentences: list[str]
    rank: int | None
    score: float | None
    in_answer_as: InAnswer | None
    reason: NotInAnswer | None
    died_at_call: int | None
    steps: list[ExplainedStep]
    codes: list[ExplainedCode]
    score_parts: ScoreParts | None
    because: list[PriorReason] | None
    served_by: Literal["model", "popular"]
    degraded: bool
    degraded_reasons: list[DegradedReason]
    warnings: list[str]
    bundle: str
    experiment: UsedVariant | None
    decoding: UsedDecoding | None
    history: UsedHistory
    timings_ms: dict[str, float]
