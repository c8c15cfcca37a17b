"""The stress test from end to end, on the demo bundle, for seconds instead of minutes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loadtest.stress import main
from service.bundles.store import configured_path


def test_all_its_phases(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.stress.CALM_S", 3.0)
    own = os.sched_getaffinity(0)
    bundle = configured_path(Path("models_store"), "demo")
    short = ["--seconds", "1", "--rate", "15", "--soak-seconds", "1", "--slo-ms", "60000"]
    patient = ["--setting", "default_timeout_ms=10000"]  # this machine may be busy
    assert main(["--bundle", str(bundle), *short, *patient, "--compare-auto"]) == 0
    printed = capsys.readouterr().out
    assert "3 x capacity" in printed
    assert "with slo_ms=60000, encoder_cache=0, default_timeout_ms=10000;" in printed
    plain, auto = json.loads(printed.splitlines()[-1])
    assert (plain["parameters"], auto["parameters"]) == ({}, {"schedule": "auto"})
    for found in (plain, auto):
        assert found["capacity"] == 15
        assert found["overload"]["statuses"].keys() <= {"200", "429"}
        assert found["overload"]["rate"] == 45
        assert found["alone"]["p50_ms"] > found["alone"]["decode_p50_ms"] > 0
        assert found["batch_requests"] >= 1
        assert found["recovered_p50_ms"] > 0
        assert set(found["soak"]["statuses"]) == {"200"}
        assert found["soak"]["rate"] == 12
    assert os.sched_getaffinity(0) == own


@pytest.mark.parametrize(
    "wrong",
    [
        ["--setting", "port=1"],
        ["--setting", "SLO_MS=50"],
        ["--setting", "ort_threads"],
        ["--service-cores", "0"],
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--bundle", str(tmp_path), *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
