"""What became of each night: a file of JSON lines in the store, which only grows.

It lies beside the versions, because it says why one of them is in service. Knows no run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.bundling import PairedRecall, Verdict
from training.errors import DataError

FILE = "nights.jsonl"


@dataclass(frozen=True)
class Entry:
    """One verdict.

    why: a sentence
    candidate, digest: the bundle of this night; a promoted one has this digest in the store, too
    in_service: name@version that the candidate was held against; None if there was none
    forced: promoted because it was asked for, though undecided
    compared: the trials of both; None if they were not compared
    """

    night: str
    at: str
    verdict: Verdict
    why: str
    candidate: str
    digest: str
    in_service: str | None
    margin: float
    forced: bool = False
    compared: dict[str, Any] | None = None

    @classmethod
    def now(cls, *, compared: PairedRecall | None = None, **fields: Any) -> Entry:
        """An entry of this moment."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(at=at, compared=asdict(compared) if compared else None, **fields)

    @property
    def version(self) -> str:
        return self.candidate.partition("@")[2]


@dataclass(frozen=True)
class NightLog:
    """The entries of the bundles of one name, in `<store>/<name>/nights.jsonl`."""

    path: Path

    def read(self) -> Sequence[Entry]:
        """All entries, oldest first. A last line that was cut off is no entry.

        Raises DataError for any other line that is none.
        """
        text = self.path.read_text() if self.path.exists() else ""
        whole, _, _ = text.rpartition("\n")
        try:
            return [Entry(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.path} has a line that no night wrote ({error}); mend it, or move the file "
                "away: then no version is removed that an earlier night has promoted"
            ) from error

    def append(self, entry: Entry) -> None:
        """Add a line. What a killed process left of one is cut off first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write((json.dumps(asdict(entry)) + "\n").encode())
