"""Seeding: held-out users get their histories once, from a service that may start late."""

from __future__ import annotations

from pathlib import Path

import pytest
from ports import find_free_port
from running_service import service_process

from service import seed
from service.bundles.bundle import Bundle

KEY = "a-key-of-clients"


def test_histories_are_stored_once(
    bundles_dir: Path,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    users = bundle.held_out  # whom other tests expect without a history: so a store of its own
    settings = {"bundles_dir": bundles_dir, "bundle": "tiny@1", "api_keys": KEY}
    for name, value in settings.items():
        monkeypatch.setenv(f"UNMASK_{name.upper()}", str(value))
    with service_process(tmp_path, **settings) as service:
        service.client.headers["Authorization"] = f"Bearer {KEY}"
        service.send(bundle.items[0].item_id, user_id=users[0].user_id)
        url = ["--url", str(service.client.base_url)]
        assert seed.main([*url, "--demo-only"]) == 0
        assert "not the demo bundle" in capsys.readouterr().out
        assert seed.history_of(service.client, users[1].user_id) == []
        assert seed.main(url) == 0
        assert f"{len(users) - 1} users; 1 had one already" in capsys.readouterr().out
        assert seed.history_of(service.client, users[0].user_id) == [bundle.items[0].item_id]
        assert seed.history_of(service.client, users[1].user_id) == list(users[1].history)
        assert seed.main(url) == 0
        assert f"0 users; {len(users)} had one already" in capsys.readouterr().out


def test_a_service_that_never_starts_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seed, "RETRY_FOR_S", 1.5)
    assert seed.main(["--url", f"http://127.0.0.1:{find_free_port()}"]) == 1
    waiting, failed = capsys.readouterr().err.splitlines()  # the first is at once, and once only
    assert "not yet" in waiting
    assert "could not be stored" in failed
