"""Replay: it measures over HTTP what the kernel gives, and it fails when it should."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running_service import service_process
from tiny_bundle import edit_manifest, write_tiny_bundle

from loadtest import replay, stress, sweep
from loadtest.clients.held_out import HeldOutUser, read_held_out
from loadtest.replay import Answer, compare, percentile, read_ranks, summarise
from service.bundles.bundle import Bundle
from service.bundles.store import configured_path
from service.decoding import Job, Schedule

USERS = 20
K = 10


def write_ranks(path: Path, ranks: dict[str, int | None]) -> Path:
    lines = (
        json.dumps({"user_id": user_id, "rank": rank, "exclude_seen": True})
        for user_id, rank in ranks.items()
    )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The bundle that the demo serves."""
    return Bundle.load(configured_path(Path("models_store"), "demo"))


@pytest.fixture(scope="module")
def held_out(bundle: Bundle) -> Path:
    return configured_path(Path("models_store"), "demo") / "held_out.jsonl"


@pytest.fixture(scope="module")
def kernel_ranks(bundle: Bundle) -> dict[str, int | None]:
    """Rank of each user's target by calling decode() on the bundle: no service, no HTTP."""
    catalogue, defaults = bundle.catalogue, bundle.manifest.decoding
    schedule = Schedule.from_params(
        num_subspaces=catalogue.num_subspaces, r_warm=defaults.r_warm, m_par=defaults.m_par
    )
    ranks: dict[str, int | None] = {}
    for user in bundle.held_out[:USERS]:
        job = Job(
            catalogue.rows_of(user.history),
            K,
            schedule,
            max(defaults.beam_width, K),
            excluded=catalogue.rows_of(user.history),
            finish_rows=defaults.finish_rows,
            ranking=defaults.ranking,
            order=defaults.order,
            retrieval=defaults.retrieval,
        )
        [decoded], _ = bundle.decoder.decode([job])
        item_ids = [catalogue.item_ids[row] for row in decoded.rows]
        ranks[user.user_id] = HeldOutUser(user.user_id, user.history, user.target).rank_in(item_ids)
    return ranks


