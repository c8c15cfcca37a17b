"""What is chosen on validation users, and how test users are measured: prior and evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config.network import ScheduleConfig
from training.config.sections import Order, Ranking, Retrieval, Section, later


class NeighboursConfig(Section):
    """The neighbour prior: a sparse item-item memory whose scores are added to the network's."""

    num_neighbours: int = Field(
        128, ge=1, le=10_000, description="strongest neighbours kept of each item"
    )
    window: int = Field(
        20, ge=1, le=1000, description="items apart at which one still counts as following another"
    )
    gap_decay: float = Field(
        0.85, gt=0, le=1, description="what it counts, against one that is an item nearer"
    )
    rarity_powers: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.5, 0.2),
        min_length=1,
        description="tried on validation: counts are divided by this power of the popularity of "
        "the item that follows; a lower one favours popular items",
    )
    num_alike: int = Field(
        64, ge=0, description="items of the nearest content that are neighbours of an item too"
    )
    likeness_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (3.0, 0.0, 1.0, 6.0),
        min_length=1,
        description="tried likewise: an item with the same content, in median affinities",
    )
    history_length: int = Field(
        20, ge=1, le=1_000_000, description="newest items that are looked up"
    )
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        min_length=1,
        description="tried likewise; 0 = the prior is off",
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.1, 0.03, 0.3, 1.0), min_length=1, description="tried likewise, in median affinities"
    )
    decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.7, 0.5, 0.9), min_length=1, description="tried likewise: weight against the next newer"
    )


class EvaluationConfig(Section):
    """Offline evaluation through the production decoder."""

    schedules: Annotated[tuple[ScheduleConfig, ...], Field(min_length=1)] = (
        ScheduleConfig(r_warm=0),
        ScheduleConfig(r_warm=1),
        ScheduleConfig(r_warm=4, m_par=4),
        ScheduleConfig(r_warm=4, m_par=2),
        ScheduleConfig(r_warm=8, m_par=1),
    )
    beam_widths: tuple[Annotated[int, Field(ge=10, le=200)], ...] = Field(
        (10, 50), min_length=1, description="tried with each schedule to choose the default"
    )
    rankings: tuple[Ranking, ...] = Field(
        ("rows", "best", "path"), min_length=1, description="tried likewise"
    )
    finish_rows: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (0, 1000), min_length=1, description="tried likewise"
    )
    orders: tuple[Order, ...] = Field(
        ("confidence",),
        min_length=1,
        description="tried likewise: which masked positions a beam fills first",
    )
    remasks: tuple[Annotated[int, Field(ge=0, lt=64)], ...] = later(
        (0,),
        "tried likewise: how many codes of a finished beam are masked again",
        min_length=1,
    )
    guidances: tuple[Annotated[float, Field(ge=0, le=10)], ...] = later(
        (0.0,),
        "tried likewise, if the network was trained with fit.history_dropout: the weight of "
        "guidance",
        min_length=1,
    )
    retrievals: tuple[Retrieval, ...] = later(
        ("generate",),
        "tried likewise: what finds items; dense and fused need model.options.dense",
        min_length=1,
    )
    beam_width: int | None = Field(
        None, ge=1, description="of the tables on test users; absent = the bundle's default"
    )
    exclude_seen: bool = Field(
        True,
        description="leave out items of the history, as the service does unless a request says "
        "otherwise; all that is chosen on validation users is chosen so, and reports begin with it",
    )
    users: int | None = Field(
        None, ge=1, description="test users, a fixed random draw; absent = all"
    )
    schedule_users: int = Field(
        2000, ge=1, description="validation users that choose the bundle's decoding defaults"
    )
    timing_users: int = Field(
        50, ge=1, description="those of them that are timed, one by one on one thread"
    )
    invalid_sid_users: int = Field(1000, ge=1, description="test users for the invalid-SID rates")
    batch: int = Field(32, ge=1, description="users decoded together")

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        if set(self.orders) == {"raw_confidence"} and set(self.rankings) == {"rows"}:
            raise ValueError(
                "orders: raw_confidence cannot rank by rows, so nothing would be tried; add "
                "another of orders, or of rankings"
            )
        return self
