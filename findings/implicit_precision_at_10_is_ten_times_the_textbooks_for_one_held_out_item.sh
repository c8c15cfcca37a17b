#!/usr/bin/env bash
# implicit's precision@k is not hits / k: with one held-out item a user it is the hit rate.
#
# What one would guess: precision_at_k(K=10) is the share of the 10 recommended items that the user
# has in the test set. With leave-one-out it can be at most .1.
#
# What happens: the hits of all users are summed and divided by the sum over users of
# min(K, held-out items of the user). With one held-out item a user this is hits / users: recall, or
# hit rate. A perfect model has a "precision@10" of 1. With many held-out items it is hits / (K *
# users), as one would expect, so that the same model looks better the less is known of a user.
# There is no recall among the four measures beside it (map, ndcg and auc are as one would guess).
#
# Seen on 2026-11-30 with implicit 0.7.3: 300 users, 200 items, ALS with 8 factors, K=10, one held-out
# item a user: "precision" .187, which is the hit rate to the last digit; hits / (10 * users) is .019.
#
# Why it matters: leave-one-out is the protocol of this field, and a table with this column beside
# precision from another library compares figures that differ by a factor of ten.
#
# Instead: call it recall when every user has one held-out item, and count hits yourself otherwise.
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
from importlib.metadata import version

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.evaluation import ranking_metrics_at_k
from scipy.sparse import csr_matrix

USERS, ITEMS, K = 300, 200, 10
rng = np.random.default_rng(7)
taste = rng.integers(0, 10, USERS)  # a user likes every tenth item
train = np.zeros((USERS, ITEMS), np.float32)
held_out = np.zeros((USERS, ITEMS), np.float32)
for user in range(USERS):
    liked = rng.choice(np.arange(taste[user], ITEMS, 10), 5, replace=False)
    train[user, liked[:4]] = 1
    train[user, rng.choice(ITEMS, 6, replace=False)] = 1  # and some others
    train[user, liked[4]] = 0
    held_out[user, liked[4]] = 1
train, held_out = csr_matrix(train), csr_matrix(held_out)

model = AlternatingLeastSquares(factors=8, iterations=5, num_threads=1, random_state=7)
model.fit(train, show_progress=False)
measured = ranking_metrics_at_k(
    model, train, held_out, K=K, show_progress=False, num_threads=1
)
answers, _ = model.recommend(np.arange(USERS), train, N=K)
hits = int((answers == held_out.indices[:, None]).any(axis=1).sum())
print(f"implicit {version('implicit')}: {USERS} users, one held-out item each, K={K}, {hits} hits")
print(f"  expected precision@{K}, hits / (K * users): {hits / (K * USERS):.4f}")
print(f"  hit rate, hits / users:                    {hits / USERS:.4f}")
print(f"  what the library calls precision:          {measured['precision']:.4f}")
as_found = hits > 0 and abs(measured["precision"] - hits / USERS) < 1e-9
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
