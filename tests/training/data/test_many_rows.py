"""A log of many rows, in a folder of parquet parts, is read some users at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.config import InteractionsConfig
from training.data import read_interactions, repeats
from training.data.files import log_files

NUM_PARTS = 5


def write_parts(folder: Path, frame: pl.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    for part in range(NUM_PARTS):
        frame.slice(part * len(frame) // NUM_PARTS, len(frame) // NUM_PARTS).write_parquet(
            folder / f"{part}.parquet"
        )
    return folder


def a_log(num_rows: int, ids: str) -> pl.DataFrame:
    """ids: how ids are written, for instance "user-{}" """
    rng = np.random.default_rng(3)
    numbers = {
        "user_id": rng.integers(0, num_rows // 20, num_rows),
        "item_id": rng.integers(0, 30, num_rows),
        "timestamp": 1_700_000_000 + rng.integers(0, 500, num_rows),  # many are equal
    }
    frame = pl.DataFrame(numbers)
    if ids == "numbers":
        return frame
    texts = [pl.format(ids, pl.col(name)).alias(name) for name in ("user_id", "item_id")]
    return frame.with_columns(texts)


@pytest.mark.parametrize("ids", ["numbers", "{}", "Größe-{}", "an id of more than twelve bytes {}"])
@pytest.mark.parametrize("collapse", [True, False])
def test_parts_of_users_give_what_the_whole_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str, collapse: bool
) -> None:
    path = write_parts(tmp_path / "log", a_log(1000, ids))
    config = InteractionsConfig(collapse_repeats=collapse)
    whole_notes: list[str] = []
    whole = read_interactions(path, config, whole_notes)
    # Plainly: a stable sort of text by user and time.
    rows = pl.concat([pl.read_parquet(one) for one in sorted(path.iterdir())])
    rows = rows.cast({"user_id": pl.String, "item_id": pl.String})
    histories: dict[str, list[tuple[str, int]]] = {}
    for user_id, item_id, time in sorted(rows.rows(), key=lambda row: (row[0].encode(), row[2])):
        history = histories.setdefault(user_id, [])
        is_repeat = (item_id, time) in history or (history and history[-1][0] == item_id)
        if not (collapse and is_repeat):
            history.append((item_id, time))
    assert list(whole.user_ids) == list(histories)
    assert list(whole.item_ids) == sorted({*rows["item_id"]}, key=str.encode)
    for user, history in enumerate(histories.values()):
        of_user = [whole.item_ids[row] for row in whole.history_of(user)]
        assert of_user == [item_id for item_id, _ in history]

    monkeypatch.setattr(log_files, "ROWS_AT_ONCE", 70)
    monkeypatch.setattr(repeats, "ROWS_AT_ONCE", 70)
    notes: list[str] = []
    parts = read_interactions(path, config, notes)
    assert notes == whole_notes
    assert (parts.user_ids, parts.item_ids) == (whole.user_ids, whole.item_ids)
    assert np.array_equal(parts.indptr, whole.indptr)
    assert np.array_equal(parts.rows, whole.rows)


READ = """
import sys
from pathlib import Path
from training.config import InteractionsConfig
from training.data import load_dataset, repeats
from training.data.files import log_files

log_files.ROWS_AT_ONCE = repeats.ROWS_AT_ONCE = 100_000
dataset = load_dataset(interactions=Path(sys.argv[1]), config=InteractionsConfig(core=0))
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(dataset.split.everything.num_interactions, int(peak.split()[1]) * 1024)
"""


def test_a_row_takes_few_bytes(tmp_path: Path) -> None:
    """At the peak; so 10^8 rows need less than 6 GiB. As text, a row took 250 bytes."""
    counts, peaks = [], []
    for num_rows in (400_000, 1_200_000):
        path = write_parts(tmp_path / str(num_rows), a_log(num_rows, "a-long-identifier-{}"))
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
        )
        count, peak = map(int, done.stdout.split())
        counts.append(count)
        peaks.append(peak)
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 100
