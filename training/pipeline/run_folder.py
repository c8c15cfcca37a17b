"""What is made from the folder of a run whose stages are done: catalogue, parts, a further fit.

Knows which stage left which file, and not in which order stages run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from service.bundles import Bundle, Manifest, verify
from service.decoding import Catalogue, SidTrie
from training.baselines import ranks_by_content
from training.bundling import Parts, choose_default, make_refitted, set_default
from training.codebooks import load_codebook
from training.config import RunConfig
from training.data import Dataset, Interactions
from training.errors import DataError
from training.evaluation import check_data, check_horizon, evaluate_bundle
from training.families import Family, family_of
from training.fitting import load_best, refit
from training.stages import key_of, read_record


def catalogue_of(dataset: Dataset, config: RunConfig, out: Path) -> Catalogue:
    """The catalogue of a run whose codebook stage is done.

    Raises DataError when a file of it is damaged, or of other data.
    """
    train, folder = dataset.split.train, out / "codebook"
    try:
        codes = np.load(folder / "codes.npy", allow_pickle=False)
        vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        content_dims = vectors.shape[1] - factors_of(config, train.num_items)
        return Catalogue(
            train.item_ids,
            codes,
            load_codebook(folder / "codebook.npz").num_codes,
            train.popularity(),
            vectors if config.model.item_vectors else vectors[:, :0],
            content_dims=content_dims if config.model.item_vectors else 0,
        )
    except (DataError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the files in {folder} are damaged, or made of other data ({error}); "
            "`python -m training run` on this folder makes them again"
        ) from error


def factors_of(config: RunConfig, num_items: int) -> int:
    """How many numbers of a vector `embed` has made of interactions; those before are content."""
    return min(config.embeddings.collaborative_dims, num_items)


def refit_network(
    dataset: Dataset,
    known: Interactions,
    config: RunConfig,
    out: Path,
    folder: Path,
    console: Console,
    key: str,
    *,
    from_scratch: bool = False,
) -> dict[str, Any]:
    """Let the network of a run learn on from `known`, and export it to `folder`.

    from_scratch: for comparison, begin with new weights and take the steps of the run's fit
    """
    fitted = read_record(out, "fit")
    assert fitted is not None  # the stage before
    catalogue = catalogue_of(dataset, config, out)
    if from_scratch:
        torch.manual_seed(config.fit.seed)
        model = family_of_run(config).build(catalogue, config.model)
    else:
        model = load_best(out / "fit", catalogue, config.model)
    share = 1.0 if from_scratch else config.refit.share
    model, state = refit(
        model,
        dataset.split,
        known,
        SidTrie(catalogue),
        folder,
        share=share,
        steps=max(1, round(share * fitted.get("whole_steps", fitted["step"]))),
        model_config=config.model,
        masking=config.masking,
        config=config.fit,
        console=console,
        key=key_of([key, fitted["files"]["checkpoint.pt"]["sha256"]]),
    )
    learnt = {"steps": state.step, "seconds_fitting": round(state.seconds_fitting, 1)}
    return learnt | exported(model, config, folder, console)


def ship(
    dataset: Dataset,
    known: Interactions,
    config: RunConfig,
    out: Path,
    folder: Path,
    console: Console,
    *,
    network: Path | None,
    record: dict[str, Any],
    facts: dict[str, Any],
    **named: str,
) -> Manifest:
    """Write the bundle of a run whose counts, and perhaps network, know more than the trial's.

    network: the folder where `refit_network` left it; None = the trial's network
    record: what `refit_network` returned
    """
    fitted = read_record(out, "fit")
    assert fitted is not None
    bias = (record if network else fitted)["repeat_bias"]
    told = {
        "parts": ["counts", *["network"] * bool(network)],
        "interactions": known.num_interactions,
        "measured_with": dataset.split.train.num_interactions,
        "steps": record["steps"],
        "note": "every figure here is of the trial, which knows training interactions only",
    }
    trial = verify(out / "trial")
    parts = parts_of(dataset, config, out, network or out / "export", float(bias))
    places = out / "trial" / "map.npy"
    return make_refitted(
        folder,
        trial,
        dataset,
        known,
        replace(parts, places=np.load(places) if places.exists() else None),
        config,
        console,
        facts={"refitted": told, **facts},
        **named,
    )


def parts_of(
    dataset: Dataset, config: RunConfig, out: Path, graphs: Path, repeat_bias: float
) -> Parts:
    """What a bundle is made of, but no map; graphs: the folder of the network's."""
    dense = graphs / "dense.onnx"
    return Parts(
        catalogue_of(dataset, config, out),
        load_codebook(out / "codebook" / "codebook.npz"),
        np.load(out / "codebook" / "content.npy", allow_pickle=False),
        (graphs / "encoder.onnx").read_bytes(),
        (graphs / "decoder.onnx").read_bytes(),
        repeat_bias,
        family_of_run(config).autoregressive,
        config.fit.history_dropout,
        dense.read_bytes() if dense.exists() else None,
    )


def family_of_run(config: RunConfig) -> Family:
    """The family of the run's network. Raises ConfigError when there is none of that name."""
    return family_of(config.model.family)


def exported(model: Any, config: RunConfig, folder: Path, console: Console) -> dict[str, Any]:
    family = family_of_run(config)
    graphs = family.export(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.onnx").write_bytes(graphs.encoder)
    (folder / "decoder.onnx").write_bytes(graphs.decoder)
    (folder / "dense.onnx").unlink(missing_ok=True)  # of another fit: a refit keeps its folder
    if graphs.dense:
        (folder / "dense.onnx").write_bytes(graphs.dense)
    console.print(f"torch and ONNX Runtime agree to {graphs.difference:.1e} in log-probs")
    return {
        "largest_log_prob_difference": graphs.difference,
        "repeat_bias": family.denoiser(model).repeat_bias,
    }


def evaluate_again(
    bundle: Bundle,
    dataset: Dataset,
    config: RunConfig,
    out: Path,
    console: Console,
    *,
    horizon: int = 1,
    change: Path | None = None,
) -> dict[str, Any]:
    """Measure the grid of settings and the bundle, and write the report to `out`; its headline.

    horizon: see `evaluate_bundle`; change: the bundle's folder, if its default is to be the grid's
    Raises DataError if the bundle was not made from this data.
    """
    check_data(bundle, dataset)
    if horizon > 1:
        check_horizon(bundle, dataset, horizon)
    manifest = bundle.manifest
    grid = choose_default(
        bundle.decoder,
        dataset,
        config,
        console,
        autoregressive=manifest.autoregressive,
        history_dropout=manifest.history_dropout,
    )
    if change is not None:
        bundle = replace(bundle, manifest=set_default(change, grid))
    return evaluate_bundle(
        bundle,
        dataset,
        config.evaluation,
        out,
        console,
        grid=grid.as_json(),
        ranks_by_content=ranks_by_content,
        horizon=horizon,
    )
