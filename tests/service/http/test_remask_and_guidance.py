"""Remasking and guidance over real HTTP: what is answered, counted and refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running_service import Service, service_process
from tiny_bundle import write_tiny_bundle

from service.bundles.bundle import Bundle
from service.decoding import Job, Schedule

HISTORY = ["item-7", "item-80"]


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of dropped@1, whose network is said to have learnt with history dropout."""
    folder = tmp_path_factory.mktemp("dropped")
    return write_tiny_bundle(folder / "dropped" / "1", name="dropped", history_dropout=0.2)


@pytest.fixture(scope="module")
def guided(
    dropped: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service_process(
        tmp_path_factory.mktemp("guided"),
        bundles_dir=dropped.parents[1],
        bundle="dropped@1",
        redis_url=redis_url,
    ) as service:
        yield service


@pytest.mark.parametrize("ranking", ["rows", "path"])
@pytest.mark.parametrize(
    "setting", [{"remask": 2}, {"guidance": 1.5}, {"remask": 1, "guidance": 2}]
)
def test_a_request_gets_what_the_decoder_gives(
    guided: Service, dropped: Path, ranking: Any, setting: dict[str, Any]
) -> None:
    bundle = Bundle.load(dropped)
    rows = bundle.catalogue.rows_of(HISTORY)
    plain = Job(rows, 10, Schedule((1, 1, 2)), 10, rows, ranking=ranking)
    [decoded], _ = bundle.decoder.decode([replace(plain, **setting)])
    asked = {"history": HISTORY, "ranking": ranking, **setting}
    answer = guided.recommend(user_id="x", explain=True, **asked).json()
    found = [item["item_id"] for item in answer["items"]]
    assert found == [bundle.items[row].item_id for row in decoded.rows]
    assert len(set(found)) == 10
    used = answer["decoding"]
    assert used["nfe"] == decoded.nfe
    assert {name: used[name] for name in setting} == setting
    times = 2 if "guidance" in setting else 1
    assert decoded.nfe <= times * (3 + ("remask" in setting))
    for item in answer["items"]:
        assert len(item["explanation"]["survivors"]) == decoded.nfe / times


def test_guided_and_unguided_requests_share_batches_and_are_counted(guided: Service) -> None:
    """Counters never go down, so a batch of unequal jobs must be counted by its own calls."""
    requests = [
        {
            "user_id": f"u{n}",
            "history": HISTORY[: 1 + n % 2],
            "guidance": float(n % 3),
            "remask": n % 2,
        }
        for n in range(12)
    ]
    body = {"requests": requests}
    results = guided.client.post("/recommend/batch", json=body).json()["results"]
    assert [result["response"]["served_by"] for result in results] == ["model"] * 12
    together = [result["response"]["items"] for result in results]
    alone = [guided.recommend(**request).json()["items"] for request in requests]
    assert together == alone
    assert guided.client.get("/info").json()["bundle"]["history_dropout"] == 0.2


def test_what_a_bundle_cannot_follow_is_refused(served: Service) -> None:
    for setting, said in (
        ({"guidance": 1}, "train it with fit.history_dropout"),
        ({"remask": 4}, "remask must be below 4"),
    ):
        answer = served.recommend(user_id="x", history=HISTORY, **setting)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["param"] == next(iter(setting))
        assert said in error["message"]
    answer = served.recommend(user_id="x", history=HISTORY, schedule="auto", remask=1)
    assert "remask, guidance and retrieval must not be given" in answer.json()["error"]["message"]


def test_a_manifest_says_nothing_of_what_is_not_set(dropped: Path, tmp_path: Path) -> None:
    """So bundles are byte for byte what they were before there was guidance."""
    plain = write_tiny_bundle(tmp_path / "tiny" / "1")
    for word in ("history_dropout", "guidance", "remask"):
        assert word not in (plain / "manifest.json").read_text()
    assert Bundle.load(plain).manifest.history_dropout == 0
    assert Bundle.load(dropped).manifest.history_dropout == 0.2
