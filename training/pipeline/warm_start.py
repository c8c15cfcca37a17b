"""A run that begins where an earlier one ended: its codes stay, its network learns on.

With a new codebook a code means something else, so weights and codebook go together. Items that are
new since then are encoded with the old codebook, as the service does it. The weights are those of
the earlier trial: what it held out, this run may hold out again, and they have not learnt it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.bundles import Bundle, Manifest
from service.decoding import Catalogue, Codebook
from training.codebooks import load_codebook
from training.config import RunConfig
from training.data import Dataset, normalised
from training.errors import DataError
from training.families import family_of
from training.fitting import Continuation
from training.pipeline.run_folder import factors_of
from training.stages import read_record

TAKEN_OVER = {  # sections that must be the same, and why
    "interactions": "and its weights may have learnt what is held out tonight",
    "embeddings": "and they are in the codes",
    "codebook": "and they are in the codes",
}
SAME_CONTENT = 0.9  # cosine of an item's embedding then and now; of most items, or all have changed


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What a run takes over.

    codes, vectors: of tonight's items, by the rows of the data set
    continuation: weights, and how long the network learns on
    key: of the earlier run and the share; source: a sentence that says what was taken over
    """

    codebook: Codebook
    codes: NDArray[np.uint16]
    vectors: NDArray[np.float16]
    continuation: Continuation
    whole_steps: int
    key: str
    source: str


def warm_start(
    folder: Path, dataset: Dataset, config: RunConfig, share: float
) -> tuple[WarmStart | None, str]:
    """What a run on `dataset` takes over from the run in `folder`; or None and the reason.

    share: of the steps of a whole fit that the network learns on
    """
    try:
        bundle = Bundle.load(folder / "trial")
        codebook = load_codebook(folder / "codebook" / "codebook.npz")
        content = np.load(folder / "codebook" / "content.npy", allow_pickle=False)
        weights = torch.load(folder / "fit" / "checkpoint.pt", weights_only=True)["best"]
        record = read_record(folder, "fit")
    except Exception as error:  # torch raises many kinds of errors for damaged files
        return None, f"its files cannot be used ({error})"
    if record is None:
        return None, "its fit is not finished"
    items = dataset.split.train.item_ids
    is_known = np.array([item_id in bundle.catalogue.row_of for item_id in items])
    content = content[bundle.catalogue.rows_of(items)]
    if reason := _unlike(bundle, content, dataset, config, is_known):
        return None, reason
    new = np.flatnonzero(~is_known)
    if len(new):
        assert dataset.embeddings is not None  # else _unlike has said so
        try:
            bundle = bundle.with_items([dataset.items[row] for row in new], dataset.embeddings[new])
        except (ValueError, DataError) as error:
            return None, f"its codebook does not take the new items ({error})"
    rows = bundle.catalogue.rows_of(items)
    codes, vectors = bundle.catalogue.codes[rows], bundle.catalogue.vectors[rows]
    catalogue = Catalogue(
        items,
        codes,
        codebook.num_codes,
        dataset.split.train.popularity(),
        vectors,
        content_dims=max(0, vectors.shape[1] - factors_of(config, len(items))),
    )
    own = family_of(config.model.family).build(catalogue, config.model).state_dict()
    if (unlike := _first_unlike(weights, own)) is not None:
        return None, f"its network has another shape ({unlike})"
    whole = int(record.get("whole_steps", record["step"]))
    return (
        WarmStart(
            codebook,
            codes,
            vectors,
            Continuation(weights, share, max(1, round(share * whole))),
            whole,
            f"{bundle.manifest.digest} {share}",
            f"codes and vectors of {bundle.manifest.ref}; {len(new):,} new items are encoded with "
            "its codebook",
        ),
        "",
    )


def is_alike(manifest: Manifest, config: RunConfig, section: str) -> bool:
    """Whether a bundle was made with tonight's settings of a section."""
    recorded: Any = manifest.facts.get("config")
    own = getattr(config, section)
    try:
        return bool(type(own).model_validate(recorded[section]) == own)
    except (KeyError, TypeError, ValueError):
        return False


def _unlike(
    bundle: Bundle,
    content: NDArray[np.float16],
    dataset: Dataset,
    config: RunConfig,
    is_known: NDArray[np.bool_],
) -> str | None:
    """Why codes and vectors of the bundle do not fit; None if they do.

    content: directions of the earlier embeddings of the items that both have
    """
    for name, why in TAKEN_OVER.items():
        if not is_alike(bundle.manifest, config, name):
            return f"its settings of {name} are others, {why}"
    if config.fit.minutes is not None:
        return "fit.minutes says how long the network learns"
    if not is_known.any():
        return "it has none of tonight's items"
    if factors_of(config, len(is_known)) != factors_of(config, bundle.catalogue.num_items):
        return "there are so few items that the parts of their vectors have other sizes"
    own = bundle.manifest.content
    if not is_known.all() and (dataset.embeddings is None or own is None):
        return (
            f"{int((~is_known).sum()):,} items are new, and without --embeddings its codebook "
            "cannot encode them"
        )
    if dataset.embeddings is not None and own is not None:
        if dataset.embeddings.shape[1] != own.embedding_dims:
            return f"its embeddings have {own.embedding_dims} numbers"
        now = normalised(dataset.embeddings[is_known])
        likeness = (now * content.astype(np.float32)).sum(axis=1)[now.any(axis=1)]
        if len(likeness) and np.median(likeness) < SAME_CONTENT:
            return "most items have another embedding than then, perhaps of another model"
    return None


def _first_unlike(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> str | None:
    """The first tensor that has not the same shape in both; None if all have."""
    for name in sorted(weights.keys() | own.keys()):
        then, now = (tuple(each[name].shape) if name in each else None for each in (weights, own))
        if then != now:
            return f"{name} is {then}, and would be {now}"
    return None
