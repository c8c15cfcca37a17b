"""The stages of a training run, in order. A stage that is done is skipped.

interactions -> split -> item vectors -> codebook -> fit -> export -> trial (the bundle that knows
training interactions only, with all choices) -> evaluation of the trial through the production
decoder -> refit on all interactions -> bundle, which ships. The key of a stage is made of its own
configuration and the key of the stage before. `training.stages` does a stage unless it is done for
that key: the same inputs are never worked on twice, and other inputs do the stage again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.console import Console

from service.bundles import Bundle, Manifest, check_items, verify
from service.decoding import Catalogue, SidTrie
from training.baselines import ranks_by_content
from training.bundling import Parts, make_refitted, make_trial
from training.codebooks import (
    CollisionReport,
    fit_codebook,
    load_codebook,
    save_codebook,
    sids_of,
)
from training.config import STAGES, RunConfig, StageName
from training.data import Dataset, Interactions, embed, normalised
from training.errors import DataError
from training.evaluation import evaluate_bundle
from training.families import Family, family_of
from training.fitting import fit, load_best, refit
from training.stages import read_record, remove, work_stage

FIT_FACTS = ("parameters", "best_epoch", "best_recall", "seconds_fitting")


def run(
    config: RunConfig,
    dataset: Dataset,
    out: Path,
    console: Console,
    *,
    until: StageName = "bundle",
) -> dict[str, Any]:
    """Run all stages up to and including `until`; returns the record of the last one.

    dataset: as loaded with `config.interactions`
    Raises ConfigError when there is no such family, or no such option of it.
    """
    family = family_of_run(config)
    family.check_run(config)
    if ignored := family.ignored(config):
        console.print(f"family {config.model.family} does not use {', '.join(ignored)}")
    try:
        check_items(dataset.items)
    except ValueError as error:
        raise DataError(f"{error}; a bundle cannot hold it") from error
    _describe(dataset, console)
    exclude_seen = config.evaluation.exclude_seen
    has_cold = not dataset.split.train.popularity().all()
    make: dict[StageName, tuple[list[BaseModel | str], Callable[[Path], dict[str, Any]]]] = {
        "codebook": (
            [config.embeddings, config.codebook, *["cold items are like others"] * has_cold],
            lambda folder: _codebook(dataset, config, folder, console),
        ),
        "fit": (
            [config.model, config.masking, config.fit, f"{exclude_seen=}"],
            lambda folder: _fit(dataset, config, out, folder, console, key),
        ),
        "export": ([], lambda folder: _export(dataset, config, out, folder, console)),
        "trial": (
            [
                config.bundle,
                config.export,
                config.neighbours,
                config.evaluation,
                f"refit={config.refit.enabled}",
            ],
            lambda folder: _trial(dataset, config, out, folder, console, key),
        ),
        "evaluation": (
            [config.evaluation],
            lambda folder: _evaluation(dataset, config, out, folder, console),
        ),
        "refit": (
            [config.refit],
            lambda folder: _refit(dataset, config, out, folder, console, key),
        ),
        "bundle": ([], lambda folder: _bundle(dataset, config, out, folder, console, key)),
    }
    key = dataset_key(dataset)
    record: dict[str, Any] = {}
    for name in STAGES[: STAGES.index(until) + 1]:
        sections, work = make[name]
        key = _key([key, *map(_said, sections)])
        if name == "bundle":  # `evaluate --set-default` may have changed the trial
            key = _key([key, str(verify(out / "trial").digest)])
        record = work_stage(out, name, key, work, console)
    if (out / "bundle.json").exists():
        console.print(f"serve it: make serve BUNDLE={out / 'bundle'}", markup=False)
    return record


def _codebook(
    dataset: Dataset, config: RunConfig, folder: Path, console: Console
) -> dict[str, Any]:
    vectors, content, source, embeddings = embed(dataset, config.embeddings)
    console.print(source, markup=False)
    seen = dataset.split.train.popularity() > 0
    codebook = fit_codebook(vectors[seen], config.codebook, content)
    codes = sids_of(codebook, vectors, config.codebook.seed)
    report = CollisionReport.of(codes, codebook.num_codes)
    console.print(str(report))
    folder.mkdir(parents=True, exist_ok=True)
    save_codebook(codebook, folder / "codebook.npz")
    np.save(folder / "codes.npy", codes, allow_pickle=False)
    np.save(folder / "vectors.npy", vectors.astype(np.float16), allow_pickle=False)
    directions = normalised(embeddings).astype(np.float16)  # as they are, some would be infinite
    np.save(folder / "content.npy", directions, allow_pickle=False)
    return {"collisions": asdict(report), "vectors": source}


def catalogue_of(dataset: Dataset, config: RunConfig, out: Path) -> Catalogue:
    """The catalogue of a run whose codebook stage is done.

    Raises DataError when a file of it is damaged, or of other data.
    """
    train, folder = dataset.split.train, out / "codebook"
    try:
        codes = np.load(folder / "codes.npy", allow_pickle=False)
        vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        return Catalogue(
            train.item_ids,
            codes,
            load_codebook(folder / "codebook.npz").num_codes,
            train.popularity(),
            vectors if config.model.item_vectors else vectors[:, :0],
            content_dims=_content_dims(vectors, config) if config.model.item_vectors else 0,
        )
    except (DataError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the files in {folder} are damaged, or made of other data ({error}); "
            "`python -m training run` on this folder makes them again"
        ) from error


def _content_dims(vectors: NDArray[np.float16], config: RunConfig) -> int:
    """How many numbers of the vectors `embed` has made of content; the others are factors."""
    num_items, dims = vectors.shape
    return dims - min(config.embeddings.collaborative_dims, num_items)


def _fit(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console, key: str
) -> dict[str, Any]:
    codebook = read_record(out, "codebook")
    assert codebook is not None  # the stage before
    made = [codebook["files"][name]["sha256"] for name in ("codes.npy", "vectors.npy")]
    model, state = fit(
        dataset.split,
        SidTrie(catalogue_of(dataset, config, out)),
        folder,
        model_config=config.model,
        masking=config.masking,
        config=config.fit,
        exclude_seen=config.evaluation.exclude_seen,
        console=console,
        key=_key([key, *made]),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    repeat_bias = family_of_run(config).denoiser(model).repeat_bias
    return {"parameters": parameters, "repeat_bias": repeat_bias, **asdict(state)}


def _export(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console
) -> dict[str, Any]:
    model = load_best(out / "fit", catalogue_of(dataset, config, out), config.model)
    return _exported(model, config, folder, console)


def _trial(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console, key: str
) -> dict[str, Any]:
    """Make all choices on validation users, and the bundle that is measured."""
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in STAGES[:3]}
    manifest = make_trial(
        folder,
        dataset,
        parts_of(dataset, config, out, out / "export", float(records["fit"]["repeat_bias"])),
        config,
        console,
        **_named(config, key, "-trial" * config.refit.enabled),
        facts={
            "config": config.model_dump(mode="json"),
            "collisions": records["codebook"]["collisions"],
            "vectors": records["codebook"].get("vectors"),
            "split": {"name": dataset.split.name, "sentence": dataset.split.sentence},
            "fit": {name: records["fit"][name] for name in FIT_FACTS},
        },
    )
    return {"bundle": manifest.ref, "decoding": manifest.decoding.model_dump()}


def _evaluation(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console
) -> dict[str, Any]:
    trial = Bundle.load(out / "trial")
    grid = trial.manifest.facts["grid"]
    assert isinstance(grid, dict)
    return evaluate_bundle(
        trial,
        dataset,
        config.evaluation,
        folder,
        console,
        grid=grid,
        ranks_by_content=ranks_by_content,
    )


def _refit(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console, key: str
) -> dict[str, Any]:
    if config.refit.enabled and config.refit.share:
        return refit_network(dataset, dataset.split.everything, config, out, folder, console, key)
    remove(folder)  # of a refit that was asked for before
    folder.mkdir(parents=True)
    return {"steps": 0}


def _bundle(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console, key: str
) -> dict[str, Any]:
    """What ships: the trial with everything learnt, or the trial itself if that is switched off."""
    trial = verify(out / "trial")
    refitted, evaluation = read_record(out, "refit"), read_record(out, "evaluation")
    assert refitted is not None
    assert evaluation is not None
    measured = {name: evaluation[name] for name in ("bundle", "users", "exclude_seen", "default")}
    if not config.refit.enabled:
        copied = folder.with_name(f".{folder.name}-copy")
        shutil.copytree(out / "trial", copied)
        copied.rename(folder)
        return {"bundle": trial.ref, "refitted": None, "evaluation": measured}
    manifest = ship(
        dataset,
        dataset.split.everything,
        config,
        out,
        folder,
        console,
        network=out / "refit" if refitted["steps"] else None,
        record=refitted,
        facts={"evaluation": measured},
        **_named(config, key),
    )
    told = manifest.facts["refitted"]
    assert isinstance(told, dict)
    console.print(
        f"{manifest.ref} knows all {told['interactions']:,} interactions "
        f"({', '.join(told['parts'])}), those of the test too; the figures above are of "
        f"{trial.ref}, which knows {told['measured_with']:,} of them",
        markup=False,
    )
    return {"bundle": manifest.ref, "refitted": told, "evaluation": measured}


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
        steps=max(1, round(share * fitted["step"])),
        model_config=config.model,
        masking=config.masking,
        config=config.fit,
        console=console,
        key=_key([key, fitted["files"]["checkpoint.pt"]["sha256"]]),
    )
    learnt = {"steps": state.step, "seconds_fitting": round(state.seconds_fitting, 1)}
    return learnt | _exported(model, config, folder, console)


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
    return make_refitted(
        folder,
        verify(out / "trial"),
        dataset,
        known,
        parts_of(dataset, config, out, network or out / "export", float(bias)),
        config,
        console,
        facts={"refitted": told, **facts},
        **named,
    )


def parts_of(
    dataset: Dataset, config: RunConfig, out: Path, graphs: Path, repeat_bias: float
) -> Parts:
    """What a bundle is made of; graphs: the folder of the network's."""
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


