"""Measures a grid of settings on validation users and chooses the bundle's default.

A point of the grid is (r_warm, m_par, beam_width, ranking, finish_rows, order, remask, guidance,
retrieval). All points rank the targets of the same users, so differences in recall are paired. Seen
items are excluded, as in the service. Then some of these users are decoded one by one on one
thread. All points take turns, so a machine that slows down slows all of them. The default is the
fastest point that is as good as the best. Knows decoders and windows, not files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from service.bundles import DecodingDefaults, misfit_of
from service.decoding import Decoder, Ranking, Schedule
from training.config import EvaluationConfig
from training.data import Windows
from training.errors import ConfigError
from training.evaluation.evaluation import draw_windows, ndcg_at, ranks_at, recall_at, schedule_of

K = 10
TIMING_ROUNDS = 3
NEAR_TIE = 1.1  # times that differ by less than this factor count as equal: it is noise


@dataclass(frozen=True)
class GridPoint:
    """Cost and quality of one setting.

    milliseconds: time of one user decoded alone on one thread, all stages
    behind:       recall of the best point of the grid minus recall of this one
    error:        standard error of that paired difference
    """

    decoding: DecodingDefaults
    steps: tuple[int, ...]
    nfe: float
    recall: float
    ndcg: float
    milliseconds: float
    behind: float
    error: float

    def as_json(self) -> dict[str, Any]:
        return {
            **self.decoding.model_dump(),
            "steps": list(self.steps),
            "nfe": round(self.nfe, 3),
            "recall@10": round(self.recall, 5),
            "ndcg@10": round(self.ndcg, 5),
            "milliseconds": round(self.milliseconds, 3),
            "behind": round(self.behind, 5),
            "error": round(self.error, 5),
        }


@dataclass(frozen=True)
class Grid:
    """All points; `chosen` is the index of the point to ship.

    exclude_seen: whether items of the histories were left out of the answers
    """

    exclude_seen: bool
    users: int
    timing_users: int
    points: tuple[GridPoint, ...]
    chosen: int

    @property
    def default(self) -> DecodingDefaults:
        """The setting to ship."""
        return self.points[self.chosen].decoding

    def as_json(self) -> dict[str, Any]:
        return {
            "exclude_seen": self.exclude_seen,
            "users": self.users,
            "timing_users": self.timing_users,
            "chosen": self.chosen,
            "points": [point.as_json() for point in self.points],
        }


def measure_grid(
    decoder: Decoder,
    validation: Windows,
    config: EvaluationConfig,
    trained_for: Ranking,
    *,
    autoregressive: bool = False,
    history_dropout: float = 0.0,
    advance: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Grid:
    """Measure the grid of a configuration and choose its point.

    trained_for: the ranking that the network's loss is made for
    autoregressive, history_dropout: of the network, see `Manifest`
    advance:     called with (stage, points or rounds done, all of them) after each
    Raises ConfigError when dense retrieval is to be tried without a dense head.
    """
    if set(config.retrievals) != {"generate"} and not decoder.dense:
        raise ConfigError(
            "evaluation.retrievals: the network has no dense head; fit one with "
            "model.options.dense=true"
        )
    catalogue = decoder.trie.catalogue
    points = grid_of(
        config,
        catalogue.num_subspaces,
        catalogue.num_items,
        trained_for,
        autoregressive=autoregressive,
        history_dropout=history_dropout,
    )
    windows = draw_windows(validation, config.schedule_users, seed=0)
    timed = draw_windows(windows, config.timing_users, seed=0)
    found = []
    for done, point in enumerate(points, start=1):
        asked = {"k": K, "batch": config.batch, "workers": cpu_count()}
        found.append(ranks_at(windows, decoder, point, exclude_seen=config.exclude_seen, **asked))
        advance("ranked", done, len(points))
    medians = milliseconds_by_turns(
        [(decoder, point) for point in points],
        timed,
        batch=1,
        exclude_seen=config.exclude_seen,
        advance=lambda rounds: advance("timed", rounds, TIMING_ROUNDS),
    )
    hits = np.stack([one.item <= K for one in found])
    behind, errors = differences_to_best(hits)
    chosen = best_point(hits, medians.tolist(), [one.nfe for one in found])
    return Grid(
        config.exclude_seen,
        len(windows),
        len(timed),
        tuple(
            GridPoint(
                point,
                schedule_of(point, catalogue.num_subspaces).steps if found[place].nfe else (),
                found[place].nfe,
                recall_at(found[place].item, K),
                ndcg_at(found[place].item, K),
                float(medians[place]),
                float(behind[place]),
                float(errors[place]),
            )
            for place, point in enumerate(points)
        ),
        chosen,
    )


def milliseconds_by_turns(
    points: Sequence[tuple[Decoder, DecodingDefaults]],
    windows: Windows,
    *,
    batch: int,
    exclude_seen: bool,
    advance: Callable[[int], None] = lambda rounds: None,
) -> NDArray[np.float64]:
    """Milliseconds of one user, all stages, on one thread: (points,), medians over rounds.

    In a round every point takes its turn, so a machine that slows down slows all of them.
    batch: users decoded together; each has its share of their time
    """
    milliseconds = np.zeros((TIMING_ROUNDS, len(points)))
    for turn in range(TIMING_ROUNDS):
        for place, (decoder, point) in enumerate(points):
            asked = {"k": K, "batch": batch, "workers": 1, "exclude_seen": exclude_seen}
            found = ranks_at(windows, decoder, point, **asked)
            milliseconds[turn, place] = sum(found.milliseconds.values())
        advance(turn + 1)
    medians: NDArray[np.float64] = np.median(milliseconds, axis=0)
    return medians


def fewest_calls(num_subspaces: int, beam_width: int, *, autoregressive: bool) -> DecodingDefaults:
    """One call, in which every row is scored exactly; or a call for each position."""
    if autoregressive:
        return DecodingDefaults(
            r_warm=num_subspaces,
            m_par=1,
            beam_width=beam_width,
            ranking="path",
            order="left_to_right",
        )
    return DecodingDefaults(r_warm=0, m_par=num_subspaces, beam_width=beam_width)


def grid_of(
    config: EvaluationConfig,
    num_subspaces: int,
    num_items: int,
    trained_for: Ranking,
    *,
    autoregressive: bool = False,
    history_dropout: float = 0.0,
) -> list[DecodingDefaults]:
    """The points of a configuration whose answers can differ.

    One call scores every row if the schedule has one step, or if `finish_rows` is at least the
    number of items. Then the other parameters do not change the answer, and one point stands for
    all of these. It has the widest beam, the ranking that the network is trained for, and
    finish_rows 0: requests that ask for another schedule get these values. Points that no bundle
    can follow are left out. An autoregressive network can follow one setting for each beam width
    and guidance. Fused retrieval is tried with all of them. For dense retrieval alone one point
    stands, because nothing is searched.
    """
    widest = max(config.beam_widths)
    ranking = trained_for if trained_for in config.rankings else config.rankings[0]
    guidances = config.guidances if history_dropout else (0.0,)
    if autoregressive:
        searches = [
            fewest_calls(num_subspaces, beam_width, autoregressive=True).model_copy(
                update={"guidance": guidance}
            )
            for beam_width, guidance in product(config.beam_widths, guidances)
        ]
        one_point = fewest_calls(num_subspaces, widest, autoregressive=True)
    else:
        searches = _searches(
            config, num_subspaces, num_items, widest, ranking, history_dropout=history_dropout
        )
        one_point = DecodingDefaults(
            r_warm=0, m_par=num_subspaces, beam_width=widest, ranking=ranking
        )
    return [
        point.model_copy(update={"retrieval": retrieval})
        for retrieval in config.retrievals
        for point in ([one_point] if retrieval == "dense" else searches)
    ]


def _searches(
    config: EvaluationConfig,
    num_subspaces: int,
    num_items: int,
    widest: int,
    ranking: Ranking,
    *,
    history_dropout: float,
) -> list[DecodingDefaults]:
    """The points of a network that may fill positions in any order.

    widest, ranking: of the point that stands for all of one call
    """
    guidances = config.guidances if history_dropout else (0.0,)
    points: dict[object, DecodingDefaults] = {}
    for r_warm, m_par in schedules_of(config, num_subspaces):
        schedule = Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)
        for beam_width, asked, finish_rows, order, remask, guidance in product(
            config.beam_widths,
            config.rankings,
            config.finish_rows,
            config.orders,
            config.remasks,
            guidances,
        ):
            point = DecodingDefaults(
                r_warm=r_warm,
                m_par=m_par,
                beam_width=beam_width,
                ranking=asked,
                finish_rows=finish_rows,
                order=order,
                remask=remask,
                guidance=guidance,
            )
            if not remask and (schedule.nfe == 1 or finish_rows >= num_items):
                point = DecodingDefaults(
                    r_warm=0,
                    m_par=num_subspaces,
                    beam_width=widest,
                    ranking=ranking,
                    guidance=guidance,
                )
            misfit = misfit_of(
                point,
                num_subspaces,
                autoregressive=False,
                history_dropout=history_dropout,
                has_dense=False,
            )
            if misfit is None:
                points.setdefault(point, point)
    return list(points.values())


def schedules_of(config: EvaluationConfig, num_subspaces: int) -> list[tuple[int, int]]:
    """The (r_warm, m_par) pairs that make different schedules for this SID length."""
    distinct: dict[tuple[int, ...], tuple[int, int]] = {}
    for entry in config.schedules:
        r_warm, m_par = entry.params(num_subspaces)
        schedule = Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)
        distinct.setdefault(schedule.steps, (r_warm, m_par))
    return list(distinct.values())


def differences_to_best(
    hits: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much recall each point loses to the best one, and the standard error: both (points,).

    hits: (points, users), whether the target was found. All points have the same users, so the
    differences are paired.
    """
    best = hits[hits.mean(axis=1).argmax()]
    difference = best.astype(np.float64) - hits
    return difference.mean(axis=1), difference.std(axis=1) / np.sqrt(hits.shape[1])


def best_point(hits: NDArray[np.bool_], milliseconds: Sequence[float], nfe: Sequence[float]) -> int:
    """Index of the fastest point whose recall is within two standard errors of the best recall.

    Two, because the best of many points is partly luck. Of points that are nearly as fast, the one
    with the fewest denoiser calls is chosen, then the one with the highest recall.
    """
    behind, errors = differences_to_best(hits)
    as_good = np.flatnonzero(behind <= 2 * errors).tolist()
    fastest = min(milliseconds[place] for place in as_good)
    near = [place for place in as_good if milliseconds[place] <= NEAR_TIE * fastest]
    best: int = min(near, key=lambda place: (nfe[place], behind[place], milliseconds[place]))
    return best
