"""What training and decoding do on the devices of this machine, held against its processor.

One command for a machine with a GPU, some minutes: a small run on the processor gives a network and
a bundle; then each device of torch takes the same first steps and is timed, and each provider of
ONNX Runtime answers the same users in batches. Knows no family.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table

from service.bundles import Bundle
from service.decoding import SidTrie
from service.decoding.network import Provider
from service.errors import ProviderUnavailable
from training.config import RunConfig
from training.data import Dataset, load_dataset, synthesize
from training.families import devices
from training.fitting import first_losses, step_time
from training.pipeline.run import run
from training.pipeline.run_folder import catalogue_of
from training.preset import validate_config

USERS, ITEMS = 4_000, 1_200
QUICK = (
    *("fit.epochs=1", "fit.device=cpu", "fit.validation_users=100", "refit.enabled=false"),
    *("evaluation.schedule_users=50", "evaluation.timing_users=5", "bundle.map=false"),
)
FIRST_STEPS = 20
LOSS_TOLERANCE = 1e-3  # of the loss: TF32 is off, so only the order of sums differs
BATCHES = (1, 8, 64)
K = 10
ROUNDS = 20


def device_check(config: RunConfig, out: Path, console: Console) -> dict[str, Any]:
    """Write <out>/device-check.json, and print it as tables.

    config: of the network and its fit; data is synthetic, and only one epoch is learnt
    """
    data = out / "data"
    if not data.exists():
        synthesize(data, USERS, ITEMS, 0.1, 7)
    quick = validate_config(config.model_dump(), list(QUICK), source="device-check")
    dataset = load_dataset(data, config=quick.interactions, items_config=quick.items)
    run(quick, dataset, out / "run", console, until="trial")
    found = {
        "machine": f"{platform.machine()}, {_gpu()}",
        "torch": torch.__version__,
        "onnxruntime": ort.__version__,
        "training": _training(config, dataset, out / "run"),
        "decoding": _decoding(out / "run" / "trial", dataset),
    }
    (out / "device-check.json").write_text(json.dumps(found, indent=2) + "\n")
    console.print(_table("training", "device", found["training"]))
    console.print(_table("decoding", "provider", found["decoding"]))
    for row in found["decoding"]:
        if "missing" in row:
            console.print(row["missing"], markup=False)
    return found


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device that this build of torch can use"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _training(config: RunConfig, dataset: Dataset, folder: Path) -> list[dict[str, Any]]:
    """Of each device of torch: how fast it is, whether its first losses are those of the CPU."""
    trie = SidTrie(catalogue_of(dataset, config, folder))
    rows: list[dict[str, Any]] = []
    reference = np.empty(0)
    for device in reversed(devices()):  # the CPU first
        fit = config.fit.model_copy(update={"device": device})
        on_device = config.model_copy(update={"fit": fit})
        losses = np.array(first_losses(dataset.split, trie, on_device, steps=FIRST_STEPS))
        reference = reference if rows else losses
        difference = float(np.max(np.abs(losses - reference) / np.abs(reference)))
        timed = step_time(dataset.split, trie, on_device)
        rows.append(
            {
                **timed,
                "largest_difference_of_losses": difference,
                "agrees": difference <= LOSS_TOLERANCE,
            }
        )
    return rows


def _decoding(trial: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Of each provider of ONNX Runtime: milliseconds by batch, and whether it finds the same."""
    histories = [history for history in _histories(dataset) if len(history)][: max(BATCHES)]
    rows: list[dict[str, Any]] = []
    reference: list[Any] = []
    for provider in get_args(Provider):
        try:
            bundle = Bundle.load(trial, provider=provider)
        except ProviderUnavailable as error:
            rows.append({"provider": provider, "missing": str(error)})
            continue
        setting = bundle.manifest.decoding
        schedule = setting.schedule(bundle.manifest.num_subspaces)
        jobs = [
            setting.job(history, K, schedule, excluded=np.unique(history)) for history in histories
        ]
        answers = [decoded.rows.tolist() for decoded in bundle.decoder.decode(jobs)[0]]
        reference = reference or answers
        same = sum(one == other for one, other in zip(answers, reference, strict=True))
        row: dict[str, Any] = {"provider": provider, "same_lists": same / len(jobs)}
        for batch in BATCHES:
            row[f"ms_a_request_in_{batch}"] = _milliseconds(bundle, jobs[:batch])
        rows.append(row)
    return rows


def _histories(dataset: Dataset) -> list[Any]:
    known = dataset.split.train
    return [
        known.rows[start:end]
        for start, end in zip(known.indptr[:-1].tolist(), known.indptr[1:].tolist(), strict=True)
    ]


def _milliseconds(bundle: Bundle, jobs: list[Any]) -> float:
    """Of a request, the median over rounds, after one that does not count."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        bundle.decoder.decode(jobs)
        times.append((time.perf_counter() - started) * 1000 / len(jobs))
    return round(statistics.median(times[1:]), 3)


def _table(title: str, name: str, rows: list[dict[str, Any]]) -> Table:
    """A column for each device or provider that is there, a line for each figure."""
    there = [row for row in rows if "missing" not in row]
    table = Table(title, *(row[name] for row in there))
    for figure in dict.fromkeys(figure for row in there for figure in row):
        if figure != name:
            table.add_row(figure.replace("_", " "), *(str(row.get(figure, "-")) for row in there))
    return table
