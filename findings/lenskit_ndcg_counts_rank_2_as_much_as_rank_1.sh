#!/usr/bin/env bash
# LensKit's nDCG gives the second place the full weight of the first.
#
# What one would guess: NDCG(n=10) of one held-out item at rank r is 1 / log2(r + 1), as in most
# papers and libraries: 1 at rank 1, .63 at rank 2, .5 at rank 3.
#
# What happens: the weight is 1 / max(log2(r), 1), the form of the first paper on DCG. So ranks 1 and
# 2 both count 1, and every later rank counts what others give to the rank before it. With one held
# out item a user the ideal list is no help: it divides by 1 in both forms. Neither the label
# (NDCG@10) nor the result says which form it is.
#
# Seen on 2026-11-30 with lenskit 2025.8.1: 1.000, 1.000, .631, .500 at ranks 1 to 4 (expected 1.000,
# .631, .500, .431). A system whose targets are all at rank 2 is a perfect one, and a re-ranker that
# moves every target from rank 2 to rank 1 gains nothing. Targets spread evenly over ranks 1 to 10:
# .525 instead of .454, 16 % more.
#
# Why it matters: nDCG@10 is the headline of sequential recommendation. Figures of this library beside
# figures of a paper, or of another library, look like a large gain.
#
# Instead: compare within one library, or pass discount=lambda rank: log2(rank + 1), and say which.
#
# Installs torch (LensKit needs it): some hundred MB. Ends with 0 while this is so, else with 1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lenskit==2025.8.1 numpy==2.4.6

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from lenskit.data import ItemList
from lenskit.metrics import NDCG, call_metric

print(f"lenskit {version('lenskit')}; one held-out item, at rank r of a list of 10; NDCG@10")
print("rank  expected  lenskit  with a discount of our own")
held_out = ItemList(["target"])
expected, found, ours = [], [], []
for rank in range(1, 11):
    ids = [f"item-{n}" for n in range(1, 11)]
    ids[rank - 1] = "target"
    answer = ItemList(ids, ordered=True)
    expected.append(1 / np.log2(rank + 1))
    found.append(call_metric(NDCG(n=10), answer, held_out))
    own = NDCG(n=10, discount=lambda ranks: np.log2(np.asarray(ranks) + 1))
    ours.append(call_metric(own, answer, held_out))
    print(f"{rank:4}  {expected[-1]:8.3f}  {found[-1]:7.3f}  {ours[-1]:7.3f}")
print(f"mean  {np.mean(expected):8.3f}  {np.mean(found):7.3f}  {np.mean(ours):7.3f}")
as_found = found[0] == found[1] == 1 and np.allclose(found[2:], 1 / np.log2(np.arange(3, 11)))
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
