#!/usr/bin/env bash
# An exact faiss index (IndexFlatL2) gives other distances to 20 queries at once than to 19.
#
# What one would guess: IndexFlatL2 is the exact one. A vector that is in the index has distance 0 to
# itself, and a query's distances do not depend on who asks with it.
#
# What happens: below 20 queries a call (faiss.cvar.distance_compute_blas_threshold) differences are
# squared and summed. From 20 on it is |x|^2 + |y|^2 - 2xy in float32 by BLAS, which cancels: the
# error is of the size of |x|^2 * 1e-7, whatever the distance is. Embeddings that are not centred
# (all positive, or with a large mean, as averaged text embeddings and unnormalised outputs of
# networks have it) lose all digits of small distances; the results of k-means assignment and of
# duplicate detection with a threshold change with the batch.
#
# Seen on 2026-11-30 with faiss-cpu 1.12.0 (x86-64): 1,000 items of 128 dimensions around a mean of
# 100, and for each another one much like it. With 19 queries a call every item has distance 0 to
# itself and is its own nearest. With 20 the distance is up to 1.25, and 284 of the 1,000 items find
# the other one first.
#
# Why it matters: semantic IDs are nearest centroids. An item encoded alone (online) and in a batch
# (offline) can get another code where two centroids are about equally near.
#
# Instead: centre first; or set faiss.cvar.distance_compute_blas_threshold, or encode in float64.
# Unmask encodes in float64 (service/decoding/catalogue/codebook.py).
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.12.0 numpy==2.4.6
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version

import faiss
import numpy as np

D, MEAN = 128, 100
rng = np.random.default_rng(7)
items = (rng.standard_normal((1000, D)) + MEAN).astype(np.float32)
alike = items + np.float32(0.02) * rng.standard_normal(items.shape).astype(np.float32)
index = faiss.IndexFlatL2(D)
index.add(np.concatenate([items, alike]))  # row n and row 1000 + n are two items much alike
print(f"faiss-cpu {version('faiss-cpu')}, IndexFlatL2, {D} dimensions around a mean of {MEAN}")


def asked_by(at_once: int) -> tuple[float, int]:
    """Largest distance of an item to itself; how many have themselves as the nearest."""
    farthest, themselves = 0.0, 0
    for start in range(0, 1000 - at_once + 1, at_once):
        rows = np.arange(start, start + at_once)
        distances, found = index.search(items[rows], 2)
        own = np.where(found == rows[:, None], distances, np.nan)
        farthest = max(farthest, float(np.nanmax(own, initial=0)))
        themselves += int((found[:, 0] == rows).sum())
    return farthest, themselves


alone, batched = asked_by(19), asked_by(20)
for name, (farthest, themselves) in (("19 queries a call", alone), ("20 queries a call", batched)):
    print(f"  {name}: largest distance to itself {farthest:g}; {themselves} are their own nearest")
as_found = alone == (0.0, 988) and batched[0] >= 0.25 and batched[1] < 950
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
