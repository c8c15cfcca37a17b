"""Machine code for other processors: made without running it, and found by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Scores a catalogue. Prints how often compiled code was found in the cache, and how often not. Then
# compiles that function for other levels.
SCORE = """
import sys
import numpy as np
from service.decoding.search.rows import whole_catalogue
from service.loading.compile_ahead import compile_for

if __name__ == "__main__":
    codes, biases = np.zeros((3, 2), np.uint16), np.zeros(3, np.float32)
    log_probs = np.zeros((2, 4), np.float32)
    whole_catalogue.best_of_catalogue(codes, biases, log_probs, 2, normalised=True)
    function = whole_catalogue._best_of_catalogue
    print(function.stats.cache_hits.total(), function.stats.cache_misses.total())
    name = f"{function.py_func.__module__}.{function.py_func.__qualname__}"
    compile_for(sys.argv[1:], {name: function.signatures})
"""


def test_code_of_other_levels_is_found_by_such_processors(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(SCORE)
    root = Path(__file__).parents[3]

    def found_and_missed(*other_levels: str, level: str) -> str:
        run = subprocess.run(
            [sys.executable, script, *other_levels],
            env={
                **os.environ,
                "NUMBA_CACHE_DIR": str(tmp_path),
                "NUMBA_CPU_NAME": level,
                "NUMBA_CPU_FEATURES": "",
                "PYTHONPATH": str(root),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()

    assert found_and_missed("x86-64", "x86-64-v4", level="x86-64-v2") == "0 1"
    assert found_and_missed(level="x86-64") == "1 0"
    num_kept = len(list(tmp_path.rglob("whole_catalogue._best_of_catalogue*.nbc")))
    assert num_kept == 3
