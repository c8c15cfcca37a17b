#!/usr/bin/env bash
# ir-measures: RR and RR@10 of one call disagree when the scores are timestamps.
#
# What one would guess: with fewer than ten items in every list, RR and RR@10 are the same number,
# and a list in which every score is different has one order.
#
# What happens: ir-measures hands each measure to another evaluator. RR, nDCG@k, R@k, P@k and AP go
# to trec_eval's code, which keeps a score as a 32-bit float; RR@k and Judged@k are sorted in Python
# by the number as it is. At today's Unix times neighbouring 32-bit floats are 128 seconds apart, so
# the clicks of a session tie there, and trec_eval breaks ties by the id: the *larger* string comes
# first. (The Python side does the opposite with real ties: the smaller one first.) Nothing warns.
#
# Seen on 2026-11-30 with ir-measures 0.4.3 and pytrec_eval-terrier 0.5.11: for "most recent first"
# over sessions of eight clicks ten seconds apart, where the most recent is right for each of 500
# users, RR@10 is 1.000, RR is 0.491, nDCG@10 0.613. Scored by rank all three are 1.000.
#
# Why it matters: "most recent" and "most popular lately" are the baselines that a recommender must
# beat, and a timestamp is their natural score. The same goes for scores with a large common part
# (an id in the lower digits, sums of log-probabilities near -10^6). Such a baseline looks far worse
# than it is, and the model that is compared with it far better.
#
# Instead: sort in float64 yourself and give the evaluator scores made from ranks (1/rank). Compare
# RR with RR@1000: a difference means ties.
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    ir-measures==0.4.3 pytrec_eval-terrier==0.5.11 numpy==2.4.6 scipy==1.17.1

cat > "$work/finding.py" <<'PY'
import random
import struct
import sys
from importlib.metadata import version

import ir_measures
from ir_measures import RR, Qrel, ScoredDoc, nDCG

USERS, CLICKS = 500, 8
MEASURES = [RR, RR @ 10, nDCG @ 10]
rng = random.Random(7)


def as_float32(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


wanted, by_time, by_rank = [], [], []
foretold = 0.0
for user in range(USERS):
    items = [f"item-{n:04d}" for n in rng.sample(range(10_000), CLICKS)]
    start = 1_796_000_000 + rng.randrange(86_400)
    times = {item: start + 10 * n for n, item in enumerate(items)}
    wanted.append(Qrel(str(user), items[-1], 1))
    by_time += [ScoredDoc(str(user), item, float(time)) for item, time in times.items()]
    by_rank += [ScoredDoc(str(user), item, 1 / (CLICKS - n)) for n, item in enumerate(items)]
    order = sorted(items, key=lambda item: (as_float32(times[item]), item), reverse=True)
    foretold += 1 / (1 + order.index(items[-1])) / USERS

times = ir_measures.calc_aggregate(MEASURES, wanted, by_time)
ranks = ir_measures.calc_aggregate(MEASURES, wanted, by_rank)
print(*(f"{name} {version(name)}" for name in ("ir-measures", "pytrec_eval-terrier")), sep=", ")
print("The most recent item is first in every list and right. Expected: 1.000 everywhere.")
for measure in MEASURES:
    print(f"  {measure!s:8} scored by timestamp {times[measure]:.3f}, by rank {ranks[measure]:.3f}")
print(f"  RR foretold from 32-bit scores with ties by the larger id: {foretold:.3f}")
as_found = (
    all(ranks[measure] == 1 for measure in MEASURES)
    and times[RR @ 10] == 1
    and times[RR] < 0.6
    and abs(times[RR] - foretold) < 1e-6
    and times[nDCG @ 10] < 0.7
)
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
