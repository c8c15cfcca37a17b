"""Draw the picture of a finished sweep again: `python -m loadtest.sweeping FOLDER`.

Reads `sweep.jsonl` of the folder and writes `sweep.svg` and `sweep.png` beside it. Measures nothing
and changes no other file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.sweeping.plot import plot_sweep
from loadtest.sweeping.results import SweepError, read_results


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 with a sentence if the folder holds no sweep."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.sweeping",
        description="Draw the picture of a finished sweep again.",
    )
    parser.add_argument("folder", type=Path, help="where sweep.jsonl is")
    folder: Path = parser.parse_args(arguments).folder
    try:
        setting, measured = read_results(folder)
    except SweepError as error:
        print(error, file=sys.stderr)
        return 1
    plot_sweep(measured, setting, [folder / "sweep.svg", folder / "sweep.png"])
    print(f"drawn: {folder / 'sweep.svg'} and {folder / 'sweep.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
