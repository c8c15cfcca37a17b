"""Why an item is in an answer, or is not: in numbers, and in sentences for people.

Works from an answer that has been found, with its trace, in a thread: nothing here may keep the
event loop. Of each code it reads the most popular items only. Knows nothing of queues or stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching import Answer
from service.bundles import CATEGORY, Bundle, with_ancestors
from service.decoding import Job
from service.decoding.search import BiasParts, Step, bias_parts, followed, log_probs_of
from service.errors import InvalidRequest
from service.recommending.assembly import Caps
from service.recommending.item_mapping import attributes_of, most_codes_in_common
from service.recommending.jobs import WHY_LEFT_OUT, Inputs, UserHistory
from service.recommending.planning import Plan
from service.schemas import (
    DeadBeam,
    DegradedReason,
    ExplainedCode,
    ExplainedItem,
    ExplainedStep,
    ExplainRequest,
    ExplainResponse,
    FilledPosition,
    InAnswer,
    NotInAnswer,
    PriorReason,
    RecommendedItem,
    RecommendResponse,
    ScoreParts,
    TitledItem,
    TypicalCategory,
)

Rows = NDArray[np.int32]
MOST_DEAD = 3  # beams of a step
MOST_TYPICAL = 3  # items and categories of a code
MOST_REASONS = 5  # items of the history
MOST_READ = 200  # items of a code, for its categories
MOST_LETTERS = 80  # of a title in a sentence
LEAST_SHARE = 0.1  # of an item that a sentence names


@dataclass(frozen=True, eq=False)
class Sought:
    """What was found for a request.

    jobs: those of `answer` and `explored`, none if popular items answer
    reasons: why the answer is worse than it could be; stages: seconds so far
    deadline: of the request, in seconds of time.monotonic()
    """

    plan: Plan
    history: UserHistory
    inputs: Inputs
    jobs: Sequence[Job]
    answer: Answer | None
    explored: Answer | None
    reasons: list[DegradedReason]
    stages: dict[str, float]
    deadline: float


def check_is_traced(plan: Plan) -> None:
    """Raise InvalidRequest for a plan whose answer no calls tell of."""
    if plan.decoding.retrieval == "dense":
        message = (
            'retrieval "dense" makes no call and has no beams, so there is nothing to tell; ask '
            'for "generate" or "fused"'
        )
        raise InvalidRequest(message, param="retrieval")


def explanation(
    request: ExplainRequest, bundle: Bundle, row: int, sought: Sought, response: RecommendResponse
) -> ExplainResponse:
    """The explanation of one item. response: the answer to the request; row: the item's"""
    case = _Case(request, bundle, row, sought, response)
    item, parts = bundle.items[row], case.score_parts()
    return ExplainResponse(
        user_id=request.user_id,
        item=ExplainedItem(
            item_id=item.item_id,
            title=item.title,
            sid=bundle.catalogue.codes[row].tolist(),
            categories=list(item.categories),
            attributes=attributes_of(item),
            popularity_rank=row + 1,
        ),
        sentences=case.sentences(parts),
        rank=case.item.rank if case.item else None,
        score=_rounded(case.score),
        in_answer_as=case.in_answer_as,
        reason=case.reason,
        died_at_call=case.steps[-1].call if case.reason == "beam_died" else None,
        steps=[case.step(step) for step in case.steps],
        codes=[case.code(position) for position in range(bundle.catalogue.num_subspaces)],
        score_parts=parts,
        because=case.because() or None,
        **{name: getattr(response, name) for name in _OF_THE_ANSWER},
    )


_OF_THE_ANSWER = (RecommendResponse.model_fields.keys() & ExplainResponse.model_fields.keys()) - {
    "user_id"
}