def _exported(model: Any, config: RunConfig, folder: Path, console: Console) -> dict[str, Any]:
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


def _named(config: RunConfig, key: str, suffix: str = "") -> dict[str, str]:
    now = datetime.now(UTC)
    version = config.bundle.version or f"{now:%Y-%m-%d}-{key[:8]}"
    return {"version": version + suffix, "created_at": now.isoformat(timespec="seconds")}


def _describe(dataset: Dataset, console: Console) -> None:
    split = dataset.split
    console.print(
        f"{split.train.num_users:,} users, {split.train.num_items:,} items, "
        f"{len(split.test.rows):,} interactions; {len(split.train.windows()):,} training samples, "
        f"{len(split.test):,} test users"
    )


def dataset_key(dataset: Dataset) -> str:
    """SHA-256 over everything that stages, ranks and baselines read of the data."""
    split = dataset.split
    digest = hashlib.sha256(json.dumps([split.train.user_ids, split.train.item_ids]).encode())
    # Without what items do not have: then data is the same as before items could have it.
    items = [
        {name: value for name, value in asdict(item).items() if value is not None}
        for item in dataset.items
    ]
    digest.update(json.dumps(items).encode())
    for array in (
        split.train.indptr,
        split.train.rows,
        split.validation.ends,
        split.test.starts,
        split.test.ends,
        split.test.rows,
        dataset.embeddings,
        *([split.before_test.indptr] * (split.name == "time")),  # else test.ends says it
        *([split.everything.weights] * (split.everything.weights is not None)),
    ):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _said(section: BaseModel | str) -> str:
    return section if isinstance(section, str) else section.model_dump_json()


def _key(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
