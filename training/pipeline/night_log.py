"""What became of each night: a file of JSON lines in the store, which only grows.

It lies beside the versions, because it says why one of them is in service. Knows no run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from training.bundling import Verdict
from training.errors import DataError

FILE = "nights.jsonl"


@dataclass(frozen=True)
class Entry:
    """One verdict; or "promoting", which says that what follows is the promotion of this bundle.

    why: a sentence
    candidate, digest: the bundle of this night; a promoted one has this digest in the store, too
    in_service: name@version that the candidate was held against; None if there was none
    forced: promoted because it was asked for, though undecided
    compared: the trials of both; None if they were not compared
    best: name@version of the best bundle that nights had promoted before; None if it is lost
    compared_with_best: the trials of candidate and best
    """

    night: str
    at: str
    verdict: Verdict | Literal["promoting"]
    why: str
    candidate: str
    digest: str
    margin: float
    in_service: str | None = None
    forced: bool = False
    compared: dict[str, Any] | None = None
    best: str | None = None
    compared_with_best: dict[str, Any] | None = None

    @classmethod
    def now(cls, **fields: Any) -> Entry:
        """An entry of this moment."""
        return cls(at=datetime.now(UTC).isoformat(timespec="seconds"), **fields)

    @property
    def version(self) -> str:
        return self.candidate.partition("@")[2]

    @property
    def is_verdict(self) -> bool:
        return self.verdict != "promoting"

    @property
    def best_from_now_on(self) -> str:
        """The best so far stays until a night that is promoted is certainly better."""
        is_better = self.compared_with_best is not None and self.compared_with_best["low"] > 0
        return self.candidate if self.best is None or is_better else self.best

    def is_about_the_same_as(self, other: Entry) -> bool:
        """Whether both are about one bundle, held against the same ones with the same margin."""
        names = ("night", "candidate", "digest", "in_service", "best", "margin")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True)
class NightLog:
    """The entries of the bundles of one name, in `<store>/<name>/nights.jsonl`."""

    path: Path

    def read(self) -> Sequence[Entry]:
        """All entries, oldest first. A last line that was cut off is no entry; a whole one is,
        even if it has no line end.

        Raises DataError for any other line that is none.
        """
        text = self.path.read_text() if self.path.exists() else ""
        whole, _, last = text.rpartition("\n")
        try:
            entries = [Entry(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.path} has a line that no night wrote ({error}); mend it, or move the file "
                "away: then no version is removed that an earlier night has promoted"
            ) from error
        return [*entries, Entry(**json.loads(last))] if _is_entry(last) else entries

    def best(self) -> str | None:
        """name@version of the best bundle that nights have promoted; None if none has."""
        promoted = [entry for entry in self.read() if entry.verdict == "promoted"]
        return promoted[-1].best_from_now_on if promoted else None

    def append(self, entry: Entry) -> None:
        """Add a line. What a killed process left of one is cut off first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            text = file.read()
            end = text.rfind(b"\n") + 1
            if _is_entry(text[end:].decode(errors="replace")):
                file.write(b"\n")
            else:
                file.truncate(end)
            file.write((json.dumps(asdict(entry)) + "\n").encode())


def _is_entry(line: str) -> bool:
    try:
        Entry(**json.loads(line))
    except (ValueError, TypeError):
        return False
    return True
