"""How a request is decoded: as it asks, or by the best schedule that should be in time.

`schedule="auto"` takes the first rung of the bundle's ladder (`service.bundles.ladder`) whose
forecast meets the deadline. Knows nothing of queues: the forecast is given to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from service.batching import Work
from service.bundles import DecodingDefaults, Manifest
from service.decoding import Schedule
from service.errors import InvalidRequest
from service.schemas import MAX_BEAM_WIDTH, RecommendRequest, UsedDecoding

SPARE = 4  # beams for each place of an answer with caps, if the request does not say how many
MOST_ROWS = 1000  # that are looked at for an answer with caps


@dataclass(frozen=True)
class Plan:
    """Decoder settings of one request.

    schedule: over the positions of all items that are predicted together, `horizon` of them
    adjusted: "auto" took less than the best
    """

    decoding: DecodingDefaults
    schedule: Schedule
    adjusted: bool = False
    horizon: int = 1

    @cached_property
    def work(self) -> Work:
        """What decoding it takes."""
        return Work.of(
            self.schedule,
            self.decoding.beam_width,
            remask=self.decoding.remask,
            guidance=self.decoding.guidance,
            retrieval=self.decoding.retrieval,
            horizon=self.horizon,
        )

    def used(self, nfe: int) -> UsedDecoding:
        """What an answer says about it. Most requests share a plan, and most answers an `nfe`."""
        if nfe not in self._used:
            self._used[nfe] = UsedDecoding(
                **dict(self.decoding), schedule=list(self.steps), nfe=nfe, adjusted=self.adjusted
            )
        return self._used[nfe]

    @cached_property
    def _used(self) -> dict[int, UsedDecoding]:
        return {}

    @property
    def steps(self) -> tuple[int, ...]:
        """Positions that each denoiser call fills. Dense retrieval alone makes no call."""
        return () if self.decoding.retrieval == "dense" else self.schedule.steps


def fixed_plan(request: RecommendRequest, decoding: DecodingDefaults, manifest: Manifest) -> Plan:
    """What the request asks for. `decoding` gives every setting that it does not mention.

    With a horizon above 1 it gives `DecodingDefaults.for_several`.
    Raises InvalidRequest if the bundle of this manifest cannot decode so.
    """
    horizon = request.horizon
    if horizon > 1:
        decoding = decoding.for_several(horizon)
    asked = {
        name: value
        for name in DecodingDefaults.model_fields
        if (value := getattr(request, name)) is not None
    }
    decoding = decoding.model_copy(update=asked)
    if request.beam_width is None:
        decoding = decoding.wide_enough(beams_needed(request))
    if misfit := manifest.misfit(decoding, horizon):
        raise InvalidRequest(misfit.message, param=misfit.param)
    if request.explain and decoding.retrieval != "generate":
        raise _not_explained(decoding)
    return _plan(decoding, manifest.num_subspaces, horizon)


def explained_rungs(ladder: Sequence[DecodingDefaults]) -> list[DecodingDefaults]:
    """The rungs that a request with `explain` may take. Raises InvalidRequest if there is none."""
    rungs = [rung for rung in ladder if rung.retrieval == "generate"]
    if not rungs:
        raise _not_explained(ladder[0])
    return rungs


def _not_explained(decoding: DecodingDefaults) -> InvalidRequest:
    message = (
        f'explain tells how beams found items, which retrieval "{decoding.retrieval}" does not '
        'say; leave explain out, or ask for retrieval "generate"'
    )
    return InvalidRequest(message, param="explain")


def beams_needed(request: RecommendRequest) -> int:
    """How many beams an answer needs at least. Caps leave some of what they find out."""
    return min(SPARE * request.k, MAX_BEAM_WIDTH) if request.max_per else request.k


def rows_needed(request: RecommendRequest, plan: Plan) -> int:
    """How many rows the search is to find. Remasking has a beam for each, so it finds no more."""
    if not request.max_per:
        return request.k
    return max(request.k, plan.decoding.beam_width) if plan.decoding.remask else MOST_ROWS


def explored_places(request: RecommendRequest) -> int:
    """How many places of the answer are for new items."""
    return math.ceil(round(request.explore * request.k, 6))  # 0.07 * 100 is above 7


def plan_in_time(
    ladder: Sequence[DecodingDefaults],
    num_subspaces: int,
    num_beams: int,
    seconds: Callable[[Plan], float],
    within_s: float,
) -> Plan:
    """The first rung whose forecast is in time, else the fastest rung.

    num_beams: how many it has at least
    seconds: forecast time until a plan would be answered; within_s: how long it may take
    """
    plans = [_plan(rung.wide_enough(num_beams), num_subspaces) for rung in ladder]
    for plan in plans:
        if seconds(plan) <= within_s:
            return plan if plan is plans[0] else Plan(plan.decoding, plan.schedule, adjusted=True)
    fastest = min(plans, key=seconds)
    return Plan(fastest.decoding, fastest.schedule, adjusted=fastest is not plans[0])


def _plan(decoding: DecodingDefaults, num_subspaces: int, horizon: int = 1) -> Plan:
    return Plan(decoding, decoding.schedule(num_subspaces, horizon), horizon=horizon)
