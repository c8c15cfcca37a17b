#!/usr/bin/env bash
# The integer codes of a polars Categorical are other ones each time the same file is read.
#
# What one would guess: `cast(pl.Categorical)` numbers texts in the order of their first appearance,
# as pandas' `factorize` and pyarrow's `dictionary_encode` do. So `to_physical()` of the same file is
# the same column each time, and can serve as the row of an embedding table.
#
# What happens: as a Series on its own, yes. As an expression (`with_columns`, `select`, lazy or not)
# on data of several chunks or a large one, threads number the texts side by side, and who comes first
# gets the number. The texts are right each time; their codes are not the same.
#
# Seen on 2026-12-01 with polars 2.1.0 (x86-64, 2 cores): 2,000,000 ids, 199,992 distinct ones, in one
# parquet file, read in processes of their own. The codes of `Series.cast` were the same in each of 4
# processes, those of the same cast in `with_columns` in none of 4. With POLARS_MAX_THREADS=1 they
# were the same.
#
# Why it matters: a recommender that trains with `to_physical()` as item index and encodes the same
# file again when it serves (or resumes) looks up the vectors of other items, without an error: the
# shapes fit, the codes are in range. A first test on a small file passes, since there it is stable.
#
# Instead: number the ids yourself, by their sorted texts (`unique().sort()`, then `search_sorted` or a
# join), store that list beside the model, or use an Enum made of it. Unmask orders items by popularity
# and id, and never keeps a code (training/data/files/columns.py, `ranked`).
#
# Ends with 0 while this is so, with 1 once it is not. Needs two cores; with one, threads do not race.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check polars==2.1.0 numpy==2.4.6

cat > "$work/make.py" <<'PY'
import sys

import numpy as np
import polars as pl

drawn = np.random.default_rng(0).integers(0, 200_000, 2_000_000)
ids = pl.DataFrame({"item": drawn}).select(pl.format("item-{}", "item").alias("item_id"))
ids.write_parquet(sys.argv[1])
PY
cat > "$work/codes.py" <<'PY'
import hashlib
import sys

import polars as pl

frame = pl.read_parquet(sys.argv[1])
as_series = frame["item_id"].cast(pl.Categorical(pl.Categories("of a series")))
as_column = pl.col("item_id").cast(pl.Categorical(pl.Categories("of a column")))
as_expression = frame.with_columns(as_column)["item_id"]
assert as_series.cast(pl.String).equals(as_expression.cast(pl.String))
for column in (as_series, as_expression):
    print(hashlib.sha256(column.to_physical().to_numpy().tobytes()).hexdigest()[:12], end=" ")
print()
PY
export POLARS_MAX_THREADS=2
python="$work/venv/bin/python"
"$python" "$work/make.py" "$work/log.parquet"
for _ in 1 2 3 4; do "$python" "$work/codes.py" "$work/log.parquet"; done > "$work/two"
for _ in 1 2; do
    POLARS_MAX_THREADS=1 "$python" "$work/codes.py" "$work/log.parquet"
done > "$work/one"
distinct() { cut -d' ' -f"$2" "$1" | sort -u | wc -l; }
echo "polars 2.1.0, codes of the same file, in processes of their own:"
echo "  Series.cast:                    $(distinct "$work/two" 1) different columns in 4 processes"
echo "  with_columns(cast):             $(distinct "$work/two" 2) different columns in 4 processes"
echo "  with_columns(cast), one thread: $(distinct "$work/one" 2) different columns in 2 processes"
if (($(distinct "$work/two" 1) == 1 && $(distinct "$work/two" 2) > 1 && $(distinct "$work/one" 2) == 1)); then
    echo "As found."
else
    echo "CHANGED: look at this again."
    exit 1
fi
