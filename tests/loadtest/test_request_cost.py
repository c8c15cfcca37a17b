"""What a request costs: a real service, a few requests, and the ratios of turns."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from loadtest.clients import HeldOutUser
from loadtest.request_cost import Cost, ask, encoded, main, report
from service.bundles.store import configured_path


def test_each_case_of_a_real_service_has_its_costs(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = configured_path(Path("models_store"), "demo")
    few = ["--users", "3", "--requests", "12", "--clients", "2", "--turns", "2"]
    assert main(["--only-here", "--bundle", str(bundle), *few]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [case["case"] for case in summary["cases"]] == [
        "history in the request, 2 at a time",
        "history in the store, 2 at a time",
    ]
    for case in summary["cases"]:
        assert len(case["here"]) == 2
        assert all(cost["loop_us"] > 0 and cost["other_us"] > 0 for cost in case["here"])


def test_ratios_are_above_1_where_this_folder_is_cheaper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, here = Cost(900, 100, 50.0), Cost(600, 100, 75.0)
    summary = report("a case", {"before": [before, before], "here": [here, before]})
    assert summary["before / here, event loop"] == [1.5, 1.0]
    assert summary["before / here, processor time"] == [1.429, 1.0]
    assert summary["here / before, answers a second"] == [1.5, 1.0]
    assert "1.25" in capsys.readouterr().out  # the median


def test_a_service_that_refuses_is_not_measured() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        requests = encoded([HeldOutUser("u", ("a",), "b")], 3, stored=False)
        async with server:
            with pytest.raises(RuntimeError, match="429"):
                await ask(f"http://127.0.0.1:{port}", requests, 1)

    asyncio.run(run())
