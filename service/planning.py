"""How a request is decoded: as it asks, or by the best schedule that is foretold to be in time.

A bundle's ladder has its default decoding on top and below it what its grid measured to be faster,
best recall first. `schedule="auto"` takes the first rung that makes the deadline. Knows nothing of
queues: the forecast is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from pydantic import ValidationError

from service.decoding import Schedule
from service.errors import InvalidRequest
from service.latency import Work
from service.manifest import DecodingDefaults, Manifest
from service.schemas import RecommendRequest

MAX_RUNGS = 32  # each is looked at for every request
FASTER = 0.9  # of the time of the rung above; less would be noise


@dataclass(frozen=True)
class Plan:
    """Settings of the decoder for one request; `adjusted` when "auto" took less than the best."""

    decoding: DecodingDefaults
    schedule: Schedule
    adjusted: bool = False

    @property
    def work(self) -> Work:
        """What decoding it takes."""
        return Work.of(self.schedule, self.decoding.beam_width)


def fixed_plan(request: RecommendRequest, decoding: DecodingDefaults, num_subspaces: int) -> Plan:
    """What the request asks for, and where it asks for nothing `decoding`.

    Raises InvalidRequest where the bundle's SIDs are too short for it.
    """
    asked = {
        name: value
        for name in DecodingDefaults.model_fields
        if (value := getattr(request, name)) is not None
    }
    decoding = decoding.model_copy(update=asked)
    if request.beam_width is None:
        decoding = decoding.wide_enough(request.k)
    for param in ("r_warm", "m_par"):
        if getattr(decoding, param) > num_subspaces:
            message = f"{param} must be at most {num_subspaces}, the bundle's num_subspaces"
            raise InvalidRequest(message, param=param)
    return _plan(decoding, num_subspaces)


def plan_in_time(
    ladder: Sequence[DecodingDefaults],
    num_subspaces: int,
    k: int,
    seconds: Callable[[Plan], float],
    within_s: float,
) -> Plan:
    """The first rung foretold to be in time, else the fastest.

    seconds: until a plan would be answered; within_s: that it may take
    """
    plans = [_plan(rung.wide_enough(k), num_subspaces) for rung in ladder]
    for plan in plans:
        if seconds(plan) <= within_s:
            return plan if plan is plans[0] else Plan(plan.decoding, plan.schedule, adjusted=True)
    fastest = min(plans, key=seconds)
    return Plan(fastest.decoding, fastest.schedule, adjusted=fastest is not plans[0])


def ladder_of(manifest: Manifest) -> tuple[DecodingDefaults, ...]:
    """The default decoding, then what the grid in `facts` measured to be ever faster.

    Of two rungs the upper has the higher recall. A bundle without a grid has one rung. Points that
    do not fit the bundle are left out: facts are no part of its contract.
    """
    ladder = [manifest.decoding]
    grid = manifest.facts.get("grid")
    points = grid.get("points") if isinstance(grid, dict) else None
    measured = [_measured(point) for point in points] if isinstance(points, list) else []
    most = manifest.num_subspaces
    known = [
        entry
        for entry in measured
        if entry is not None and entry[0].r_warm <= most and entry[0].m_par <= most
    ]
    ms_of = {decoding: ms for decoding, ms, _ in known}
    fastest = ms_of.get(manifest.decoding)
    if fastest is None:
        return tuple(ladder)
    for decoding, ms, _ in sorted(known, key=lambda entry: (-entry[2], entry[1])):
        if ms < FASTER * fastest and len(ladder) < MAX_RUNGS:
            ladder.append(decoding)
            fastest = ms
    return tuple(ladder)


def _measured(point: object) -> tuple[DecodingDefaults, float, float] | None:
    """A point of the grid: its decoding, milliseconds, and recall@10."""
    if not isinstance(point, dict):
        return None
    names = DecodingDefaults.model_fields
    try:
        decoding = DecodingDefaults.model_validate({name: point[name] for name in names})
        ms, recall = float(point["milliseconds"]), float(point["recall@10"])
    except (ValidationError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return (decoding, ms, recall) if ms > 0 and isfinite(ms) and isfinite(recall) else None


def _plan(decoding: DecodingDefaults, num_subspaces: int) -> Plan:
    schedule = Schedule.from_params(
        num_subspaces=num_subspaces, r_warm=decoding.r_warm, m_par=decoding.m_par
    )
    return Plan(decoding, schedule)
