"""Makes the two bundles of a run: the trial, which is measured, and the refitted one, which ships.

The trial knows training interactions only. All choices are made with it, on validation users: the
prior's numbers, the decoding defaults, whether 8-bit graphs are good enough. The refitted bundle
takes these choices. Its counts know all interactions, and its rows are in the order of these
counts: codes, vectors, items and neighbours move together. Knows parts of a run, not its folders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from service.bundles import CONTENT_TEXT, DecodingDefaults, HeldOutUser, Manifest, write_bundle
from service.decoding import Catalogue, Codebook, Decoder, NeighbourPrior, SidTrie
from service.decoding.network import OnnxDenoiser, OnnxDenseHead
from training.bundling.int8 import EightBit, eight_bit
from training.config import RunConfig
from training.data import Dataset, Interactions, Windows
from training.evaluation import (
    Grid,
    draw_windows,
    fewest_calls,
    measure_grid,
    ranks_at,
    recall_at,
    setting_name,
)
from training.fitting import count_again, fit_priors, prior_at, weigh_prior

K = 10
BEAMS = 20  # while the share of the dense head is chosen
DENSE_WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, eq=False)
class Parts:
    """What the stages before have made, by the rows of the data set.

    content: (num_items, d) directions of the content embeddings
    encoder, decoder, repeat_bias: of one network
    autoregressive, history_dropout: of this network, see `Manifest`
    dense: the graph of its dense head, if it has one
    places: (num_items, 2) uint16, the map of the catalogue, if the bundles should have one
    """

    catalogue: Catalogue
    codebook: Codebook
    content: NDArray[np.float16]
    encoder: bytes
    decoder: bytes
    repeat_bias: float
    autoregressive: bool = False
    history_dropout: float = 0.0
    dense: bytes | None = None
    places: NDArray[np.uint16] | None = None

    def reordered(self, known: Interactions, order: NDArray[np.intp]) -> Parts:
        """The same in another order of rows, that of `known`, with its popularity."""
        old = self.catalogue
        catalogue = Catalogue(
            known.item_ids,
            old.codes[order],
            old.num_codes,
            known.popularity(),
            old.vectors[order],
            content_dims=old.content_dims,
        )
        places = None if self.places is None else self.places[order]
        return replace(self, catalogue=catalogue, content=self.content[order], places=places)

    def decoding_with(
        self, prior: NeighbourPrior | None, history_length: int, dense_weight: float = 0
    ) -> Decoder:
        """The production decoder."""
        denoiser = self.denoiser(history_length)
        dense = self.dense and OnnxDenseHead(
            self.dense, memory_bytes=denoiser.memory_bytes, weight=dense_weight
        )
        return Decoder(SidTrie(self.catalogue), denoiser, prior, dense or None)

    def denoiser(self, history_length: int) -> OnnxDenoiser:
        """The network, as it is served."""
        return self.denoiser_of(history_length)(self.encoder, self.decoder)

    def denoiser_of(self, history_length: int) -> partial[OnnxDenoiser]:
        """Makes a denoiser of two graphs."""
        return partial(
            OnnxDenoiser,
            num_subspaces=self.catalogue.num_subspaces,
            num_codes=self.catalogue.num_codes,
            history_length=history_length,
            repeat_bias=self.repeat_bias,
        )


def make_trial(
    folder: Path,
    dataset: Dataset,
    parts: Parts,
    config: RunConfig,
    console: Console,
    *,
    facts: dict[str, Any],
    **named: str,
) -> Manifest:
    """Weigh the prior and choose the decoding defaults on validation users; write the bundle.

    If the configuration asks for 8-bit graphs, they are made here, and checked at these defaults.
    facts: of the stages before; named: version and created_at of the bundle
    """
    evaluation = config.evaluation
    validation = draw_windows(dataset.split.validation, evaluation.schedule_users, seed=0)
    priors = fit_priors(dataset.split.train, parts.content, config.neighbours)
    decoder = parts.decoding_with(None, config.model.history_length)
    chosen, trials = weigh_prior(
        decoder,
        priors,
        validation,
        fewest_calls(parts.catalogue.num_subspaces, 10, autoregressive=parts.autoregressive),
        config.neighbours,
        exclude_seen=evaluation.exclude_seen,
    )
    prior = prior_at(priors, chosen)
    console.print(f"neighbour prior, weight chosen on validation: {prior.weight:g}")
    decoder = replace(decoder, prior=prior)
    weight, weighed = _weigh_dense(decoder, parts, validation, config, console)
    decoder = parts.decoding_with(prior, config.model.history_length, weight)
    grid = choose_default(
        decoder,
        dataset,
        config,
        console,
        autoregressive=parts.autoregressive,
        history_dropout=parts.history_dropout,
    )
    int8 = _int8(dataset, parts, decoder, grid.default, config, console)
    made = {
        **facts,
        "prior": chosen,
        "prior_trials": trials,
        **({"dense_trials": weighed} if parts.dense else {}),
        "grid": grid.as_json(),
        "int8": int8 and int8.as_json(),
        "refitted": None,
    }
    chosen_here = grid.default, weight
    return _write(folder, dataset, parts, config, prior, chosen_here, made, int8, **named)


def make_refitted(
    folder: Path,
    trial: Manifest,
    dataset: Dataset,
    known: Interactions,
    parts: Parts,
    config: RunConfig,
    console: Console,
    *,
    facts: dict[str, Any],
    **named: str,
) -> Manifest:
    """The bundle with the choices of the trial and the counts of `known`, in their order of rows.

    known, parts: by the rows of `dataset`; the network may be another one than the trial's
    facts: win over the trial's
    """
    order = known.popular_first()
    dataset, known = dataset.reordered(order), known.reordered(order)
    parts = parts.reordered(known, order)
    chosen = trial.facts["prior"]
    assert isinstance(chosen, dict)
    prior = count_again(known, parts.content, config.neighbours, chosen)
    weight = trial.dense.weight if trial.dense else 0
    decoder = parts.decoding_with(prior, config.model.history_length, weight)
    int8 = _int8(dataset, parts, decoder, trial.decoding, config, console)
    made = {**trial.facts, "int8": int8 and int8.as_json(), **facts}
    taken = trial.decoding, weight
    return _write(folder, dataset, parts, config, prior, taken, made, int8, **named)


def _weigh_dense(
    decoder: Decoder, parts: Parts, validation: Windows, config: RunConfig, console: Console
) -> tuple[float, list[dict[str, float]]]:
    """The share of the dense head in fused retrieval with the best recall, and all that was tried.

    Of equal ones the smallest. 0 without a dense head.
    """
    if not decoder.dense:
        return 0.0, []
    num_subspaces, length = parts.catalogue.num_subspaces, config.model.history_length
    setting = fewest_calls(num_subspaces, BEAMS, autoregressive=parts.autoregressive)
    setting = setting.model_copy(update={"retrieval": "fused"})
    asked = {"k": K, "batch": config.evaluation.batch, "workers": cpu_count()}
    tried = []
    for weight in DENSE_WEIGHTS:
        weighed = parts.decoding_with(decoder.prior, length, weight)
        found = ranks_at(
            validation, weighed, setting, exclude_seen=config.evaluation.exclude_seen, **asked
        )
        tried.append({"weight": weight, "recall@10": round(recall_at(found.item, K), 5)})
    best = max(tried, key=lambda one: one["recall@10"])
    console.print(f"dense head, share when fused chosen on validation: {best['weight']:g}")
    return best["weight"], tried


def choose_default(
    decoder: Decoder,
    dataset: Dataset,
    config: RunConfig,
    console: Console,
    *,
    autoregressive: bool = False,
    history_dropout: float = 0.0,
) -> Grid:
    """Measure the grid of the configuration on validation users, and say what it chooses.

    autoregressive, history_dropout: of the network, see `Manifest`
    """
    with Progress(console=console, transient=True) as progress:
        tasks = {stage: progress.add_task(f"settings {stage}") for stage in ("ranked", "timed")}
        grid = measure_grid(
            decoder,
            dataset.split.validation,
            config.evaluation,
            config.fit.ranking,
            autoregressive=autoregressive,
            history_dropout=history_dropout,
            advance=lambda stage, done, total: progress.update(
                tasks[stage], completed=done, total=total
            ),
        )
    chosen = grid.points[grid.chosen]
    console.print(
        f"decoding defaults, chosen on {grid.users} validation users: {chosen.decoding} "
        f"(recall@10 {chosen.recall:.4f}, {setting_name(exclude_seen=grid.exclude_seen)}, "
        f"{chosen.milliseconds:.1f} ms)",
        markup=False,
    )
    return grid


def _int8(
    dataset: Dataset,
    parts: Parts,
    decoder: Decoder,
    decoding: Any,
    config: RunConfig,
    console: Console,
) -> EightBit | None:
    """The 8-bit graphs if they are asked for, held against the others on validation users."""
    if parts.dense:  # it takes both, the beams' graphs and the dense head's input
        decoding = decoding.model_copy(update={"retrieval": "fused"})
    if not config.export.int8:
        return None
    evaluation = config.evaluation
    int8 = eight_bit(
        decoder,
        parts.encoder,
        parts.decoder,
        parts.denoiser_of(config.model.history_length),
        train=dataset.split.train.windows(),
        validation=draw_windows(dataset.split.validation, evaluation.schedule_users, seed=0),
        decoding=decoding,
        batch=evaluation.batch,
        exclude_seen=evaluation.exclude_seen,
    )
    console.print(str(int8), style="" if int8.accepted else "yellow", markup=False)
    return int8


def _write(
    folder: Path,
    dataset: Dataset,
    parts: Parts,
    config: RunConfig,
    prior: NeighbourPrior,
    chosen: tuple[DecodingDefaults, float],
    facts: dict[str, Any],
    int8: EightBit | None,
    **named: str,
) -> Manifest:
    """chosen: the default decoding, and the weight of the dense head."""
    decoding, dense_weight = chosen
    test = dataset.split.test
    held_out = draw_windows(test, config.bundle.held_out_users, seed=0)
    ids = parts.catalogue.item_ids
    is_ours = dataset.embeddings is None  # then the texts were embedded here
    return write_bundle(
        folder,
        name=config.bundle.name,
        family=config.model.family,
        autoregressive=parts.autoregressive,
        history_dropout=parts.history_dropout,
        max_horizon=parts.denoiser(config.model.history_length).max_horizon,
        catalogue=parts.catalogue,
        items=dataset.items,
        held_out=[
            HeldOutUser(
                dataset.split.train.user_ids[held_out.users[index]],
                tuple(ids[row] for row in held_out.history_of(index)),
                ids[held_out.targets[index]],
            )
            for index in range(len(held_out))
        ],
        encoder=parts.encoder,
        decoder=parts.decoder,
        history_length=config.model.history_length,
        repeat_bias=parts.repeat_bias,
        prior=prior,
        codebook=parts.codebook,
        decoding=decoding,
        facts=facts,
        dense=(parts.dense, dense_weight) if parts.dense else None,
        int8=(int8.encoder, int8.decoder) if int8 and int8.accepted else None,
        places=parts.places,
        content_text=CONTENT_TEXT if is_ours else config.bundle.content_text,
        content_model=config.embeddings.text_model if is_ours else config.bundle.content_model,
        text_columns=config.items.text_columns if dataset.texts else (),
        **named,
    )
