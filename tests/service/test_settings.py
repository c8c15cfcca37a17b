"""Settings: flag beats variable beats default, and a typing error is never silently a default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.settings import Settings, available_cpus, load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"UNMASK_{name.upper()}", raising=False)


def test_flag_beats_variable_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 8000
    monkeypatch.setenv("UNMASK_PORT", "8001")
    assert load_settings().port == 8001
    assert load_settings(["--port", "8002"]).port == 8002


def test_lists_have_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_HISTORY_EVENT_TYPES", "view, buy")
    assert load_settings().history_event_types == ("view", "buy")
    assert load_settings(["--history-event-types", "a,b"]).history_event_types == ("a", "b")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("UNMASK_PROT", "1", "UNMASK_PROT is not a setting; did you mean UNMASK_PORT?"),
        ("UNMASK_XYZZY", "1", "UNMASK_XYZZY is not a setting (see python -m service --help)."),
        ("UNMASK_PORT", "many", "UNMASK_PORT (--port) is wrong: Input should be a valid integer"),
        ("UNMASK_PORT", "0", "UNMASK_PORT (--port) is wrong: Input should be greater than"),
        ("UNMASK_REDIS_URL", "http://x", "it must start with redis://"),
        ("UNMASK_REDIS_URL", "redis+ring://x", "or with redis+cluster:// or redis+sentinel://"),
        ("UNMASK_REDIS_URL", "redis://:hun/ter2@h", "a password must be percent-encoded"),
        ("UNMASK_REDIS_URL", "redis+sentinel://h", "must end in /<service-name>"),
        ("UNMASK_REDIS_REPLICA_URL", "redis://h", "UNMASK_REDIS_URL must each name one server"),
        ("UNMASK_PROVIDER", "gpu", "UNMASK_PROVIDER (--provider) is wrong: Input should be 'cpu'"),
        ("UNMASK_ENCODER_CACHE", "-1", "UNMASK_ENCODER_CACHE (--encoder-cache) is wrong"),
        ("UNMASK_LOG_SALT", "x" * 65, "UNMASK_LOG_SALT (--log-salt) is wrong"),
        ("UNMASK_LOG_SALT", "ü" * 40, "it must have 1 to 64 bytes"),
        ("UNMASK_LOG_SALT", "", "it must have 1 to 64 bytes"),
        ("UNMASK_ADMIN_KEYS", "short", "each key must have at least 8 characters"),
        ("UNMASK_EMBEDDER_URL", "ftp://h", "it must start with http:// or https://"),
    ],
)
def test_a_wrong_setting_is_a_sentence(
    variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_replica_belongs_to_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_REDIS_REPLICA_URL", "redis://replica")
    assert load_settings(["--redis-url", "redis://primary"]).redis_replica_url
    for url in ("redis+cluster://a,b", "redis+sentinel://a/shop"):
        with pytest.raises(SettingsInvalid, match="must each name one server"):
            load_settings(["--redis-url", url])


def test_the_variable_of_the_data_sets_is_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DATA_DIR", "/somewhere")
    load_settings()


def test_help_names_every_setting_and_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "Serve recommendations over HTTP" in shown
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"UNMASK_{name.upper()}]" in shown
        assert field.description
        assert field.description.endswith(".")


def test_an_unknown_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(["--prot", "1"])
    assert ended.value.code == 2
    assert "--prot" in capsys.readouterr().err


def test_secrets_are_not_shown() -> None:
    settings = load_settings(["--redis-url", "redis://:hunter2@h", "--log-salt", "pepper"])
    assert "hunter2" not in repr(settings)
    assert "pepper" not in repr(settings)


@pytest.mark.parametrize(
    ("cores", "limits", "cpus"),
    [
        (8, {}, 8),
        (8, {"": "max 100000"}, 8),
        (8, {"": "300000 100000"}, 3),
        (2, {"": "300000 100000"}, 2),
        (8, {"": "150000 100000"}, 1),  # a core and a half
        (8, {"": "50000 100000"}, 1),
        (8, {"pod/app": "400000 100000"}, 4),
        (8, {"pod/app": "max 100000", "pod": "200000 100000"}, 2),
        (8, {"pod/app": "400000 100000", "pod": "600000 100000", "": "max 100000"}, 4),
        (8, {"pod/other": "100000 100000"}, 8),
        (8, {"": "what is this"}, 8),
    ],
)
def test_threads_follow_affinity_and_cgroups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    limits: dict[str, str],
    cpus: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/pod/app\n")
    for folder, cpu_max in limits.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "cpu.max").write_text(f"{cpu_max}\n")
    assert available_cpus(root, own) == cpus


def test_threads_without_cgroups_follow_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert available_cpus(tmp_path / "none", tmp_path / "nothing") == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_cpus(tmp_path / "none", tmp_path / "nothing") == 3


def test_threads_are_the_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().ort_threads == available_cpus()
    monkeypatch.setenv("UNMASK_ORT_THREADS", "3")
    assert load_settings().ort_threads == 3
