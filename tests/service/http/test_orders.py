"""The order of unmasking over real HTTP: what a request may ask for, and of which bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from running_service import Service, service_process
from tiny_bundle import NEXT_CODE, write_tiny_bundle

from service.bundles.bundle import Bundle
from service.decoding import Job, Order, Schedule

HISTORY = ["item-7", "item-80"]


@pytest.fixture(scope="module")
def next_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of next@1, whose network is said to know only the next code."""
    folder = tmp_path_factory.mktemp("next")
    return write_tiny_bundle(folder / "next" / "1", name="next", autoregressive=True)


@pytest.fixture(scope="module")
def next_served(
    next_code: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service_process(
        tmp_path_factory.mktemp("next-served"),
        bundles_dir=next_code.parents[1],
        bundle="next@1",
        redis_url=redis_url,
    ) as service:
        yield service


@pytest.mark.parametrize("order", get_args(Order))
def test_a_request_chooses_its_order(served: Service, bundle: Bundle, order: Order) -> None:
    rows = bundle.catalogue.rows_of(HISTORY)
    for ranking in ("path",) if order == "raw_confidence" else ("path", "rows"):
        job = Job(rows, 10, Schedule((1, 1, 1, 1)), 10, rows, ranking=ranking, order=order)
        [decoded], _ = bundle.decoder.decode([job])
        asked = {"history": HISTORY, "r_warm": 4, "ranking": ranking, "order": order}
        answer = served.recommend(user_id="x", **asked).json()
        found = [item["item_id"] for item in answer["items"]]
        assert found == [bundle.items[row].item_id for row in decoded.rows]
        assert answer["decoding"]["order"] == order


def test_an_order_that_the_ranking_cannot_follow_is_refused(served: Service) -> None:
    answer = served.recommend(user_id="x", history=HISTORY, order="raw_confidence")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == "order"
    assert 'another order, or for the ranking "path"' in error["message"]


def test_auto_chooses_the_order_too(served: Service) -> None:
    answer = served.recommend(user_id="x", history=HISTORY, schedule="auto", order="entropy")
    assert answer.status_code == 422
    assert "remask, guidance and retrieval must not be given" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("order", {"order": "confidence"}),
        ("m_par", {"m_par": 2, "r_warm": 0}),
        ("m_par", {"m_par": 4, "r_warm": 2}),
        ("ranking", {"ranking": "rows"}),
        ("ranking", {"ranking": "best"}),
        ("finish_rows", {"finish_rows": 100}),
        ("remask", {"remask": 1}),
    ],
)
def test_a_network_of_the_next_code_refuses_what_it_cannot_do(
    next_served: Service, param: str, asked: dict[str, Any]
) -> None:
    answer = next_served.recommend(user_id="x", history=HISTORY, **asked)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param
    assert "autoregressive: it knows only the next code of a SID" in error["message"]


@pytest.mark.parametrize(
    "asked", [{}, {"schedule": "auto"}, {"beam_width": 30}, {"explain": True}, {"explore": 0.2}]
)
def test_a_network_of_the_next_code_fills_positions_from_left_to_right(
    next_served: Service, next_code: Path, asked: dict[str, Any]
) -> None:
    answer = next_served.recommend(user_id="x", history=HISTORY, **asked).json()
    bundle = Bundle.load(next_code)
    rows, width = bundle.catalogue.rows_of(HISTORY), asked.get("beam_width", 10)
    steps = Schedule((1, 1, 1, 1))
    job = Job(rows, 10, steps, width, rows, ranking="path", order="left_to_right")
    [decoded], _ = bundle.decoder.decode([job])
    found = [item["item_id"] for item in answer["items"]]
    assert found == [bundle.items[row].item_id for row in decoded.rows]
    expected = {**dict(NEXT_CODE), "beam_width": width, "schedule": [1, 1, 1, 1], "nfe": 4}
    assert answer["decoding"] == {**expected, "adjusted": False}
    if asked.get("explain"):
        calls = [item["explanation"]["filled_by_call"] for item in answer["items"]]
        assert calls == [[1, 2, 3, 4]] * 10
