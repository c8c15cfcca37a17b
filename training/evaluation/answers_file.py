"""The file with recommendations for all users: made in parts, by this process or by Ray.

A part is some thousand users. Finished parts lie in a folder beside the file, so a run that was
stopped goes on where it was. When all are there, they become the file. An engine takes parts and
gives rows and scores; who it is does not change a bit of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from joblib import cpu_count
from rich.console import Console
from rich.progress import Progress

from service.bundles import Bundle
from training.data import Interactions
from training.errors import ConfigError, TrainingError
from training.evaluation.all_users import (
    BATCH,
    Asked,
    Histories,
    Rows,
    Scores,
    answer_users,
    answers_frame,
)

PART_USERS = 32 * BATCH
PLAN_FILE = "plan.json"

Advance = Callable[[int], None]
Answered = tuple[range, Rows, Scores]


def recommend_to_file(
    folder: Path,
    bundle: Bundle,
    log: Interactions,
    out: Path,
    console: Console,
    *,
    asked: Asked,
    engine: str = "local",
    workers: int = 1,
    part_users: int = PART_USERS,
) -> dict[str, Any]:
    """Write what `answers_frame` gives as a parquet file; what was written, in numbers.

    folder: of the bundle, for processes that load it themselves
    engine: local or ray; workers: threads of the local one, actors of Ray; 0 = for all cores
    part_users: what a run that was stopped does again at most, for each worker
    """
    histories = Histories.of(log, bundle.catalogue.item_ids)
    parts = [
        range(start, min(start + part_users, log.num_users))
        for start in range(0, log.num_users, part_users)
    ]
    beside = out.with_name(f".{out.name}.parts")
    plan = _plan(bundle, log, asked, part_users)
    begun = _begin(beside, plan)
    done = [part for part in parts if _file_of(beside, part).exists()]
    if begun and done:
        console.print(f"{len(done)} of {len(parts)} parts are there already: going on.")
    left = [part for part in parts if part not in done]
    with Progress(console=console) as progress:
        task = progress.add_task("users", total=log.num_users, completed=sum(map(len, done)))

        def advance(users: int) -> None:
            progress.advance(task, users)

        if not left:
            answered: Iterator[Answered] = iter(())
        elif engine == "ray":
            answered = _by_ray(folder, bundle, histories, left, asked, workers, advance)
        else:
            answered = _by_threads(bundle, histories, left, asked, workers, advance)
        for part, rows, scores in answered:
            users = log.user_ids[part.start : part.stop]
            frame = answers_frame(users, bundle.catalogue.item_ids, rows, scores)
            _write(_file_of(beside, part), frame.write_parquet)
    _write(out, pl.scan_parquet([_file_of(beside, part) for part in parts]).sink_parquet)
    shutil.rmtree(beside)
    by_model = pl.scan_parquet(out).filter(pl.col("served_by") == "model")
    return {
        "bundle": bundle.manifest.ref,
        "out": str(out),
        "users": log.num_users,
        "rows": pl.scan_parquet(out).select(pl.len()).collect().item(),
        "served_by_model": by_model.select(pl.col("user_id").n_unique()).collect().item(),
    }


def _by_threads(
    bundle: Bundle,
    histories: Histories,
    parts: list[range],
    asked: Asked,
    workers: int,
    advance: Advance,
) -> Iterator[Answered]:
    for part in parts:
        answers = answer_users(
            bundle, histories, part, asked, threads=workers or cpu_count(), advance=advance
        )
        yield part, *answers


class _Actor:
    """A process of Ray's with the bundle in memory, which answers one part after another."""

    def __init__(self, folder: Path, digest: str | None, asked: Asked) -> None:
        self._bundle = Bundle.load(folder)
        if self._bundle.manifest.digest != digest:
            raise ValueError(f"{folder} on this machine is another bundle than where it began")
        self._asked = asked

    def __call__(self, batch: Any) -> dict[str, Any]:
        """batch: an Arrow table with the line of one part; the answer has one line an item."""
        [line] = batch.to_pylist()
        indptr = np.frombuffer(line["indptr"], np.int64)
        histories = Histories(indptr, np.frombuffer(line["rows"], np.int32))
        users = range(histories.num_users)
        rows, scores = answer_users(self._bundle, histories, users, self._asked)
        starts = np.full(rows.size, line["start"], np.int64)
        return {"start": starts, "row": rows.reshape(-1), "score": scores.reshape(-1)}


