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
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.console import Console

from service.bundles import Bundle, check_items, verify
from service.decoding import SidTrie
from training.baselines import ranks_by_content
from training.bundling import lay_out, make_trial
from training.codebooks import CollisionReport, fit_codebook, save_codebook, sids_of
from training.config import STAGES, RunConfig, StageName
from training.data import Dataset, embed, normalised
from training.errors import DataError
from training.evaluation import evaluate_bundle
from training.fitting import fit, load_best
from training.pipeline.run_folder import (
    catalogue_of,
    exported,
    family_of_run,
    parts_of,
    refit_network,
    ship,
)
from training.pipeline.run_report import write_run_report
from training.pipeline.warm_start import WarmStart
from training.stages import key_of, read_record, remove, work_stage

FIT_FACTS = ("parameters", "best_epoch", "best_recall", "seconds_fitting")


def run(
    config: RunConfig,
    dataset: Dataset,
    out: Path,
    console: Console,
    *,
    until: StageName = "bundle",
    after: WarmStart | None = None,
) -> dict[str, Any]:
    """Run all stages up to and including `until`; returns the record of the last one.

    dataset: as loaded with `config.interactions`
    after: the run whose codes are kept and whose network learns on; None = all is fitted anew
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
    further = ["cold items are like others"] * has_cold
    if after:
        further.append(f"after {after.key}")
    make: dict[StageName, tuple[list[BaseModel | str], Callable[[Path], dict[str, Any]]]] = {
        "codebook": (
            [config.embeddings, config.codebook, *further],
            lambda folder: _codebook(dataset, config, folder, console, after),
        ),
        "fit": (
            [config.model, config.masking, config.fit, f"{exclude_seen=}"],
            lambda folder: _fit(dataset, config, out, folder, console, key, after),
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
        key = key_of([key, *map(_said, sections)])
        if name == "bundle":  # `evaluate --set-default` may have changed the trial
            key = key_of([key, str(verify(out / "trial").digest)])
        record = work_stage(out, name, key, work, console)
    if STAGES.index(until) >= STAGES.index("evaluation"):
        console.print(_reported(config, dataset, out), markup=False)
    if (out / "bundle.json").exists():
        console.print(f"serve it: make serve BUNDLE={out / 'bundle'}", markup=False)
    return record


def _reported(config: RunConfig, dataset: Dataset, out: Path) -> str:
    """Write the report for people; returns what to say of it. A run does not fail by it."""
    try:
        return f"look at it: {write_run_report(config, dataset, out)}"
    except Exception as error:  # of the disk, a chart, or a record of an older release
        return f"report.html was not written: {type(error).__name__}: {error}"


def _codebook(
    dataset: Dataset, config: RunConfig, folder: Path, console: Console, after: WarmStart | None
) -> dict[str, Any]:
    vectors, content, source, embeddings = embed(dataset, config.embeddings)
    if after:
        codebook, codes, source = after.codebook, after.codes, after.source
        vectors = after.vectors.astype(np.float32)
    console.print(source, markup=False)
    if not after:
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


def _fit(
    dataset: Dataset,
    config: RunConfig,
    out: Path,
    folder: Path,
    console: Console,
    key: str,
    after: WarmStart | None,
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
        key=key_of([key, *made]),
        after=after.continuation if after else None,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    repeat_bias = family_of_run(config).denoiser(model).repeat_bias
    whole = {"whole_steps": after.whole_steps} if after else {}  # a short fit is no measure
    return {"parameters": parameters, "repeat_bias": repeat_bias, **asdict(state), **whole}


def _export(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console
) -> dict[str, Any]:
    model = load_best(out / "fit", catalogue_of(dataset, config, out), config.model)
    return exported(model, config, folder, console)


def _trial(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console, key: str
) -> dict[str, Any]:
    """Make all choices on validation users, and the bundle that is measured."""
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in STAGES[:3]}
    parts = parts_of(dataset, config, out, out / "export", float(records["fit"]["repeat_bias"]))
    places = None
    if config.bundle.map:
        vectors = np.load(out / "codebook" / "vectors.npy", allow_pickle=False)
        places = lay_out(vectors, config.codebook.seed)
    manifest = make_trial(
        folder,
        dataset,
        replace(parts, places=places),
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


def _named(config: RunConfig, key: str, suffix: str = "") -> dict[str, str]:
    now = datetime.now(UTC)
    version = config.bundle.version or f"{now:%Y-%m-%d}-{key[:8]}"
    return {"version": version + suffix, "created_at": now.isoformat(timespec="seconds")}


def _describe(dataset: Dataset, console: Console) -> None:
    split = dataset.split
    console.print(
        f"{split.train.num_users:,} users, {split.train.num_items:,} items, "
        f"{len(split.test.rows):,} interactions; {split.train.num_windows:,} training samples, "
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
    if dataset.texts:
        digest.update(json.dumps(dataset.texts).encode())
    return digest.hexdigest()


def _said(section: BaseModel | str) -> str:
    return section if isinstance(section, str) else section.model_dump_json(exclude={"device"})