class _Case:
    """One item, one answer.

    item: as it is in the answer, None if it is not
    steps: its way through the search; bias: what its score gains besides its codes
    score: in the answer, or what the last call gave it
    """

    def __init__(
        self,
        request: ExplainRequest,
        bundle: Bundle,
        row: int,
        sought: Sought,
        response: RecommendResponse,
    ) -> None:
        self.request, self.bundle, self.row, self.sought = request, bundle, row, sought
        self.catalogue, self.trie = bundle.catalogue, bundle.decoder.trie
        self.in_answer, self.nfe = response.item_ids, 0
        self.num_placed = sum(one.pinned or one.explored for one in response.items)
        self.item: RecommendedItem | None = next(
            (one for one in response.items if one.item_id == request.item_id), None
        )
        newest_first = sought.inputs.history[::-1].tolist()
        self.history: Rows = np.array(list(dict.fromkeys(newest_first)), np.int32)
        self.steps: list[Step] = []
        self.bias: BiasParts | None = None
        if sought.answer and sought.jobs:
            explored = sought.explored if self.item and self.item.explored else None
            job = sought.jobs[1 if explored else 0]
            decoded = (explored or sought.answer).decoded
            self.steps = followed(decoded.trace, job, self.trie, row, MOST_DEAD)
            self.nfe = sum(call.log_probs is not None for call in decoded.trace)
            decoder = bundle.decoder
            self.bias = bias_parts(
                job, decoder.prior, decoder.denoiser.repeat_bias, self.catalogue.num_items, row
            )
        self.reason = self._reason()
        self.score = self._score()

    @property
    def is_fused(self) -> bool:
        return self.sought.plan.decoding.retrieval == "fused"

    @property
    def in_answer_as(self) -> InAnswer | None:
        if self.item is None:
            return None
        if self.item.pinned:
            return "pinned"
        if self.item.explored:
            return "explored"
        return "found" if self.sought.answer else "popular"

    def _reason(self) -> NotInAnswer | None:
        if self.item is not None:
            return None
        inputs, history = self.sought.inputs, self.sought.history
        left_out = inputs.left_out(self.row, self.request.item_id, self.request, history)
        if left_out is not None:
            return left_out
        last = self.steps[-1] if self.steps else None
        if last is not None and not (last.lived or last.chose_rows or self.is_fused):
            return "beam_died"
        caps = Caps(self.bundle, self.request.max_per)
        for row in self.catalogue.rows_of(self.in_answer).tolist():
            caps.count(row)
        return "lower_score" if caps.admits(self.row) else "capped"

    def _score(self) -> float | None:
        """Of a fused answer, items that are not in it have none."""
        if self.item is not None:
            return self.item.score
        return None if self.is_fused else self._score_by_beams()

    def _score_by_beams(self) -> float | None:
        last = self.steps[-1] if self.steps else None
        if last is None or not last.chose_rows or (self.is_fused and not last.lived):
            return None  # fused: scored, but not found
        is_final = self.steps[-1].is_refill or not self.sought.plan.decoding.remask
        return self.steps[-1].score if is_final else None

    def score_parts(self) -> ScoreParts | None:
        """Parts of four decimals, which add up to the score that is shown."""
        score, bias = _rounded(self.score), self.bias
        if score is None or bias is None:
            return None
        own = self._score_by_beams()
        if own is None:  # the dense head alone has found it
            return ScoreParts(
                network=0, neighbour_prior=0, repeat_bias=0, boost=0, normalisation=0, dense=score
            )
        said = log_probs_of(self.steps, self.catalogue.num_subspaces)
        biases = {
            "neighbour_prior": round(bias.neighbour_prior, 4),
            "repeat_bias": round(bias.repeat_bias, 4),
            "boost": round(bias.boost, 4),
        }
        dense = round(score - round(own, 4), 4) if self.is_fused else 0.0
        network = round(float(np.nansum(said.astype(np.float64))), 4)
        rest = round(score - dense - network - sum(biases.values()), 4)
        decoding = self.sought.plan.decoding
        if decoding.ranking != "rows" and not decoding.remask:  # only what rounding has left
            network, rest = round(network + rest, 4), 0.0
        return ScoreParts(network=network, **biases, normalisation=rest, dense=dense)

    def because(self) -> list[PriorReason]:
        """Items of the history, each once, by their share of what the prior gives."""
        if self.bias is None:
            return []
        shares: Counter[int] = Counter()
        for row, share in zip(
            self.sought.inputs.history.tolist(), self.bias.shares.tolist(), strict=True
        ):
            shares[row] += share
        return [
            PriorReason(**self._titled(row).model_dump(), share=round(share, 4))
            for row, share in shares.most_common(MOST_REASONS)
            if share > 0
        ]

    def step(self, step: Step) -> ExplainedStep:
        """A step as JSON has it."""
        filled, mask, died = step.filled, self.catalogue.num_codes, step.died
        codes = self.catalogue.codes[self.row]
        return ExplainedStep(
            call=step.call,
            kind="refill" if step.is_refill else "fill",
            filled=[
                FilledPosition(
                    position=position,
                    code=int(codes[position]),
                    settled=bool(filled.settled[n]),
                    probability=round(float(filled.probabilities[n]), 6),
                    network_probability=_probability(float(filled.log_probs[n])),
                    rank=int(filled.ranks[n]),
                    num_codes=int(filled.num_codes[n]),
                )
                for n, position in enumerate(filled.positions.tolist())
            ],
            survivors_before=step.survivors_before,
            survivors=step.survivors,
            beams=step.num_beams,
            candidates=step.num_candidates,
            kept=step.num_kept,
            place=step.place,
            score=_rounded(step.score),
            last_kept_score=_rounded(step.last_kept),
            lived=step.lived,
            dead_beams=[
                DeadBeam(
                    sid=[None if code == mask else code for code in died.sids[n].tolist()],
                    place=int(died.places[n]),
                    score=_rounded(float(died.scores[n])),
                    survivors=int(died.survivors[n]),
                    example=self._titled(row),
                )
                for n, row in enumerate(died.rows.tolist())
            ],
        )

    def code(self, position: int) -> ExplainedCode:
        """What the item's code at a position stands for. Rows are in the order of popularity."""
        code = int(self.catalogue.codes[self.row, position])
        start, stop = self.trie.indptr[position, code : code + 2].tolist()
        rows = self.trie.rows[position, start : min(stop, start + MOST_READ)]
        others = rows[rows != self.row][:MOST_TYPICAL]
        sharing = self.history[self.catalogue.codes[self.history, position] == code]
        return ExplainedCode(
            position=position,
            code=code,
            num_items=stop - start,
            items=[self._titled(one) for one in others.tolist()],
            categories=self._categories(rows),
            history=[self._titled(one) for one in sharing.tolist()],
        )

    def _categories(self, rows: Rows) -> list[TypicalCategory]:
        """Those that are more frequent among these rows than among all, by the evidence for it."""
        items = self.bundle.items
        counts: Counter[str] = Counter()
        for row in rows.tolist():
            counts.update(set(with_ancestors(items[row].categories)))
        named = list(counts)
        of_all = np.array(self.bundle.attributes.num_with(CATEGORY, named)) / len(items)
        own = np.array([counts[name] for name in named]) / max(1, len(rows))
        evidence = own * np.log(own / np.maximum(of_all, 1e-9))
        best = np.lexsort((-own, -evidence))[:MOST_TYPICAL]
        return [
            TypicalCategory(
                category=named[n],
                share=round(float(own[n]), 4),
                share_of_all=round(float(of_all[n]), 4),
            )
            for n in best.tolist()
            if own[n] > of_all[n]
        ]

    def _titled(self, row: int) -> TitledItem:
        item = self.bundle.items[row]
        return TitledItem(item_id=item.item_id, title=item.title)

    def sentences(self, parts: ScoreParts | None) -> list[str]:
        """What a person wants to know, the most important first."""
        said = [self._outcome()]
        by_dense = bool(parts and parts.dense and self._score_by_beams() is None)
        if self.bias is not None and not by_dense:
            said.append(self._why_the_prior())
            if self.bias.repeat_bias:
                said.append(f"The history holds it already: {_added(self.bias.repeat_bias)}.")
            if self.bias.boost:
                said.append(f"The request's boosts count: {_added(self.bias.boost)}.")
        if parts and parts.dense:
            said.append(
                "The dense head alone has found it."
                if by_dense
                else f"The dense head has a say: {_added(parts.dense)}."
            )
        num_codes = self.catalogue.num_subspaces
        others = self.history[self.history != self.row]
        for alike in most_codes_in_common(self.bundle, self.row, others, 1):
            [row] = self.catalogue.rows_of([alike.item_id]).tolist()
            said.append(
                f"It has {alike.codes} of its {num_codes} codes in common with "
                f"{self._named(row)} of the history."
            )
        if self.steps:
            said += self._the_search()
        return said

    def _outcome(self) -> str:
        item, score = self.item, _rounded(self.score)
        by = f", with a score of {score:.2f}" if score is not None else ""
        decoding = self.sought.plan.decoding
        is_of_all = self.in_answer_as != "explored" and decoding.retrieval == "generate"
        if score is not None and decoding.ranking == "rows" and is_of_all:
            by += f", which is a probability of {_percent(float(np.exp(score)))}"
        if item is not None:
            rank = f"It has rank {item.rank} of {len(self.in_answer)}{by}"
            return {
                "pinned": f"{rank}: the request has pinned it there.",
                "explored": f"{rank}, in a place that is kept for new items.",
                "popular": f"{rank}: popular items answer, because {self._why_popular()}.",
                "found": f"{rank}.",
            }[self.in_answer_as or "found"]
        why = "It is not in the answer"
        if said := WHY_LEFT_OUT.get(str(self.reason)):
            return f"{why}: {said}."
        if not self.steps:
            return f"{why}: more popular items answer, because {self._why_popular()}."
        last = self.steps[-1]
        where = f"number {last.place:,}" if last.place else "behind all that are counted"
        among = f"{where} of {last.num_candidates:,}"
        if self.reason == "beam_died":
            return (
                f"{why}: its beam died at call {last.call}, {among}; {last.num_kept:,} were kept."
            )
        if self.reason == "capped":
            return f"{why}: max_per has no more room for its like{by}."
        found = self.sought.answer and self.row in self.sought.answer.decoded.rows
        if found and self.num_placed:
            return f"{why}: {among}{by}; {self.num_placed} pinned or new items have places."
        if last.lived or last.last_kept is None:
            return f"{why}: {among}{by}."
        return f"{why}: {among}{by}. The last one that was taken has {last.last_kept:.2f}."

    def _why_popular(self) -> str:
        if self.sought.inputs.history.size:
            return "the search failed or was late"
        return "there is no history to work with"

    def _why_the_prior(self) -> str:
        assert self.bias is not None
        reasons = self.because()
        if not reasons:
            return (
                "The neighbour prior gives it nothing: no item of the history is known to come "
                "before it, or is like it."
            )
        named = [one for one in reasons if one.share >= LEAST_SHARE][:2] or reasons[:1]
        rows = self.catalogue.rows_of([one.item_id for one in named]).tolist()
        shown = " and ".join(
            f"{self._named(row)} ({one.share:.0%})" for row, one in zip(rows, named, strict=True)
        )
        return (
            f"Because of {shown}: it often comes after such an item, or is like it. "
            f"The neighbour prior counts: {_added(self.bias.neighbour_prior)}."
        )

    def _the_search(self) -> list[str]:
        first, last = self.steps[0], self.steps[-1]
        calls = max(step.call for step in self.steps)
        after = f"{last.survivors:,} after call {calls} of {self.nfe}"
        if calls > 1:
            after = f"{first.survivors:,} after call 1, and {after}"
        said = [f"Of {first.survivors_before:,} items, those that agreed with its codes: {after}."]
        if self.nfe == 1:
            said = [f"One call scored every one of {first.survivors_before:,} items."]
        asked = [
            (float(step.filled.probabilities[n]), step, n)
            for step in self.steps
            for n in range(len(step.filled.positions))
            if not step.filled.settled[n]
        ]
        if asked:
            probability, step, n = min(asked, key=lambda one: one[0])
            filled = step.filled
            said.append(
                f"Least probable is its code at position {filled.positions[n]}, counted from 0: "
                f"{_percent(probability)}, number {filled.ranks[n]:,} of {filled.num_codes[n]:,} "
                "that were possible there."
            )
        return said

    def _named(self, row: int) -> str:
        title = self.bundle.items[row].title or self.bundle.items[row].item_id
        return f'"{title}"' if len(title) <= MOST_LETTERS else f'"{title[: MOST_LETTERS - 1]}…"'


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and np.isfinite(value) else None


def _probability(log_prob: float) -> float | None:
    return None if np.isnan(log_prob) else round(float(np.exp(log_prob)), 6)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "below 0.1%"


def _added(value: float) -> str:
    return f"{value:+.2f} to its score"
