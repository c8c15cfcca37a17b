"""Ranks of compared systems on disk: a system that did not change is not ranked again.

Each system has one `<name>.npz`. It holds the ranks of all test users, other figures for the
tables, and a key: the hash of everything that the ranks depend on. With another key the file is
made again. The key does not cover the code: delete the file after a change of the code. Knows no
model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from training.evaluation.evaluation import recall_at
from training.stages import written_whole

TargetRanks = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SystemRanks:
    """Results of one system for every user; ranks as in `training.evaluation.evaluation.Ranks`.

    item, sid:    (num_users,) int32, rank of the target and of its SID at the headline's setting
    exclude_seen: whether the headline's setting leaves out items of the history
    other:        rank of the target at the other setting; None if it was not measured
    long:         `item` for requests of LONG items if these need another search, else None
    validation:   ndcg@10 on validation users; None if it was not measured
    far:          `item` for requests of even more items; None if it was not measured
    parameters:   number of weights and stored similarities
    minutes:      from interactions to a model that answers
    nfe, milliseconds: denoiser calls and time for each user, of systems that decode
    search_share: time in the search divided by time in encoder and denoiser; None likewise
    note:         for the reader of the table
    """

    item: TargetRanks
    other: TargetRanks | None = None
    sid: TargetRanks | None = None
    long: TargetRanks | None = None
    far: TargetRanks | None = None
    exclude_seen: bool = True
    validation: float | None = None
    parameters: int = 0
    minutes: float = 0.0
    nfe: float | None = None
    milliseconds: float | None = None
    search_share: float | None = None
    note: str = ""

    def of_users(self, chosen: NDArray[np.bool_]) -> SystemRanks:
        """The same for some of the users; chosen: (num_users,) bool."""
        return replace(
            self,
            item=self.item[chosen],
            other=None if self.other is None else self.other[chosen],
            sid=None if self.sid is None else self.sid[chosen],
            long=None if self.long is None else self.long[chosen],
            far=None if self.far is None else self.far[chosen],
        )

    def save(self, file: Path, key: str) -> None:
        """Write to `file` under a temporary name, renamed last."""
        values = vars(self)
        arrays: dict[str, Any] = {
            name: value for name, value in values.items() if isinstance(value, np.ndarray)
        }
        meta = {name: values[name] for name in values.keys() - arrays.keys()}
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            shutil.rmtree(file)
        with written_whole(file) as opened:
            np.savez_compressed(opened, meta=np.array(json.dumps({"key": key, **meta})), **arrays)

    @classmethod
    def load(cls, file: Path, key: str) -> SystemRanks | None:
        """Read what `save` wrote; None when it is not there, is damaged, or has another key."""
        try:
            # Opened here, because np.load does not close a file that it cannot read.
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
            meta = json.loads(str(arrays.pop("meta")))
            return cls(**arrays, **meta) if meta.pop("key") == key else None
        except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            return None  # made again, under the same name


@dataclass(frozen=True)
class RanksStore:
    """A folder of ranks; each file is read once."""

    folder: Path
    console: Console
    _held: dict[tuple[str, str], SystemRanks] = field(default_factory=dict)

    def ranks_of(
        self, name: str, inputs: Sequence[str], make: Callable[[], SystemRanks]
    ) -> SystemRanks:
        """The stored ranks of `name` if made from these inputs, else the result of `make`."""
        key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
        if (name, key) in self._held:
            return self._held[name, key]
        file = self.folder / f"{name}.npz"
        found = SystemRanks.load(file, key)
        said = "ranked before"
        if found is None:
            self.console.print(name, style="bold", markup=False)
            found = make()
            found.save(file, key)
            said = f"ranked {len(found.item):,} test users"
        recall = recall_at(found.item, 10)
        self.console.print(f"{name}: {said}, recall@10 {recall:.4f}", markup=False)
        self._held[name, key] = found
        return found
