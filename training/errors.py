"""Errors of the training package. Each message is one sentence that says what to do.

TrainingError
├── ConfigError        a preset or an override is wrong
├── DataError          interactions, items or embeddings cannot be used as they are
├── FitDiverged        a loss or a parameter of a network is no longer a finite number
└── FetchError         a public data set could not be downloaded completely
"""

import errno
import os
from pathlib import Path


class TrainingError(Exception):
    """Base class; the command line prints it without a traceback and exits with 1."""


class ConfigError(TrainingError):
    """A preset or an override is wrong; the command line exits with 2."""


class DataError(TrainingError):
    """Interactions, items or embeddings cannot be used as they are."""


class FitDiverged(TrainingError):
    """A loss or a parameter of a network is no longer a finite number; no bundle is made."""


class FetchError(TrainingError):
    """A public data set could not be downloaded completely."""


def sentence_of(error: OSError) -> str:
    """What the operating system refused, in a sentence."""
    if error.strerror is None:  # raised by a library, with a sentence of its own
        return str(error)
    place = f"{error.filename}: " if error.filename is not None else ""
    said = f"{place}{error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said += "; make room, then run the same command again"
    return said


def check_folder(option: str, folder: Path) -> None:
    """Raise ConfigError unless a folder is there and writable, or can be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{option} {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {folder}: {there} may not be written to; name another folder")


def check_runtime() -> None:
    """Raise TrainingError where ONNX Runtime cannot run: hours before it is needed, and for all."""
    from service.decoding.network import RuntimeMissing, require_runtime

    try:
        require_runtime()
    except RuntimeMissing as error:
        raise TrainingError(str(error)) from error