@pytest.mark.parametrize("options", [[], ["--seed-events", "--concurrency", "3"]])
def test_ranks_over_http_are_those_of_the_kernel(
    demo, held_out, kernel_ranks, tmp_path, capsys, options
) -> None:
    ranks = write_ranks(tmp_path / "ranks.jsonl", kernel_ranks)
    arguments = ["--url", demo.url, "--held-out", str(held_out), "--users", str(USERS)]
    assert replay.main([*arguments, "--compare", str(ranks), *options]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["ranks_identical"] == USERS
    assert figures["served_by"] == {"model": USERS}
    hits = [rank for rank in kernel_ranks.values() if rank is not None]
    assert hits
    assert figures["recall@10"] == len(hits) / USERS


def test_one_different_rank_fails_the_replay(
    demo, held_out, kernel_ranks, tmp_path, capsys
) -> None:
    user_id, rank = next(iter(kernel_ranks.items()))
    wrong = {**kernel_ranks, user_id: 1 if rank is None else None}
    ranks = write_ranks(tmp_path / "ranks.jsonl", wrong)
    arguments = ["--url", demo.url, "--held-out", str(held_out), "--users", "5"]
    assert replay.main([*arguments, "--compare", str(ranks)]) == 1
    printed = capsys.readouterr()
    assert f"user {user_id}:" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["ranks_different"] == 1


def test_only_ranks_of_the_same_setting_are_compared(
    demo, held_out, kernel_ranks, tmp_path, capsys
) -> None:
    ranks = write_ranks(tmp_path / "ranks.jsonl", kernel_ranks)
    arguments = ["--url", demo.url, "--held-out", str(held_out), "--users", "3"]
    assert replay.main([*arguments, "--compare", str(ranks), "--no-exclude-seen"]) == 1
    assert "were measured with --exclude-seen" in capsys.readouterr().err

    old = tmp_path / "old.jsonl"  # of before 034: nothing was left out, and no line said so
    old.write_text(
        "".join(json.dumps({"user_id": u, "rank": r}) + "\n" for u, r in kernel_ranks.items())
    )
    replay.main([*arguments, "--compare", str(old)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exclude_seen"] is False
    assert replay.main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exclude_seen"] is True


def test_a_recall_of_users_that_the_bundle_knows_has_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    edit_manifest(bundle, lambda m: m["facts"].update({"refitted": {"interactions": 9}}))
    folder = tmp_path / "service"
    with service_process(folder, bundle=bundle, history_dir=folder / "history") as service:
        url = str(service.client.base_url).rstrip("/")
        held_out = ["--held-out", str(bundle / "held_out.jsonl")]
        assert replay.main(["--url", url, *held_out]) == 0
        printed = capsys.readouterr()
        locust = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
        locust += ["--users", "1", "--run-time", "1s", "--host", url, *held_out]
        of_locust = subprocess.run(locust, capture_output=True, text=True, timeout=60)
    figures = json.loads(printed.out.splitlines()[-1])
    assert "recall@10" not in figures
    assert 0 <= figures["recall@10_of_known_targets"] <= 1
    assert "serve the trial bundle of its run" in printed.err
    figures = json.loads(of_locust.stdout.splitlines()[-1])
    assert {name for name in figures if "@" in name} == {"recall@10_of_known_targets"}
    assert "serve the trial bundle of its run" in of_locust.stderr

    assert sweep.main(["--bundle", str(bundle), "--out", str(tmp_path / "out")]) == 1
    assert "serve the trial bundle of its run" in capsys.readouterr().err


def test_refused_requests_are_errors_and_misses(demo, held_out, capsys) -> None:
    arguments = ["--url", demo.url, "--held-out", str(held_out), "--users", "3", "--k", "1000"]
    assert replay.main(arguments) == 1
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["outcomes"] == {"422 invalid_request": 3}
    assert figures["recall@1000"] == 0


def test_no_service_is_said(free_port: int, held_out, capsys) -> None:
    url = f"http://127.0.0.1:{free_port}"
    assert replay.main(["--url", url, "--held-out", str(held_out), "--users", "2"]) == 1
    assert "is the service running there?" in capsys.readouterr().err


def test_no_users_is_said(tmp_path: Path, capsys) -> None:
    (tmp_path / "held_out.jsonl").write_text("")
    assert replay.main(["--held-out", str(tmp_path / "held_out.jsonl")]) == 1
    assert "held_out_users" in capsys.readouterr().err


def test_figures_by_hand() -> None:
    answers = [
        Answer("a", "ok", 0.010, rank=1, num_items=2, served_by="model"),
        Answer("b", "ok", 0.030, rank=2, num_items=2, served_by="model"),
        Answer("c", "ok", 0.020, rank=None, num_items=1, served_by="popular"),
        Answer("d", "429 overloaded", 0.001),
    ]
    figures = summarise(answers, 2, wall_s=2)
    assert figures["recall@2"] == 2 / 4
    assert figures["ndcg@2"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert figures["errors"] == figures["short_lists"] == 1
    assert figures["outcomes"] == {"ok": 3, "429 overloaded": 1}
    assert figures["served_by"] == {"model": 2, "popular": 1}
    assert (figures["p50_ms"], figures["p99_ms"]) == (20, 30)
    assert figures["requests_per_s"] == 1.5  # refusals are no answers


def test_percentiles_are_values_that_occurred() -> None:
    values = list(range(1, 101))
    assert [percentile(values, p) for p in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([7.0], 99) == 7.0


def test_comparison_cuts_at_k_and_names_who_differs(tmp_path: Path) -> None:
    answers = [
        Answer("same", "ok", 0, rank=3),
        Answer("beyond k", "ok", 0, rank=None),
        Answer("other rank", "ok", 0, rank=2),
        Answer("failed", "500", 0),
        Answer("not evaluated", "ok", 0, rank=1),
    ]
    offline = {"same": 3, "beyond k": 11, "other rank": 1, "failed": None}
    found = compare(answers, read_ranks(write_ranks(tmp_path / "ranks", offline)).ranks, K)
    assert found.identical == 2
    assert found.different == ("other rank", "failed")
    assert found.unknown == ("not evaluated",)
    assert not found.all_identical


def test_events_of_a_user_are_posted_in_order_and_within_bounds() -> None:
    history = tuple(f"i{place}" for place in range(250))
    bodies = HeldOutUser("u", history, "t").event_bodies()
    assert [len(body["events"]) for body in bodies] == [100, 100, 50]
    events = [event for body in bodies for event in body["events"]]
    assert tuple(event["item_id"] for event in events) == history
    assert len({event["event_id"] for event in events}) == len(history)


def test_a_request_takes_the_newest_500_items() -> None:
    history = tuple(f"i{place}" for place in range(600))
    assert HeldOutUser("u", history, "t").request_history == history[100:]
    assert HeldOutUser("u", history[:3], "t").request_history == history[:3]


def test_reading_stops_after_the_users_wanted(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    line = json.dumps({"user_id": "u", "history": ["a", "b"], "target": "c"})
    path.write_text(f"{line}\n{line}\nnot json\n")
    assert read_held_out(path, 2) == [HeldOutUser("u", ("a", "b"), "c")] * 2


@pytest.mark.parametrize("main", [stress.main, sweep.main])
def test_a_folder_that_is_no_bundle_is_said(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(tmp_path)]
    if main is sweep.main:
        arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/held_out.jsonl" in said
    assert "name the folder of a bundle" in said
    assert not list(tmp_path.iterdir())
