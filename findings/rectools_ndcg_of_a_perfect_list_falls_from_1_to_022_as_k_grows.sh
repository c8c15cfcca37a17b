#!/usr/bin/env bash
# RecTools' NDCG@k of a perfect list is 1 for k = 1 and 0.22 for k = 10, with one held-out item.
#
# What one would guess: NDCG is 1 when the only held-out item is at rank 1, whatever k is: the gain
# is divided by the best one that a list could have.
#
# What happens: it is divided by the gain of a list that is relevant at all k ranks, which nobody
# can reach who has fewer than k held-out items. With one of them NDCG@1 is 1, NDCG@3 is .4693 and
# NDCG@10 is .2201, the highest value there can be. The option divide_by_achievable=True divides as
# one would guess. MAP beside it divides by min(k, held-out items) without being asked, so a perfect
# list has MAP@10 = 1 and NDCG@10 = .22 in one table.
#
# Seen on 2026-12-01 with RecTools 0.19.0, pandas 2.3.3.
#
# Why it matters: leave-one-out is the protocol of this field, and all published NDCG of it have 1 as
# the highest value. Beside them this one is 4.5 times too low at k = 10, and 1.6 times at k = 2.
# Where users have different numbers of held-out items, it is no constant factor either, and two
# systems change places: .1795 and .2489 here, against .5694 and .4949.
#
# Instead: NDCG(k, divide_by_achievable=True).
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rectools==0.19.0 pandas==2.3.3

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version

import pandas as pd
from rectools.metrics import MAP, NDCG

TEN = [f"item {rank}" for rank in range(1, 11)]


def recommended(user: str, items: list[str]) -> pd.DataFrame:
    ranks = range(1, len(items) + 1)
    return pd.DataFrame({"user_id": user, "item_id": items, "rank": ranks})


def held_out(user: str, items: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"user_id": user, "item_id": items})


print(f"RecTools {version('rectools')}: the only held-out item is at rank 1")
perfect, truth = recommended("one", TEN), held_out("one", TEN[:1])
found = {}
for k in (1, 3, 10):
    found[k] = NDCG(k).calc(perfect, truth)
    achievable = NDCG(k, divide_by_achievable=True).calc(perfect, truth)
    print(f"  k={k:2}: NDCG {found[k]:.4f}, divide_by_achievable {achievable:.4f}")
print(f"  MAP@10: {MAP(10).calc(perfect, truth):.4f}")

# Two users, of one held-out item and of ten. System A puts the first user's item at rank 1, and
# finds one of the other user's, at rank 2. System B puts it at rank 2, and finds two, at 1 and 2.
both = pd.concat([truth, held_out("ten", TEN)])
others = [f"other {rank}" for rank in range(1, 11)]
at_2 = [others[0], TEN[0], *others[1:9]]
a = pd.concat([perfect, recommended("ten", at_2)])
b = pd.concat([recommended("one", at_2), recommended("ten", [*TEN[:2], *others[:8]])])
as_default, as_achievable = (
    [NDCG(10, divide_by_achievable=way).calc(system, both) for system in (a, b)]
    for way in (False, True)
)
print("two users, of one held-out item and of ten: systems A and B")
print(f"  NDCG@10: {as_default[0]:.4f} {as_default[1]:.4f}")
print(f"  divide_by_achievable: {as_achievable[0]:.4f} {as_achievable[1]:.4f}")

as_found = (
    found[1] == 1
    and abs(found[3] - 0.4693) < 1e-4
    and abs(found[10] - 0.2201) < 1e-4
    and MAP(10).calc(perfect, truth) == 1
    and as_default[0] < as_default[1]
    and as_achievable[0] > as_achievable[1]
)
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
