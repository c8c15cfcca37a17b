"""Load tests of a service that requires a key: they send theirs, and say if they have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from running_service import Service, service_process

from loadtest import replay
from loadtest.clients.api_key import authorization
from service.bundles.store import configured_path

ROOT = Path(__file__).resolve().parents[3]
HELD_OUT = str(configured_path(ROOT / "models_store", "demo") / "held_out.jsonl")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("keys")
    keys = "the-first-key,the-second-key"
    with service_process(folder, api_keys=keys, history_dir=folder / "history") as service:
        yield service


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        (None, {}),
        ("", {}),
        (" first-key , second-key", {"Authorization": "Bearer first-key"}),
    ],
)
def test_it_is_the_first_of_the_services(
    keys: str | None, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNMASK_API_KEYS", raising=False)
    if keys is not None:
        monkeypatch.setenv("UNMASK_API_KEYS", keys)
    assert authorization() == sent


def test_replay_sends_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", str(service.client.base_url), "--held-out", HELD_OUT, "--users", "3"]
    arguments += ["--seed-events"]
    monkeypatch.setenv("UNMASK_API_KEYS", "the-second-key")
    assert replay.main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["errors"] == 0

    monkeypatch.delenv("UNMASK_API_KEYS")
    assert replay.main(arguments) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["outcomes"] == {"401 unauthenticated": 3}
    assert "set UNMASK_API_KEYS" in printed.err


def test_locust_sends_it(service: Service) -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    command += ["--host", str(service.client.base_url), "--held-out", HELD_OUT, "--only-summary"]
    command += ["--rate", "5", "--users", "1", "--run-time", "1s", "--stop-timeout", "5"]
    environment = {**os.environ, "UNMASK_API_KEYS": "the-first-key,the-second-key"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures["statuses"]) == {"200"}


def test_docker_compose_hands_it_on() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert "UNMASK_API_KEYS" in compose["services"]["loadtest"]["environment"]