def _by_ray(
    folder: Path,
    bundle: Bundle,
    histories: Histories,
    parts: list[range],
    asked: Asked,
    workers: int,
    advance: Advance,
) -> Iterator[Answered]:
    """Ray Data: a pool of actors. Histories and answers travel as numbers, since Arrow changes ids.

    Blocks come in any order, and may hold several parts or a piece of one.
    """
    with _ray() as ray:
        number = workers or max(int(ray.cluster_resources().get("CPU", 1)) - 1, 1)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        lines = [_line(histories, part) for part in parts]
        answers = ray.data.from_items(lines, override_num_blocks=len(lines)).map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(folder.resolve(), bundle.manifest.digest, asked),
            compute=ray.data.ActorPoolStrategy(size=min(number, len(lines))),
            num_cpus=1,
        )
        waiting = {part.start: (part, [], []) for part in parts}
        try:
            for block in answers.iter_batches(batch_size=None, batch_format="numpy"):
                starts = block["start"]
                cuts = np.flatnonzero(np.diff(starts)) + 1
                for first, last in zip([0, *cuts], [*cuts, len(starts)], strict=True):
                    part, rows, scores = waiting[int(starts[first])]
                    rows.append(block["row"][first:last])
                    scores.append(block["score"][first:last])
                    shape = (len(part), asked.k)
                    if sum(map(len, rows)) == shape[0] * shape[1]:
                        del waiting[part.start]
                        advance(len(part))
                        yield (
                            part,
                            np.concatenate(rows).reshape(shape),
                            np.concatenate(scores).reshape(shape),
                        )
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise TrainingError(
                f"Ray could not finish: {cause}; run the same command again to go on"
            ) from error
        if waiting:
            raise TrainingError(
                f"Ray gave no answers for {sum(len(part) for part, *_ in waiting.values())} users; "
                "run the same command again to go on"
            )


def _line(histories: Histories, part: range) -> dict[str, Any]:
    """The histories of a part, as a line of Ray's."""
    indptr = histories.indptr[part.start : part.stop + 1].astype(np.int64)
    rows = histories.rows[indptr[0] : indptr[-1]].astype(np.int32)
    return {
        "start": part.start,
        "indptr": (indptr - indptr[0]).tobytes(),
        "rows": rows.tobytes(),
    }


@contextmanager
def _ray() -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS, or on this machine alone."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'unmask[ray]'") from None
    where: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        where = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(logging_level="ERROR", log_to_driver=False, **where)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _plan(bundle: Bundle, log: Interactions, asked: Asked, part_users: int) -> dict[str, Any]:
    """What the parts of a run depend on."""
    known = hashlib.sha256()
    for ids in (log.user_ids, log.item_ids):
        known.update("".join(f"{len(one)} {one}" for one in ids).encode(errors="surrogatepass"))
    for array in (log.indptr, log.rows):
        known.update(np.ascontiguousarray(array).tobytes())
    return {
        "bundle": bundle.manifest.digest,
        "users": known.hexdigest(),
        "part_users": part_users,
        **asdict(asked),
    }


def _begin(beside: Path, plan: dict[str, Any]) -> bool:
    """Make the folder of parts for this plan; True if it was there. One of another plan goes."""
    file = beside / PLAN_FILE
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        found = None
    if found == plan and plan["bundle"] is not None:
        return True
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    file.write_text(json.dumps(plan))
    return False


def _file_of(beside: Path, part: range) -> Path:
    return beside / f"{part.start:012}.parquet"


def _write(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all."""
    temporary = file.with_name(f".{file.name}.part")
    try:
        write(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
