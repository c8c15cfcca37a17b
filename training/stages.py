"""Runs a stage once for its inputs, and again if one of its files is lost or damaged.

`<out>/<stage>/` holds what a stage made. `<out>/<stage>.json` is its record and is written last. It
has the key of the inputs, what the stage reports, and size and SHA-256 of each file. If anything
differs from the record, a sentence says so and the stage runs again: no file has to be deleted by
hand. Does not know what a stage does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from service.bundles import verify
from service.errors import BundleInvalid
from training.config import STAGES, StageName


def work_stage(
    out: Path, name: StageName, key: str, work: Callable[[Path], dict[str, Any]], console: Console
) -> dict[str, Any]:
    """Run a stage and return its record. A stage that is done for this key and whole is skipped.

    A stage that runs removes the records of all later stages, whatever their keys are. It starts
    with an empty folder. Only `fit` and `refit` keep theirs: they may continue from a checkpoint.
    """
    folder, record_file = out / name, out / f"{name}.json"
    record = read_record(out, name)
    if record is None:
        if record_file.exists():
            console.print(
                _again(name, f"{record_file.name} is damaged, or from another version"),
                markup=False,
            )
    elif record["key"] != key:
        console.print(
            _again(name, "it was made from other data or settings, or by another version"),
            markup=False,
        )
    elif (damage := damage_of(name, folder, record)) is not None:
        console.print(_again(name, damage), markup=False)
    else:
        console.print(f"{name}: done before, in {record['seconds']:.0f} s")
        return record
    console.print(name, style="bold")
    for begun in STAGES[STAGES.index(name) :]:  # later stages used what is made again here
        remove(out / f"{begun}.json")
    if name not in ("fit", "refit") or not folder.is_dir():
        remove(folder)
    for half_written in out.glob(f".{name}-*"):  # left by a process that was killed
        remove(half_written)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result = work(folder)
    record = {
        "stage": name,
        "key": key,
        "seconds": round(time.monotonic() - started, 1),
        **result,
        "files": files_of(folder),
    }
    with written_whole(record_file) as opened:
        opened.write((json.dumps(record, indent=2) + "\n").encode())
    return record


def read_record(out: Path, name: StageName) -> dict[str, Any] | None:
    """The record of a stage; None if there is none or it cannot be read."""
    try:
        record = json.loads((out / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(record, dict) and {"key", "seconds", "files"} <= record.keys()
    return record if known and isinstance(record["files"], dict) else None


def key_of(parts: list[str]) -> str:
    """One key for all of these."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def damage_of(name: StageName, folder: Path, record: dict[str, Any]) -> str | None:
    """What is wrong with the files of a finished stage; None if nothing is.

    A bundle is checked by its own manifest, because `--set-default` may change it after the run.
    """
    if name in ("trial", "bundle"):
        try:
            verify(folder)
        except (BundleInvalid, OSError) as error:
            return str(error)
        return None
    for file, recorded in record["files"].items():
        found = _file(folder / file)
        if found is None:
            return f"{name}/{file} is lost"
        if found != recorded:
            sizes = f"{found['bytes']:,} bytes, {recorded['bytes']:,} when it was written"
            return f"{name}/{file} is damaged ({sizes})"
    return None


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a folder."""
    found = {file.name: _file(file) for file in sorted(folder.iterdir())}
    return {name: entry for name, entry in found.items() if entry is not None}


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name and rename it last: it is whole or not there.

    Raises what the writer raises, and OSError; nothing is left then.
    """
    temporary = file.with_name(f"{file.name}.part")
    try:
        with temporary.open("wb") as opened:
            yield opened
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)  # its remains may fill the disk
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if one is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _file(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256")
            return {"bytes": opened.tell(), "sha256": digest.hexdigest()}
    except OSError:  # not there, or a folder
        return None


def _again(name: StageName, why: str) -> str:
    return f"{name}: {why}; the stage is made again"
