#!/usr/bin/env bash
# implicit's item-to-item recommenders return what the user has bought, though told to filter it.
#
# What one would guess: recommend(..., filter_already_liked_items=True), the default, never returns
# an item of the user's own row. Where there are too few others, the list is shorter, or filled up
# with -1, as the library's matrix factorisation does in a batch.
#
# What happens: in CosineRecommender, TFIDFRecommender, BM25Recommender and ItemItemRecommender the
# user's own items are not left out: their score is set to 0. As soon as fewer than N unseen items
# have a neighbour in the history, bought items fill the list, ids valid, score exactly 0.0. In a
# batch the rest is -1 with score -3.4e38, and row -1 of a NumPy array of titles is the last item.
#
# Seen on 2026-11-30 with implicit 0.7.3 (numpy 2.4.6, scipy 1.17.1): 200 users, 600 items, 3 bought
# by each, N=10: all four return bought items to 171 of the users, up to all 3, every one of them at
# score 0.0; ALS on the same data to none.
#
# Why it matters: item kNN is the baseline, and often the fallback, of a recommender. Users with
# short histories, and cold catalogues, are just those whose lists end in what they have. Offline
# recall does not show it, since a bought item is no hit there.
#
# Instead: keep scores above 0 only, and from a batch ids of 0 or more.
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check implicit==0.7.3 numpy==2.4.6 scipy==1.17.1
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

cat > "$work/finding.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import (
    BM25Recommender,
    CosineRecommender,
    ItemItemRecommender,
    TFIDFRecommender,
)
from scipy.sparse import csr_matrix

warnings.filterwarnings("ignore", message="Method expects CSR")  # of the library, about its own call
USERS, ITEMS, BOUGHT, N = 200, 600, 3, 10
rng = np.random.default_rng(7)
rows = np.repeat(np.arange(USERS), BOUGHT)
columns = np.concatenate([rng.choice(ITEMS, BOUGHT, replace=False) for _ in range(USERS)])
bought = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(USERS, ITEMS))

print(*(f"{name} {version(name)}" for name in ("implicit", "numpy", "scipy")), sep=", ")
print(f"recommend(N={N}, filter_already_liked_items=True). Expected: no bought item in any list.")
as_found = True
for model in (
    CosineRecommender(K=20),
    TFIDFRecommender(K=20),
    BM25Recommender(K=20),
    ItemItemRecommender(K=20),
    AlternatingLeastSquares(factors=8, iterations=3, num_threads=1, random_state=7),
):
    model.fit(bought, show_progress=False)
    users, most, scores_of_bought = 0, 0, set()
    for user in range(USERS):
        ids, scores = model.recommend(user, bought[user], N=N, filter_already_liked_items=True)
        assert len(ids) <= N
        again = np.isin(ids, bought[user].indices)
        users += bool(again.any())
        most = max(most, int(again.sum()))
        scores_of_bought |= set(scores[again].tolist())
    print(
        f"  {type(model).__name__:24} {users} of {USERS} users, at most {most} a list, "
        f"scores {scores_of_bought or '-'}"
    )
    if isinstance(model, ItemItemRecommender):  # the base class of the other three
        as_found &= users > USERS / 2 and most == BOUGHT and scores_of_bought == {0.0}
    else:
        as_found &= users == 0
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
