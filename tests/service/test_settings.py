"""Settings: flag beats variable beats default, and a typing error never means a default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import SettingsInvalid
from service.lifecycle import check_stores
from service.settings import Settings, available_cpus, load_settings, sentence_of


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"UNMASK_{name.upper()}", raising=False)


def checked(arguments: Sequence[str] = ()) -> Settings:
    """The settings, as `python -m service` reads them."""
    settings = load_settings(arguments)
    check_stores(settings)
    return settings


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
        ("UNMASK_LOG_SALT", "", "UNMASK_LOG_SALT (--log-salt) is wrong: it is empty"),
        ("UNMASK_ADMIN_KEYS", "short", "each key must have at least 8 characters"),
        ("UNMASK_ADMIN_KEYS", "x" * 513, "512 at most"),
        ("UNMASK_API_KEYS", "a-key-with-ü-in-it", "a header carries nothing else"),
        ("UNMASK_API_KEYS", "a key with spaces", "a header carries nothing else"),
        ("UNMASK_API_KEYS", "a-key\twith-a-tab", "a header carries nothing else"),
        ("UNMASK_API_KEYS", "a-good-key,,another", "one of its commas has nothing before or"),
        ("UNMASK_HISTORY_EVENT_TYPES", "click,", "one of its commas has nothing before or"),
        ("UNMASK_HISTORY_EVENT_TYPES", "x" * 65, "an event type has at most 64 characters"),
        ("UNMASK_HISTORY_EVENT_TYPES", "click,undo_click", "must not begin with undo_: that takes"),
        ("UNMASK_COUNTED_EVENT_TYPES", "undo_not_interested", "must not begin with undo_"),
        ("UNMASK_NEGATIVE_EVENT_TYPES", "undo_x", "must not begin with undo_"),
        ("UNMASK_EMBEDDER_URL", "ftp://h", "it must start with http:// or https://"),
        ("UNMASK_EMBEDDER_URL", "http://", "it must be http(s)://host:port"),
        ("UNMASK_EMBEDDER_URL", "http://h:port", "it must be http(s)://host:port"),
        ("UNMASK_EMBEDDER_URL", "http://h/?a=b", "it must be http(s)://host:port"),
        ("UNMASK_HOST", "", "UNMASK_HOST (--host) is wrong: it is empty; to have the default, do"),
        ("UNMASK_HOST", "a..b", "it must be an address or the name of a host"),
        ("UNMASK_BUNDLE", "  ", "it is empty"),
        ("UNMASK_REDIS_URL", "", "it is empty"),
        ("UNMASK_EXPERIMENT_FILE", "", "it is empty"),
        ("UNMASK_PORT", "", "it is empty"),
        ("UNMASK_BUNDLE", "b\udcffd", "it must be text in UTF-8"),
        ("UNMASK_HISTORY_CAP", str(2**64), "should be less than or equal to 100000"),
        ("UNMASK_HISTORY_TTL_S", str(2**63), "should be less than or equal to"),
        ("UNMASK_DRAIN_DELAY_S", "inf", "should be less than or equal to 3600"),
        ("UNMASK_DRAIN_DELAY_S", "nan", "UNMASK_DRAIN_DELAY_S (--drain-delay-s) is wrong"),
        ("UNMASK_SHUTDOWN_TIMEOUT_S", "1e30", "UNMASK_SHUTDOWN_TIMEOUT_S (--shutdown-timeout-s)"),
        ("UNMASK_RATE_LIMIT", "inf", "should be less than or equal to"),
        ("UNMASK_RATE_LIMIT", "1e-320", "should be greater than or equal to 0.001"),
        ("UNMASK_REDIS_TIMEOUT_MS", "1" + "0" * 400, "should be less than or equal to 60000"),
        ("UNMASK_REDIS_REPLICA_READS", "true", "must be redis+cluster:// or redis+sentinel://"),
    ],
)
def test_a_wrong_setting_is_a_sentence(
    variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid) as caught:
        checked()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


NUMBERS = ["0", "-1", "nan", "inf", "-inf", "1e400", "1e-400", str(2**63), "9" * 5000, "0x10"]
NUMBERS += ["\u0663", "1_0", "1,5", "--1", "True", "null", "None"]
TEXTS = ["", " ", "\t", ",", ",,", "a,", "x" * 5000, "\udcff", "ü", "[]", "{}", '["a"', "%s", "{x}"]
TEXTS += ["\x01", "a\nb", "\u2028", "://", "redis://\u2100", "http://[", "..", "-", "--help", "@"]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_absurd_value_is_refused_in_a_sentence_or_can_be_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every setting, as a variable and as a flag. A missing bound shows here."""
    flag = f"--{name.replace('_', '-')}"
    refused = []
    for value in NUMBERS + TEXTS:
        try:
            settings = Settings(**{name: value})
            check_stores(settings)
        except (ValidationError, SettingsInvalid) as error:
            refused.append(value)
            sentence = str(error) if isinstance(error, SettingsInvalid) else sentence_of(error)
            assert sentence.startswith(f"UNMASK_{name.upper()} ({flag}) is wrong: ")
            assert sentence.isprintable()
            assert len(sentence) < 400
            continue
        found = getattr(settings, name)
        if isinstance(found, int | float):
            assert 0 <= found <= 36_500 * 24 * 60 * 60
        assert str(found).encode()
        assert found not in ("", Path(""))
    monkeypatch.setenv(f"UNMASK_{name.upper()}", refused[-1])
    for arguments in ([], [f"{flag}={refused[0]}"]):
        with pytest.raises(SettingsInvalid, match=f"UNMASK_{name.upper()} .* is wrong"):
            checked(arguments)


def test_an_empty_list_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COUNTED_EVENT_TYPES", "HISTORY_EVENT_TYPES", "API_KEYS", "ADMIN_KEYS"):
        for nothing in ("", " "):
            monkeypatch.setenv(f"UNMASK_{name}", nothing)
            assert getattr(load_settings(), name.lower()) == ()
        monkeypatch.setenv(f"UNMASK_{name}", "something, another1")
        assert len(getattr(load_settings(), name.lower())) == 2
        flag = f"--{name.lower().replace('_', '-')}"
        assert getattr(load_settings([f"{flag}="]), name.lower()) == ()


def test_a_replica_belongs_to_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_REDIS_REPLICA_URL", "redis://replica")
    assert checked(["--redis-url", "redis://primary"]).redis_replica_url
    for url in ("redis+cluster://a,b", "redis+sentinel://a/shop"):
        with pytest.raises(SettingsInvalid, match="must each name one server"):
            checked(["--redis-url", url])


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
