"""`python -m training device-check` without a GPU: what it says, and when it objects."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main
from training.fitting import first_losses

device_check = importlib.import_module("training.pipeline.device_check")  # not the function


def test_it_says_what_is_there_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_check, "USERS", 300)
    monkeypatch.setattr(device_check, "ITEMS", 100)
    monkeypatch.setattr(device_check, "ROUNDS", 2)
    # Two devices, of which the second errs.
    monkeypatch.setattr(device_check, "devices", lambda: ["cpu", "cpu"])
    factors = [1.0, 1.01]

    def wrong_the_second_time(*parts: Any, **named: Any) -> list[float]:
        factor = factors.pop(0)
        return [factor * loss for loss in first_losses(*parts, **named)]

    monkeypatch.setattr(device_check, "first_losses", wrong_the_second_time)
    words = ["device-check", "--out", str(tmp_path / "check"), "--preset", "tiny"]
    words += ["--set", "codebook.num_codes=16", "--set", "embeddings.content_dims=24"]
    monkeypatch.setattr("sys.argv", ["training", *words])
    assert main() == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert json.loads((tmp_path / "check" / "device-check.json").read_text()) == found
    for shown in (
        "ms a request in 64",
        "samples per second",
        "install unmask with its extra `gpu`",
    ):
        assert shown in " ".join(printed.err.split())
    first, second = found["training"]
    assert (first["largest_difference_of_losses"], first["agrees"]) == (0, True)
    assert second["largest_difference_of_losses"] == pytest.approx(0.01)
    assert not second["agrees"]
    assert [row["provider"] for row in found["decoding"]] == ["cpu", "cuda", "tensorrt"]
    cpu, *missing = found["decoding"]
    assert cpu["same_lists"] == 1
    assert all(cpu[f"ms_a_request_in_{batch}"] > 0 for batch in (1, 8, 64))
    assert all(
        "CUDAExecutionProvider" in row["missing"] or row["provider"] == "tensorrt"
        for row in missing
    )
