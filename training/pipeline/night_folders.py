"""The folders of the nights: which ones there are, which is to be gone on with, which may go.

A night marks its folder when it begins. A folder without the mark is somebody else's, whatever its
name is: it is never removed. Knows no gate and no promotion.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

from service.bundles import reference_at
from service.errors import BundleInvalid
from training.errors import ConfigError, DataError
from training.pipeline.night_log import FILE, NightLog
from training.stages import remove

MARK = ".night"
NIGHT = re.compile(r"\d{4}-\d{2}-\d{2}[\w.-]*")


def check_name(night: str) -> None:
    """Raise ConfigError unless it begins with a date."""
    try:
        date.fromisoformat(night[:10])
        is_one = bool(NIGHT.fullmatch(night))
    except ValueError:
        is_one = False
    if not is_one:
        raise ConfigError(f"--night {night}: write a date, such as 2026-11-30")


def night_to_do(out: Path, store: Path, name: str) -> str:
    """The newest night, if it was cut off; else that of today, in UTC.

    A night has ended when the log has its verdict.
    """
    ended = {entry.night for entry in NightLog(store / name / FILE).read() if entry.is_verdict}
    marked = [folder.name for folder in nights(out) if (folder / MARK).exists()]
    if marked and marked[0] not in ended:
        return marked[0]
    return f"{datetime.now(UTC):%Y-%m-%d}"


def nights(out: Path) -> list[Path]:
    """Folders that are called like nights, newest first."""
    found = out.iterdir() if out.is_dir() else ()
    return sorted((each for each in found if NIGHT.fullmatch(each.name)), reverse=True)


def run_of(reference: str | None, out: Path) -> Path | None:
    """The folder of the run that made this bundle; None if it is not in `out`."""
    for folder in nights(out):
        if reference is not None and _bundle_of(folder) == reference:
            return folder
    return None


def begin(folder: Path) -> None:
    """Make the folder of a night and mark it. One that somebody else has filled gets no mark."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        (folder / MARK).touch()


def tidy_up(out: Path, keep: int, tonight: Path, needed: Collection[str]) -> list[Path]:
    """Remove old folders of nights; which ones.

    Those stay: the `keep` newest before tonight, and those that made a bundle of `needed`.
    """
    others = [one for one in nights(out) if one != tonight and (one / MARK).exists()]
    removed = [one for one in others[keep:] if _bundle_of(one) not in needed]
    for folder in removed:
        remove(folder)
    return removed


def _bundle_of(folder: Path) -> str | None:
    try:
        return reference_at(folder / "bundle")
    except BundleInvalid:
        return None


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Only one night at a time. A process that was killed holds nothing."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another night is at work in {out}; wait for its end") from None
        yield
