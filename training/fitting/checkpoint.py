"""What a fit keeps on disk: a checkpoint that is whole or not there, and a log of scalars.

torch does not check the checksums of the file that it reads; this module does. Knows nothing of
what is in a snapshot.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from training.stages import remove, written_whole


def read_checkpoint(checkpoint: Path, key: str, console: Console) -> dict[str, Any] | None:
    """The snapshot that `write_checkpoint` wrote for this key.

    None if there is no checkpoint. None and a sentence on the console if it cannot be used.
    """
    if not checkpoint.exists():
        return None
    try:
        with zipfile.ZipFile(checkpoint) as archive:  # torch checks no checksum
            damaged = archive.testzip()
        if damaged is None:
            snapshot: dict[str, Any] = torch.load(checkpoint, weights_only=True)
            if snapshot.get("key") == key:
                return snapshot
            console.print(f"{checkpoint.name} was made from other inputs: the fit starts again")
            return None
    except Exception:  # torch raises many kinds of errors for damaged files
        pass
    size = f"{checkpoint.stat().st_size:,} bytes" if checkpoint.is_file() else "a folder"
    console.print(f"{checkpoint} is damaged ({size}): the fit starts again", markup=False)
    return None


def on_host(snapshot: Any) -> Any:
    """The same with all tensors on the host, those in dictionaries and lists too."""
    if isinstance(snapshot, Tensor):
        return snapshot.to("cpu")
    if isinstance(snapshot, dict):
        return {key: on_host(value) for key, value in snapshot.items()}
    if isinstance(snapshot, list):
        return [on_host(value) for value in snapshot]
    return snapshot


def write_checkpoint(checkpoint: Path, snapshot: dict[str, Any]) -> None:
    """Write it whole, under a temporary name at first. Raises OSError if that fails."""
    try:
        with written_whole(checkpoint) as opened:
            torch.save(snapshot, opened)
    except RuntimeError as error:  # of torch's own writer
        raise OSError(f"{checkpoint} could not be written: is the disk full?") from error


def cut_after(step: int, log_file: Path) -> None:
    """Leave out of a scalar log what later steps wrote, and lines that are not whole."""
    if log_file.is_dir():
        remove(log_file)
    text = log_file.read_bytes().decode(errors="replace") if log_file.exists() else ""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if len(kept) < len(lines):
        with written_whole(log_file) as opened:
            opened.write("".join(kept).encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
