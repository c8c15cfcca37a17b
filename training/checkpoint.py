"""The checkpoint of a fit on disk: whole or not there, and known to be damaged when it is.

torch reads a file without looking at its checksums. Knows nothing of what is in a snapshot.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console


def read_checkpoint(checkpoint: Path, key: str, console: Console) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote for this key; None, and a sentence, if it cannot be used."""
    if not checkpoint.exists():
        return None
    try:
        with zipfile.ZipFile(checkpoint) as archive:  # torch looks at no checksum
            damaged = archive.testzip()
        if damaged is None:
            snapshot: dict[str, Any] = torch.load(checkpoint, weights_only=True)
            if snapshot.get("key") == key:
                return snapshot
            console.print(f"{checkpoint.name} is of other inputs: the fit starts anew")
            return None
    except Exception:  # what a damaged file makes torch raise has no common base class
        pass
    size = f"{checkpoint.stat().st_size:,} bytes" if checkpoint.is_file() else "a folder"
    console.print(f"{checkpoint} is damaged ({size}): the fit starts anew", markup=False)
    return None


def write_checkpoint(checkpoint: Path, snapshot: dict[str, Any]) -> None:
    """Under a temporary name, renamed last. Raises OSError where it cannot be written whole."""
    temporary = checkpoint.with_suffix(".part")
    try:
        with temporary.open("wb") as opened:
            torch.save(snapshot, opened)
        temporary.replace(checkpoint)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the second
        temporary.unlink(missing_ok=True)  # what is left of it may fill the disk
        if isinstance(error, OSError):
            raise
        raise OSError(f"{checkpoint} could not be written whole: is the disk full?") from error
