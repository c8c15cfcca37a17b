#!/usr/bin/env bash
# A polars Categorical with named Categories is not `pl.Categorical`, and `series == "text"` raises.
#
# What one would guess: `pl.Categories(name)` lets columns of several
# frames share codes. It is the same data type with a parameter, so code that
# asks `dtype == pl.Categorical` or `dtype in (pl.String, pl.Categorical)` goes on working, as it does
# for List(inner), Datetime(unit, zone), Decimal(precision, scale) and Enum(categories).
#
# What happens: for those four a type with parameters is equal to its class, and a Categorical without
# a name is too. With a name it is not. And `series == "a"` raises NotImplementedError, while the same
# comparison as an expression, or of the unnamed kind, works.
#
# Seen on 2026-12-01 with polars 2.1.0.
#
# Why it matters: checks of a user's columns ("ids must be text") refuse such a column, or take a
# branch for numbers, once somebody upstream gives the categories a name.
#
# Instead: `dtype.base_type() in (...)` or `isinstance(dtype, pl.Categorical)`; compare in an
# expression, `frame.filter(pl.col("x") == "a")`. Unmask asks for base types
# (training/data/files/columns.py).
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check polars==2.1.0

cat > "$work/finding.py" <<'PY'
import sys

import polars as pl

print(f"polars {pl.__version__}")
others = {
    "List": pl.List(pl.Int64) == pl.List,
    "Datetime": pl.Datetime("us", "UTC") == pl.Datetime,
    "Decimal": pl.Decimal(10, 2) == pl.Decimal,
    "Enum": pl.Enum(["a", "b"]) == pl.Enum,
}
print("  a type with parameters is equal to its class:", others)
kinds = {"without a name": pl.Categorical(), "with a name": pl.Categorical(pl.Categories("mine"))}
found = {}
for kind, dtype in kinds.items():
    series = pl.Series("x", ["a", "b", "a"], dtype=dtype)
    try:
        compared = (series == "a").to_list()
    except NotImplementedError as error:
        compared = type(error).__name__
    by_expression = series.to_frame().select(pl.col("x") == "a").to_series().to_list()
    found[kind] = dtype == pl.Categorical, dtype in (pl.String, pl.Categorical), compared
    print(f"  Categorical {kind}: == pl.Categorical {found[kind][0]}, in (pl.String,", end=" ")
    print(f'pl.Categorical) {found[kind][1]}, series == "a": {compared}, as an expression', end=" ")
    print(by_expression)
right = [True, False, True]
as_found = all(others.values()) and found == {
    "without a name": (True, True, right),
    "with a name": (False, False, "NotImplementedError"),
}
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
