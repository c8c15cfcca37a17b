#!/usr/bin/env bash
# NUMBA_CPU_NAME=x86-64-v2 alone compiles AVX2 and FMA instructions, which no x86-64-v2 processor has.
#
# What one would guess: the name of an older processor, or of a level of x86-64, restricts the code to
# what that one can run, as -march does in a C compiler. "generic" does so.
#
# What happens: the name only says for what the code is tuned. The features stay those of the machine
# that compiles, unless NUMBA_CPU_FEATURES is set as well; only the name "generic" empties them. And
# numba looks up what it cached by name and features together. So a cache that was filled while an
# image was built, with the name alone, is not found on a processor with other features: it compiles
# everything again, with all that it has itself.
#
# Seen on 2026-12-01 with numba 0.68.1, llvmlite 0.50.0, on an AMD EPYC with AVX2 (it needs one).
#
# Why it matters: recommenders that compile their loops with numba put the cache into the image, so that
# a start takes a second and not a minute. With the name alone the build looks right, works where
# it was built, and saves nothing elsewhere.
#
# Instead: set both, NUMBA_CPU_NAME=x86-64-v3 and an empty NUMBA_CPU_FEATURES, when the cache is filled
# and when it is used. Unmask does (docs/decisions/069).
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6

cat > "$work/total.py" <<'PY'
import sys

import numba
import numpy as np
from llvmlite import binding


@numba.njit(fastmath=True, cache=True)
def total(values):
    found = 0.0
    for value in values:
        found += value * value
    return found


if not binding.get_host_cpu_features()["avx2"]:
    sys.exit("This processor has no AVX2, so nothing can be seen here.")
total(np.ones(1000))
if total.stats.cache_hits:
    sys.exit(print("found"))
[code] = total.inspect_asm().values()
print("compiled,", " ".join(name for name in ("ymm", "vfmadd") if name in code) or "neither")
PY
# The environment of a run, and what it prints.
run() { env "$@" NUMBA_CACHE_DIR="$work/cache" "$work/venv/bin/python" "$work/total.py"; }

"$work/venv/bin/python" -c 'import llvmlite, numba; print("numba", numba.__version__, "llvmlite", llvmlite.__version__)'
echo "256-bit registers and fused multiply-add in the code, and whether the cache had it"
as_found=1
expect() { # sentence, what it should print, environment
    local said
    said=$(run "${@:3}")
    echo "  $1: $said"
    [[ "$said" == "$2" ]] || as_found=0
}
expect "NUMBA_CPU_NAME=x86-64-v2                       " "compiled, ymm vfmadd" NUMBA_CPU_NAME=x86-64-v2
expect "the same again                                 " "found" NUMBA_CPU_NAME=x86-64-v2
expect "the same where AVX2 is missing (told so)       " "compiled, neither" NUMBA_CPU_NAME=x86-64-v2 NUMBA_CPU_FEATURES=+sse4.2
expect "NUMBA_CPU_NAME=generic                         " "compiled, neither" NUMBA_CPU_NAME=generic
expect "NUMBA_CPU_NAME=x86-64-v2 NUMBA_CPU_FEATURES='' " "compiled, neither" NUMBA_CPU_NAME=x86-64-v2 NUMBA_CPU_FEATURES=
expect "the same again                                 " "found" NUMBA_CPU_NAME=x86-64-v2 NUMBA_CPU_FEATURES=

if ((as_found)); then echo "As found."; else echo "CHANGED: look at this again."; exit 1; fi
