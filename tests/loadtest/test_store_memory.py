"""The memory of a user in the store: a real store, the real service, a few users."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running_valkey import Server, running

from loadtest.store_memory import main
from service.bundles.store import configured_path


def test_more_events_cost_more_and_the_store_is_left_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = configured_path(Path("models_store"), "demo")
    store = Server(tmp_path / "store", {"save": '""'})
    with running(store):
        command = ["--bundle", str(bundle), "--redis-url", store.url]
        assert main([*command, "--users", "200", "--histories", "4", "64"]) == 0
        assert store.ask("DBSIZE") == 0
        few, many = json.loads(capsys.readouterr().out.splitlines()[-1])
        for found in (few, many):
            of_all_users = {"trending", "trending-batch"}  # written once a second
            assert set(found["by_kind"]) - of_all_users == {"history", "log", "marks", "recs"}
            assert found["after_answer"] > found["after_events"] > found["by_kind"]["marks"]
        assert many["by_kind"]["history"] > few["by_kind"]["history"] > 0
        assert many["by_kind"]["marks"] > few["by_kind"]["marks"] + 60 * 36  # names of events
        assert many["by_kind"]["recs"] == pytest.approx(few["by_kind"]["recs"], rel=0.1)

        store.ask("SET", "something", "else")
        assert main(command) == 1
        assert "empty store" in capsys.readouterr().err
        assert store.ask("DBSIZE") == 1
