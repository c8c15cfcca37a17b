"""The command line as it starts: help without the libraries that train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from service import decoding
from training import config
from training.__main__ import PUBLIC_DATASETS
from training.data import DATASETS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "sklearn", "scipy", "polars", "numba", "onnxruntime", "matplotlib"}
PROGRAM = """
import sys
from training.__main__ import main
sys.argv = ["training", *sys.argv[1:]]
try:
    main()
finally:
    print("\\nloaded", *{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["fetch", "--help"]])
def test_help_loads_nothing_that_trains(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, last = done.stdout.splitlines()
    assert "Usage:" in "".join(shown)
    loaded = set(last.split())
    assert {"loaded", "training", "typer"} <= loaded
    assert not loaded & HEAVY


def test_help_names_the_public_data_sets() -> None:
    assert tuple(DATASETS) == PUBLIC_DATASETS


@pytest.mark.parametrize("name", ["CodebookKind", "Collisions", "Ranking", "Order"])
def test_the_configuration_offers_what_the_decoder_has(name: str) -> None:
    assert get_args(getattr(config, name)) == get_args(getattr(decoding, name))
