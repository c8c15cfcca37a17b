"""Two nights and a spoiled one beside a running service under load, with a real Valkey.

The day's events go through POST /events and `events export` into the log that training reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from nights import QUICK, SPOILED, write_log
from running_service import service_process, wait_until
from running_valkey import Server, running
from steady_load import steady_load

from training.__main__ import main

NEW = "sold-since-today"
USERS = 12


def test_two_nights_and_a_spoiled_one_fail_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world, store, out = tmp_path / "world", tmp_path / "store", tmp_path / "nights"
    write_log(world)

    def night(date: str, *overrides: str) -> tuple[int, dict[str, object]]:
        command = ["training", "nightly", "--data", str(world), "--out", str(out)]
        command += ["--store", str(store), "--preset", "tiny", "--night", date, "--margin", "0.4"]
        command += [word for one in (*QUICK, *overrides) for word in ("--set", one)]
        monkeypatch.setattr("sys.argv", command)
        status = main()
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    status, first = night("2026-11-28")
    assert (status, first["verdict"], first["in_service"]) == (0, "promoted", None)
    valkey = Server(tmp_path / "valkey", {"save": '""'})
    with (
        running(valkey),
        service_process(
            tmp_path / "service",
            bundles_dir=store,
            bundle="shop",
            redis_url=valkey.url,
            follow_bundle="true",
        ) as service,
    ):
        bundles: set[str] = set()

        def asking(user: int) -> Callable[[httpx.Client, int], None]:
            def ask(client: httpx.Client, number: int) -> None:
                body = {"user_id": f"user-{user}", "history": [f"item-{1 + number % 50:02}"]}
                answer = client.post("/recommend", json=body)
                assert answer.status_code == 200, answer.text
                told = answer.json()
                assert not told["degraded"], told["degraded_reasons"]
                bundles.add(told["bundle"])

            return ask

        def serves(bundle: object) -> bool:
            return "active" in service.roles().get(str(bundle), [])

        with steady_load(service.client.base_url, [asking(0), asking(1)], pause_s=0.1) as load:
            assert serves(first["candidate"])
            assert service.client.get(f"/items/{NEW}").status_code == 404
            for user in range(USERS):
                service.send("item-01", NEW, user_id=f"today-{user}")
            exported = world / "interactions" / "until-now.jsonl"
            subprocess.run(
                [sys.executable, "-m", "service", "events", "export", "--out", str(exported)],
                env={**os.environ, "UNMASK_REDIS_URL": valkey.url},
                check=True,
                capture_output=True,
            )
            assert len(exported.read_text().splitlines()) == 2 * USERS

            status, second = night("2026-11-29")
            assert (status, second["verdict"]) == (0, "promoted"), second["why"]
            assert second["in_service"] == first["candidate"]
            before = load.total
            wait_until(lambda: serves(second["candidate"]))
            wait_until(lambda: load.has_failed or load.total > before + 10)
            assert service.client.get(f"/items/{NEW}").status_code == 200

            status, spoiled = night("2026-11-30", *SPOILED)
            assert (status, spoiled["verdict"]) == (3, "refused"), spoiled["why"]
            names = {path.name for path in (store / "shop").iterdir() if path.is_dir()}
            assert names == {str(one["candidate"]).split("@")[1] for one in (first, second)}
            before = load.total
            wait_until(lambda: load.has_failed or load.total > before + 10)
            assert serves(second["candidate"])
        assert not load.has_failed
        assert bundles == {first["candidate"], second["candidate"]}
        failed = [
            (name, value)
            for name, value in service.samples().items()
            if name.startswith("unmask_http_requests_total") and "/health" not in name
            if value and ('status="5' in name or 'status="429"' in name)
        ]
        assert not failed
    lines = (store / "shop" / "nights.jsonl").read_text().splitlines()
    verdicts = [(one["night"], one["verdict"]) for one in map(json.loads, lines)]
    assert verdicts == [
        ("2026-11-28", "promoting"),
        ("2026-11-28", "promoted"),
        ("2026-11-29", "promoting"),
        ("2026-11-29", "promoted"),
        ("2026-11-30", "refused"),
    ]
