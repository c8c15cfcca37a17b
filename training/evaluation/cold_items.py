"""How new items fare: items that a bundle gets by its own code, ranked for those who want them.

Protocol: a tenth of the items that somebody has as test target are drawn once. They are taken out
of a bundle and put back from their embeddings, as the service adds items; or a bundle that was
trained without them gets them. Then the test users ask, at the bundle's default, and the whole
catalogue is ranked. Some of them have a new item as target, all others may lose by it, and
histories hold new items too. Knows bundles and windows, no training and no baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from service.bundles import Bundle, DecodingDefaults
from service.decoding import Decoder
from training.config import EvaluationConfig
from training.data import Dataset, Windows
from training.errors import DataError
from training.evaluation.evaluation import SHORT, draw_windows, ndcg_at, ranks_at, recall_at
from training.evaluation.figures import (
    markdown_table,
    paired_difference,
    paired_share,
    standard_error,
)
from training.evaluation.ranks_store import SystemRanks, TargetRanks

FAR = 100  # items, of the second request of a user whose target is new
SHARE, SEED = 0.1, 0
AS_TRAINED, PUT_BACK, KEPT_OUT = "as trained", "put back", "kept out of training"
BY_CONTENT = "text kNN"
NONE = "-"  # a figure that does not exist


class RanksByContent(Protocol):
    """Ranks of the targets of windows by what items read like: a row that needs no bundle."""

    def __call__(
        self,
        windows: Windows,
        embeddings: NDArray[np.floating],
        *,
        k: int,
        exclude_seen: bool,
    ) -> TargetRanks: ...


@dataclass(frozen=True, eq=False)
class Measured:
    """A system, asked by all test users.

    new:    of the users whose target is new: `item` of requests for SHORT items, `far` for FAR
    others: of all other users, `item` only; None if it was not measured, or there are none
    """

    system: str
    new: SystemRanks
    others: SystemRanks | None = None


@dataclass(frozen=True, eq=False)
class ColdItems:
    """Which items of a data set are new, and the users who ask.

    drawn:        rows of the new items, ascending
    num_eligible: how many items they were drawn from
    windows:      test users
    """

    dataset: Dataset
    config: EvaluationConfig
    console: Console
    drawn: NDArray[np.int32]
    num_eligible: int
    windows: Windows

    @classmethod
    def of(cls, dataset: Dataset, config: EvaluationConfig, console: Console) -> Self:
        """Draw a tenth of the items that can be measured; always the same ones.

        They have content, training interactions, and a test user whose target they are.
        Raises DataError when the data has no such item.
        """
        if dataset.embeddings is None:
            raise DataError(
                "new items cannot be measured on this data, because items are added with content "
                "embeddings and it has none; give --embeddings"
            )
        windows = draw_windows(dataset.split.test, config.users, seed=0)
        eligible = np.zeros(dataset.split.train.num_items, dtype=bool)
        eligible[dataset.split.test.targets] = True
        eligible &= (dataset.split.train.popularity() > 0) & dataset.embeddings.any(axis=1)
        rows = np.flatnonzero(eligible)
        number = max(1, round(SHARE * len(rows))) if len(rows) else 0
        drawn = np.random.default_rng(SEED).choice(rows, number, replace=False)
        if not np.isin(windows.targets, drawn).any():
            raise DataError(
                "new items cannot be measured on this data, because no item that was drawn is the "
                "target of a test user: a tenth of those that have content and training "
                "interactions; give more data, or leave evaluation.users out"
            )
        drawn = np.sort(drawn).astype(np.int32)
        return cls(dataset, config, console, drawn, len(rows), windows)

    @property
    def is_new(self) -> NDArray[np.bool_]:
        """(num_windows,) bool: which users have a new item as target."""
        return np.isin(self.windows.targets, self.drawn)

    def check(self, bundle: Bundle) -> None:
        """Raise DataError when the bundle takes no items with the embeddings of this data."""
        content, embeddings = bundle.codebook.content, self.dataset.embeddings
        assert embeddings is not None  # else there would be no draw
        if content is None:
            raise DataError(
                f"new items cannot be measured with bundle {bundle.manifest.ref}, because its "
                "codebook takes no embeddings: its item vectors hold no content, or content that "
                "was made from titles by TF-IDF; train with --embeddings"
            )
        if content.embedding_dims != embeddings.shape[1]:
            raise DataError(
                f"new items cannot be measured with bundle {bundle.manifest.ref}, because it takes "
                f"embeddings of {content.embedding_dims} numbers and those of the data have "
                f"{embeddings.shape[1]}; give those it was trained with"
            )

    def added_to(self, bundle: Bundle) -> Bundle:
        """The bundle with the new items, added as the service does it; taken out if it has them."""
        embeddings = self.dataset.embeddings
        assert embeddings is not None
        items = [self.dataset.items[row] for row in self.drawn]
        without = bundle.without_items([item.item_id for item in items])
        return without.with_items(items, embeddings[self.drawn])

    def ask(self, state: str, bundle: Bundle) -> tuple[Measured, Measured]:
        """The bundle as it is, and for the users of new items with its prior off. state: for names

        The bundle must have all items of the data, in whatever order.
        """
        decoder, default = bundle.decoder, bundle.manifest.decoding
        without_prior = replace(decoder, prior=None)
        is_new = self.is_new
        with Progress(console=self.console, transient=True) as progress:
            users = len(self.windows) + 3 * int(is_new.sum())
            task = progress.add_task(f"test users, {state}", total=users)

            def ranks(decoder: Decoder, windows: Windows, k: int) -> TargetRanks:
                return ranks_at(
                    windows,
                    decoder,
                    default.wide_enough(k),
                    k=k,
                    batch=self.config.batch,
                    workers=cpu_count(),
                    exclude_seen=self.config.exclude_seen,
                    advance=lambda users: progress.advance(task, users),
                ).item

            windows = _for(bundle, self.dataset, self.windows)
            of_new = windows.chosen(is_new)
            short = ranks(decoder, windows, SHORT)
            full = self._ranks(short[is_new], ranks(decoder, of_new, FAR), _said(default))
            bare = self._ranks(*(ranks(without_prior, of_new, k) for k in (SHORT, FAR)))
        others = None if is_new.all() else self._ranks(short[~is_new])
        return (
            Measured(f"Unmask, {state}", full, others),
            Measured(f"Unmask, prior off, {state}", bare),
        )

    def ask_content(self, ranks_by_content: RanksByContent) -> Measured:
        """Neighbours by content, to which no item is new: for the users of new items."""
        embeddings, exclude_seen = self.dataset.embeddings, self.config.exclude_seen
        assert embeddings is not None
        of_new = self.windows.chosen(self.is_new)
        found = ranks_by_content(of_new, embeddings, k=FAR, exclude_seen=exclude_seen)
        return Measured(BY_CONTENT, self._ranks(found, found))

    def _ranks(
        self, item: TargetRanks, far: TargetRanks | None = None, note: str = ""
    ) -> SystemRanks:
        return SystemRanks(item, far=far, exclude_seen=self.config.exclude_seen, note=note)


def taken_out_and_put_back(
    bundle: Bundle,
    dataset: Dataset,
    config: EvaluationConfig,
    ranks_by_content: RanksByContent,
    console: Console,
) -> dict[str, Any]:
    """The figures of a bundle as it was trained and with a tenth of its items as new ones.

    dataset: what it was trained with. Where this cannot be measured, the one entry is
    {"not_measured": why}.
    """
    try:
        cold = ColdItems.of(dataset, config, console)
        cold.check(bundle)
    except DataError as error:
        return {"not_measured": str(error)}
    systems = [
        *cold.ask(AS_TRAINED, bundle),
        *cold.ask(PUT_BACK, cold.added_to(bundle)),
        cold.ask_content(ranks_by_content),
    ]
    drawn = {"items": len(cold.drawn), "of_items": cold.num_eligible}
    return {**drawn, "exclude_seen": config.exclude_seen, **cold_figures(systems)}


def cold_figures(systems: Sequence[Measured]) -> dict[str, Any]:
    """Recall and its errors, of the users of new items and of all others.

    systems: first the one that was trained with all items, which the others are held against
    """
    trained = systems[0]
    by_content = next((one.new for one in systems if one.system == BY_CONTENT), None)
    of_new, of_others = [], []
    for one in systems:
        assert one.new.far is not None
        line: dict[str, Any] = {
            "system": one.system,
            "users": len(one.new.item),
            "recall@10": round(recall_at(one.new.item, SHORT), 5),
            "recall@10_error": round(standard_error(one.new.item, SHORT), 5),
            "recall@100": round(recall_at(one.new.far, FAR), 5),
            "ndcg@10": round(ndcg_at(one.new.item, SHORT), 5),
        }
        share = paired_share(one.new.item, trained.new.item, SHORT)
        line["share"], line["share_error"] = (share and round(share[i], 4) for i in (0, 1))
        if by_content is not None and by_content is not one.new:
            found = paired_difference(one.new.item, by_content.item, SHORT)
            line["to_text_knn"] = round(found.mean, 5)
            line["to_text_knn_error"] = round(found.standard_error, 5)
            line["verdict"] = found.verdict
        of_new.append(line)
        if one.others and trained.others and one is not trained:
            before, after = trained.others.item, one.others.item
            found = paired_difference(after, before, SHORT)
            of_others.append(
                {
                    "system": one.system,
                    "users": len(before),
                    "before": round(recall_at(before, SHORT), 5),
                    "after": round(recall_at(after, SHORT), 5),
                    "change": round(found.mean, 5),
                    "change_error": round(found.standard_error, 5),
                    "verdict": found.verdict,
                }
            )
    return {"systems": of_new, "others": of_others}


def cold_markdown(found: dict[str, Any]) -> str:
    """Two tables of `cold_figures`: users whose target is new, and all others."""
    header = ["users whose target is new", "users", "recall@10", "recall@100", "ndcg@10"]
    header += ["share of trained recall@10", "difference to text kNN, recall@10", "verdict"]
    lines = []
    for one in found["systems"]:
        line = [one["system"], f"{one['users']:,}"]
        line.append(f"{one['recall@10']:.4f} ± {one['recall@10_error']:.4f}")
        line += [f"{one['recall@100']:.4f}", f"{one['ndcg@10']:.4f}"]
        share = one["share"]
        line.append(NONE if share is None else f"{share:.2f} ± {one['share_error']:.2f}")
        if "verdict" in one:
            line.append(f"{one['to_text_knn']:+.4f} ± {one['to_text_knn_error']:.4f}")
            lines.append([*line, one["verdict"]])
        else:
            lines.append([*line, NONE, NONE])
    tables = [markdown_table(header, lines)]
    if found["others"]:
        header = ["all other users", "users", "recall@10 as trained", "recall@10", "change"]
        header += ["in percent", "verdict"]
        lines = []
        for one in found["others"]:
            before, change, error = one["before"], one["change"], one["change_error"]
            line = [one["system"], f"{one['users']:,}", f"{before:.4f}", f"{one['after']:.4f}"]
            line.append(f"{change:+.4f} ± {error:.4f}")
            percent = (
                f"{100 * change / before:+.1f} ± {100 * error / before:.1f} %" if before else NONE
            )
            lines.append([*line, percent, one["verdict"]])
        tables.append(markdown_table(header, lines))
    return "\n\n".join(tables)


def _for(bundle: Bundle, dataset: Dataset, windows: Windows) -> Windows:
    """Windows of the data in the rows of a bundle that has all of its items."""
    row_of = bundle.catalogue.rows_of(dataset.split.train.item_ids)
    if len(row_of) != dataset.split.train.num_items:
        raise ValueError("the bundle lacks items of the data")
    return replace(windows, rows=row_of[windows.rows])


def _said(decoding: DecodingDefaults) -> str:
    return (
        f"schedule ({decoding.r_warm}, {decoding.m_par}), beam_width {decoding.beam_width}, "
        f"ranking {decoding.ranking}, finish_rows {decoding.finish_rows}"
    )
