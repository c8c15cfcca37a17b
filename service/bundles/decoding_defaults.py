"""How a bundle decodes unless a request says otherwise, and what a bundle cannot follow.

Both the service and training ask `misfit_of`, so what is measured can be requested. Knows no files.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.decoding import MAX_HORIZON, Job, Order, Ranking, Retrieval, Schedule

Rows = NDArray[np.int32]
MAX_SUBSPACES = 64
MAX_BEAM_WIDTH = 1_000
MAX_FINISH_ROWS = 1_000_000
MAX_GUIDANCE = 10.0


class DecodingDefaults(BaseModel):
    """The decoding of a request that asks for nothing else. Each field is chosen by measurement."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    r_warm: int = Field(ge=0, le=MAX_SUBSPACES)
    m_par: int = Field(ge=1, le=MAX_SUBSPACES)
    beam_width: int = Field(ge=1, le=MAX_BEAM_WIDTH)
    ranking: Ranking = "rows"
    finish_rows: int = Field(0, ge=0, le=MAX_FINISH_ROWS)
    order: Order = "confidence"
    # Not written while they are these, so manifests are as they were before there were these three.
    remask: int = Field(0, ge=0, lt=MAX_SUBSPACES, exclude_if=lambda codes: codes == 0)
    guidance: float = Field(0.0, ge=0, le=MAX_GUIDANCE, exclude_if=lambda weight: weight == 0)
    retrieval: Retrieval = Field("generate", exclude_if=lambda value: value == "generate")

    def wide_enough(self, k: int) -> Self:
        """The same, with at least k beams."""
        return self.model_copy(update={"beam_width": max(self.beam_width, k)})

    def schedule(self, num_subspaces: int, horizon: int = 1) -> Schedule:
        """Over the positions of `horizon` items."""
        return Schedule.from_params(
            num_subspaces=horizon * num_subspaces, r_warm=self.r_warm, m_par=self.m_par
        )

    def job(self, history: Rows, k: int, schedule: Schedule, **rest: Any) -> Job:
        """A job that is decoded so. rest: its fields that say nothing of decoding"""
        return Job(
            history,
            k,
            schedule,
            self.beam_width,
            finish_rows=self.finish_rows,
            ranking=self.ranking,
            order=self.order,
            remask=self.remask,
            guidance=self.guidance,
            retrieval=self.retrieval,
            **rest,
        )

    def for_several(self, horizon: int) -> Self:
        """What a request for `horizon` items, above 1, gets where it says nothing else.

        As many calls as a SID has positions, each of which fills one position an item on average.
        The rest was measured for one item, except the beams and their order. Beams are ranked by
        path: a score of rows would need a sum over all sequences of different items.
        """
        several = {"r_warm": 0, "m_par": horizon, "ranking": "path", **_ONLY_OF_ONE_ITEM}
        return self.model_copy(update=several)


# What a search of several items does not have: the value that says so.
_ONLY_OF_ONE_ITEM = {"finish_rows": 0, "remask": 0, "guidance": 0.0, "retrieval": "generate"}


class Misfit(NamedTuple):
    """A setting of a decoding that a bundle cannot follow, and a sentence that says why."""

    param: str
    message: str


def misfit_of(
    decoding: DecodingDefaults,
    num_subspaces: int,
    *,
    autoregressive: bool,
    history_dropout: float,
    has_dense: bool,
    horizon: int = 1,
    max_horizon: int = MAX_HORIZON,
) -> Misfit | None:
    """The first setting that such a bundle cannot follow; None if it can decode so.

    autoregressive, history_dropout: see `Manifest`
    has_dense: whether its network has a dense head
    horizon: how many items are predicted together; max_horizon: how many the network can be asked
        for
    """
    if horizon > 1:
        return _misfit_of_several(decoding, num_subspaces, horizon, max_horizon)
    if decoding.retrieval != "generate" and not has_dense:
        return Misfit(
            "retrieval",
            "the network of this bundle has no dense head, so retrieval must be generate",
        )
    for param in ("remask", "guidance"):
        if decoding.retrieval == "dense" and getattr(decoding, param):
            return Misfit(
                param, f"with retrieval dense the denoiser is not called, so {param} must be 0"
            )
    for param in ("r_warm", "m_par"):
        if getattr(decoding, param) > num_subspaces:
            return Misfit(
                param, f"{param} must be at most {num_subspaces}, the bundle's num_subspaces"
            )
    if decoding.order == "raw_confidence" and decoding.ranking == "rows":
        return Misfit(
            "order",
            'the order raw_confidence also counts codes that no item has, which the ranking "rows" '
            'never looks at; ask for another order, or for the ranking "path" or "best"',
        )
    if decoding.remask and decoding.remask >= num_subspaces:
        return Misfit(
            "remask",
            f"remask must be below {num_subspaces}, the bundle's num_subspaces: a beam keeps a "
            "code at least",
        )
    if decoding.guidance and not history_dropout:
        return Misfit(
            "guidance",
            "the network of this bundle has never learnt from samples without a history, so it "
            "cannot be guided; guidance must be 0, or train it with fit.history_dropout",
        )
    if not autoregressive:
        return None
    why = "the network of this bundle is autoregressive: it knows only the next code of a SID"
    schedule = decoding.schedule(num_subspaces)
    if decoding.order != "left_to_right":
        return Misfit("order", f"{why}, so order must be left_to_right")
    if max(schedule.steps) > 1:
        return Misfit("m_par", f"{why}, so every call fills one position; m_par must be 1")
    if decoding.ranking != "path":
        return Misfit("ranking", f'{why}, so it cannot score whole items; ranking must be "path"')
    if decoding.remask:
        return Misfit("remask", f"{why}, so it cannot fill one again; remask must be 0")
    if decoding.finish_rows:
        return Misfit("finish_rows", f"{why}, so it cannot end early; finish_rows must be 0")
    return None


def _misfit_of_several(
    decoding: DecodingDefaults, num_subspaces: int, horizon: int, max_horizon: int
) -> Misfit | None:
    if horizon > max_horizon:
        what = "one item" if max_horizon == 1 else f"at most {max_horizon} items"
        return Misfit(
            "horizon",
            f"the network of this bundle predicts {what} at a time, so horizon must be at most "
            f"{max_horizon}; a bundle that the family maskgr exports now takes {MAX_HORIZON}",
        )
    num_positions = horizon * num_subspaces
    for param in ("r_warm", "m_par"):
        if getattr(decoding, param) > num_positions:
            why = "horizon times the bundle's num_subspaces"
            return Misfit(param, f"{param} must be at most {num_positions}, {why}")
    if decoding.ranking != "path":
        return Misfit(
            "ranking",
            'with a horizon above 1, ranking must be "path": the probability of rows would need a '
            "sum over all sequences of different items",
        )
    for param, value in _ONLY_OF_ONE_ITEM.items():
        if getattr(decoding, param) != value:
            return Misfit(param, f"with a horizon above 1, {param} must be {value}")
    return None
