"""The checkpoint of a fit on disk: it is whole or not there, and damage to it is found.

torch does not check the checksums of the file that it reads; this module does. Knows nothing of
what is in a snapshot.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from training.stages import written_whole


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
