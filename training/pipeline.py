"""The stages of a training run, in order. A stage that is done is skipped.

interactions -> leave-last-out split -> item vectors -> codebook -> fit -> export -> bundle ->
evaluation through the production decoder. The key of a stage is made of its own configuration and
the key of the stage before. `training.stages` does a stage unless it is done for that key: the same
inputs are never worked on twice, and other inputs do the stage again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress

from service.bundles import CONTENT_TEXT, Bundle, HeldOutUser, check_items, write_bundle
from service.decoding import Catalogue, Decoder, Schedule, SidTrie
from service.decoding.network import OnnxDenoiser
from training.bundling import eight_bit
from training.codebooks import CollisionReport, fit_codebook, load_codebook, save_codebook
from training.config import STAGES, RunConfig, StageName
from training.data import Dataset, embed, normalised
from training.errors import DataError
from training.evaluation import Grid, draw_windows, evaluate_bundle, measure_grid, setting_name
from training.families import family_of
from training.fitting import fit, fit_priors, load_best, weigh_prior
from training.stages import read_record, work_stage

FIT_FACTS = ("parameters", "best_epoch", "best_recall", "seconds_fitting")


def run(
    config: RunConfig,
    dataset: Dataset,
    out: Path,
    console: Console,
    *,
    until: StageName = "evaluation",
) -> dict[str, Any]:
    """Run all stages up to and including `until`; returns the record of the last one.

    dataset: as loaded with `config.interactions`
    Raises ConfigError when there is no such family, or no such option of it.
    """
    family_of(config.model.family).check(config.model)
    try:
        check_items(dataset.items)
    except ValueError as error:
        raise DataError(f"{error}; a bundle cannot hold it") from error
    _describe(dataset, console)
    exclude_seen = config.evaluation.exclude_seen
    make: dict[StageName, tuple[list[BaseModel | str], Callable[[Path], dict[str, Any]]]] = {
        "codebook": (
            [config.embeddings, config.codebook, "cold items have vectors like others"],
            lambda folder: _codebook(dataset, config, folder, console),
        ),
        "fit": (
            [config.model, config.masking, config.fit, f"{exclude_seen=}"],
            lambda folder: _fit(dataset, config, out, folder, console, key),
        ),
        "export": ([], lambda folder: _export(dataset, config, out, folder, console)),
        "bundle": (
            [config.bundle, config.export, config.neighbours, config.evaluation],
            lambda folder: _bundle(dataset, config, out, folder, console, key),
        ),
        "evaluation": (
            [config.evaluation],
            lambda folder: _evaluation(dataset, config, out, folder, console),
        ),
    }
    key = dataset_key(dataset)
    record: dict[str, Any] = {}
    for name in STAGES[: STAGES.index(until) + 1]:
        sections, work = make[name]
        key = _key([key, *map(_said, sections)])
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
    codes = codebook.codes_of(vectors)
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
        )
    except (DataError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the files in {folder} are damaged, or made of other data ({error}); "
            "`python -m training run` on this folder makes them again"
        ) from error


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
    repeat_bias = family_of(config.model.family).denoiser(model).repeat_bias
    return {"parameters": parameters, "repeat_bias": repeat_bias, **asdict(state)}


def _export(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console
) -> dict[str, Any]:
    model = load_best(out / "fit", catalogue_of(dataset, config, out), config.model)
    encoder, decoder, difference = family_of(config.model.family).export(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.onnx").write_bytes(encoder)
    (folder / "decoder.onnx").write_bytes(decoder)
    console.print(f"torch and ONNX Runtime agree to {difference:.1e} in log-probs")
    return {"largest_log_prob_difference": difference}


def _bundle(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console, key: str
) -> dict[str, Any]:
    """Weigh the prior and choose the decoding defaults on validation users; write the bundle.

    If the configuration asks for 8-bit graphs, they are made here, and checked at these defaults.
    """
    catalogue = catalogue_of(dataset, config, out)
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in STAGES[:3]}
    encoder = (out / "export" / "encoder.onnx").read_bytes()
    decoder_graph = (out / "export" / "decoder.onnx").read_bytes()
    repeat_bias = float(records["fit"]["repeat_bias"])
    denoiser_of = partial(
        OnnxDenoiser,
        num_subspaces=catalogue.num_subspaces,
        num_codes=catalogue.num_codes,
        history_length=config.model.history_length,
        repeat_bias=repeat_bias,
    )
    evaluation = config.evaluation
    validation = draw_windows(dataset.split.validation, evaluation.schedule_users, seed=0)
    content = np.load(out / "codebook" / "content.npy", allow_pickle=False)
    priors = fit_priors(dataset.split.train, content, config.neighbours)
    decoder = Decoder(SidTrie(catalogue), denoiser_of(encoder, decoder_graph))
    one_call = Schedule((catalogue.num_subspaces,))
    prior, trials = weigh_prior(
        decoder,
        priors,
        validation,
        one_call,
        config.neighbours,
        exclude_seen=evaluation.exclude_seen,
    )
    console.print(f"neighbour prior, weight chosen on validation: {prior.weight:g}")
    decoder = replace(decoder, prior=prior)
    grid = choose_default(decoder, dataset, config, console)
    int8 = None
    if config.export.int8:
        int8 = eight_bit(
            decoder,
            encoder,
            decoder_graph,
            denoiser_of,
            train=dataset.split.train.windows(),
            validation=validation,
            decoding=grid.default,
            batch=evaluation.batch,
            exclude_seen=evaluation.exclude_seen,
        )
        console.print(str(int8), style="" if int8.accepted else "yellow", markup=False)
    test = dataset.split.test
    held_out = draw_windows(test, config.bundle.held_out_users, seed=0)
    ids = catalogue.item_ids
    now = datetime.now(UTC)
    is_ours = dataset.embeddings is None  # then the texts were embedded here
    manifest = write_bundle(
        folder,
        name=config.bundle.name,
        version=config.bundle.version or f"{now:%Y-%m-%d}-{key[:8]}",
        created_at=now.isoformat(timespec="seconds"),
        catalogue=catalogue,
        items=dataset.items,
        held_out=[
            HeldOutUser(
                dataset.split.train.user_ids[held_out.users[index]],
                tuple(ids[row] for row in held_out.history_of(index)),
                ids[held_out.targets[index]],
            )
            for index in range(len(held_out))
        ],
        encoder=encoder,
        decoder=decoder_graph,
        history_length=config.model.history_length,
        repeat_bias=repeat_bias,
        prior=prior,
        codebook=load_codebook(out / "codebook" / "codebook.npz"),
        decoding=grid.default,
        facts={
            "config": config.model_dump(mode="json"),
            "collisions": records["codebook"]["collisions"],
            "vectors": records["codebook"].get("vectors"),
            "fit": {name: records["fit"][name] for name in FIT_FACTS},
            "prior_trials": trials,
            "grid": grid.as_json(),
            "int8": int8 and int8.as_json(),
        },
        int8=(int8.encoder, int8.decoder) if int8 and int8.accepted else None,
        content_text=CONTENT_TEXT if is_ours else config.bundle.content_text,
        content_model=config.embeddings.text_model if is_ours else config.bundle.content_model,
    )
    return {"bundle": manifest.ref, "decoding": manifest.decoding.model_dump()}


def _evaluation(
    dataset: Dataset, config: RunConfig, out: Path, folder: Path, console: Console
) -> dict[str, Any]:
    bundle = Bundle.load(out / "bundle")
    grid = bundle.manifest.facts["grid"]
    assert isinstance(grid, dict)
    return evaluate_bundle(bundle, dataset, config.evaluation, folder, console, grid=grid)


def choose_default(decoder: Decoder, dataset: Dataset, config: RunConfig, console: Console) -> Grid:
    """Measure the grid of the configuration on validation users, and say what it chooses."""
    with Progress(console=console, transient=True) as progress:
        tasks = {stage: progress.add_task(f"settings {stage}") for stage in ("ranked", "timed")}
        grid = measure_grid(
            decoder,
            dataset.split.validation,
            config.evaluation,
            config.fit.ranking,
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
    digest.update(json.dumps([asdict(item) for item in dataset.items]).encode())
    for array in (
        split.train.indptr,
        split.train.rows,
        split.validation.ends,
        split.test.starts,
        split.test.ends,
        split.test.rows,
        dataset.embeddings,
    ):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _said(section: BaseModel | str) -> str:
    return section if isinstance(section, str) else section.model_dump_json()


def _key(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
