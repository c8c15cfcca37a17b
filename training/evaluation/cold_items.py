"""How new items fare: items that a bundle gets by its own code, ranked for those who want them.

Protocol: a tenth of the items that somebody has as test target are drawn once. They are taken out
of a bundle and put back from their embeddings, as the service adds items; or a bundle that was
trained without them gets them. Then the test users ask, at the bundle's default, and the whole
catalogue is ranked. Some of them have a new item as target, all others may lose by it, and
histories hold new items too. Knows bundles and windows, no training and no baseline.
"""

from __future__ import annotations

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
from training.evaluation.cold_tables import BY_CONTENT, FAR, Measured, cold_figures
from training.evaluation.evaluation import SHORT, draw_windows, ranks_at
from training.evaluation.ranks_store import SystemRanks, TargetRanks

SHARE, SEED = 0.1, 0
AS_TRAINED, PUT_BACK, KEPT_OUT = "as trained", "put back", "kept out of training"


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
            is_random = bundle.codebook.kind == "random"
            raise DataError(
                f"new items cannot be measured with bundle {bundle.manifest.ref}, because its "
                f"codebook takes no embeddings: {bundle.codebook.refusal}"
                + ("" if is_random else "; train with --embeddings")
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


def _for(bundle: Bundle, dataset: Dataset, windows: Windows) -> Windows:
    """Windows of the data in the rows of a bundle that has all of its items."""
    row_of = bundle.catalogue.rows_of(dataset.split.train.item_ids)
    if len(row_of) != dataset.split.train.num_items:
        raise ValueError("the bundle lacks items of the data")
    return replace(windows, rows=row_of[windows.rows])


def _said(decoding: DecodingDefaults) -> str:
    return (
        f"schedule ({decoding.r_warm}, {decoding.m_par}), beam_width {decoding.beam_width}, "
        f"ranking {decoding.ranking}, finish_rows {decoding.finish_rows}, order {decoding.order}, "
        f"remask {decoding.remask}, guidance {decoding.guidance:g}"
    )
