"""Several items at once over real HTTP: what a request may ask for, and what it gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_service import Service, service_process, wait_until
from tiny_bundle import NUM_ITEMS, edit_manifest, tiny_categories, write_tiny_bundle

from service.bundles.bundle import Bundle
from service.decoding import Job, Schedule
from service.errors import BundleInvalid

HISTORY = ["item-7", "item-80"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of several@1, whose network can be asked for up to three items."""
    folder = tmp_path_factory.mktemp("several")
    return write_tiny_bundle(folder / "several" / "1", name="several", max_horizon=3)


@pytest.fixture(scope="module")
def several_served(
    several: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service_process(
        tmp_path_factory.mktemp("several-served"),
        bundles_dir=several.parents[1],
        bundle="several@1",
        redis_url=redis_url,
    ) as service:
        yield service


def _job(bundle: Bundle, schedule: Schedule, horizon: int, **settings: Any) -> Job:
    rows = bundle.catalogue.rows_of(HISTORY)
    settings = {"k": 10, "beam_width": 10, "excluded": rows, "ranking": "path", **settings}
    return Job(history=rows, schedule=schedule, horizon=horizon, **settings)


def _item_ids(answer: dict[str, Any]) -> list[list[str]]:
    return [[item["item_id"] for item in one["items"]] for one in answer["sequences"]]


@pytest.mark.parametrize(
    ("asked", "steps", "settings"),
    [
        ({"horizon": 2}, (2, 2, 2, 2), {}),
        ({"horizon": 3}, (3, 3, 3, 3), {}),
        ({"horizon": 2, "r_warm": 6, "m_par": 1}, (1,) * 8, {}),
        ({"horizon": 2, "m_par": 8}, (8,), {}),
        ({"horizon": 2, "order": "left_to_right"}, (2, 2, 2, 2), {"order": "left_to_right"}),
        ({"horizon": 2, "k": 3, "beam_width": 40}, (2,) * 4, {"k": 3, "beam_width": 40}),
    ],
)
def test_sequences_are_those_of_the_decoder(
    several_served: Service,
    several: Path,
    asked: dict[str, Any],
    steps: tuple[int, ...],
    settings: dict[str, Any],
) -> None:
    bundle = Bundle.load(several)
    answer = several_served.recommend(user_id="x", history=HISTORY, **asked).json()
    [decoded], _ = bundle.decoder.decode(
        [_job(bundle, Schedule(steps), asked["horizon"], **settings)]
    )
    ids = bundle.catalogue.item_ids
    assert _item_ids(answer) == [[ids[row] for row in rows] for rows in decoded.rows]
    assert [one["rank"] for one in answer["sequences"]] == [*range(1, len(decoded.rows) + 1)]
    scores = [one["score"] for one in answer["sequences"]]
    assert scores == pytest.approx(decoded.scores.tolist(), abs=1e-3)
    assert len(scores) == asked.get("k", 10)
    assert answer["items"] == []
    decoding = answer["decoding"]
    assert (decoding["schedule"], decoding["nfe"]) == (list(steps), len(steps))
    assert (decoding["ranking"], decoding["finish_rows"]) == ("path", 0)
    for one in answer["sequences"]:
        names = {item["item_id"] for item in one["items"]}
        assert len(names) == asked["horizon"]
        assert not names & set(HISTORY)
        for item in one["items"]:
            [row] = bundle.catalogue.rows_of([item["item_id"]])
            assert item["sid"] == bundle.catalogue.codes[row].tolist()
            assert item["title"] == bundle.items[row].title


def test_a_horizon_of_one_is_as_if_it_was_not_said(
    several_served: Service, served: Service
) -> None:
    [silent, said, other] = [
        service.recommend(user_id="x", history=HISTORY, **asked).json()
        for service, asked in (
            (several_served, {}),
            (several_served, {"horizon": 1}),
            (served, {"horizon": 1.0}),  # the same network and items
        )
    ]
    for answer in (silent, said, other):
        assert "sequences" not in answer
        for name in ("recommendation_id", "timings_ms", "bundle"):
            del answer[name]
    assert silent == said == other


def test_filters_exclusions_and_seen_items_hold_for_every_slot(several_served: Service) -> None:
    shelf = ["Shelves > 1", "Shelves > 2"]
    on_shelf = [f"item-{row}" for row in range(NUM_ITEMS) if set(tiny_categories(row)) & set(shelf)]
    asked = {
        "history": [*HISTORY, on_shelf[0]],
        "filter": {"category": shelf},
        "exclude_items": on_shelf[1:3],
        "metadata": True,
        "horizon": 3,
        "k": 20,
    }
    answer = several_served.recommend(user_id="x", **asked).json()
    assert len(answer["sequences"]) == 20
    assert {name for names in _item_ids(answer) for name in names} <= set(on_shelf[3:])
    assert all(item["categories"] for one in answer["sequences"] for item in one["items"])
    few = {**asked, "exclude_items": on_shelf[3:]}  # two items are left, so no three
    answer = several_served.recommend(user_id="x", **few).json()
    assert (answer["sequences"], answer["items"]) == ([], [])


def test_a_batch_mixes_horizons_and_refuses_one_entry_alone(several_served: Service) -> None:
    asked = [
        {"user_id": f"u{n}", "history": HISTORY, "horizon": horizon}
        for n, horizon in enumerate([1, 2, 3, 2, 1, 4])
    ]
    body = {"requests": [*asked, {**asked[0], "horizon": 2, "explain": True}]}
    results = several_served.client.post("/recommend/batch", json=body).json()["results"]
    assert [result["status"] for result in results] == [200] * 5 + [422] * 2
    for one, result in zip(asked[:5], results[:5], strict=True):
        alone = several_served.recommend(**one).json()
        for name in ("items", "decoding"):
            assert result["response"][name] == alone[name]
        assert result["response"].get("sequences") == alone.get("sequences")


def test_without_a_history_popular_items_stand_side_by_side(several_served: Service) -> None:
    answer = several_served.recommend(user_id="nobody", horizon=2, k=3).json()
    assert (answer["served_by"], answer["decoding"]) == ("popular", None)
    assert _item_ids(answer) == [[f"item-{row}", f"item-{row + 1}"] for row in (0, 2, 4)]
    assert all(one["score"] is None for one in answer["sequences"])


def test_the_items_of_sequences_are_attributed_and_left_out_of_a_next_page(
    several_served: Service,
) -> None:
    answer = several_served.recommend(user_id="of-sequences", history=HISTORY, horizon=2).json()
    shown = {name for names in _item_ids(answer) for name in names}
    page = several_served.recommend(
        user_id="of-sequences", history=HISTORY, after=answer["recommendation_id"], k=50
    ).json()
    assert len(page["items"]) == 50
    assert not shown & {item["item_id"] for item in page["items"]}
    event = {
        "user_id": "of-sequences",
        "item_id": min(shown),
        "event_id": "1",
        "event_type": "click",
    }
    event["recommendation_id"] = answer["recommendation_id"]

    def is_attributed() -> bool:
        """An answer is remembered in the background."""
        body = several_served.client.post("/events", json={"events": [event]}).json()
        event["event_id"] += "1"
        return bool(body["attributed"] == 1)

    wait_until(is_attributed)


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"horizon": 0}, "horizon", "greater than or equal to 1"),
        ({"horizon": 6}, "horizon", "less than or equal to 5"),
        ({"horizon": 4}, "horizon", "at most 3 items at a time, so horizon must be at most 3"),
        ({"horizon": 2, "ranking": "rows"}, "ranking", "sum over all sequences"),
        ({"horizon": 2, "ranking": "best"}, "ranking", 'ranking must be "path"'),
        ({"horizon": 2, "finish_rows": 10}, "finish_rows", "finish_rows must be 0"),
        ({"horizon": 2, "m_par": 9}, "m_par", "at most 8, horizon times"),
        ({"horizon": 2, "explain": True}, None, "leave `explain` out"),
        ({"horizon": 2, "explore": 0.1}, None, "leave `explore` out"),
        ({"horizon": 2, "after": "some-id"}, None, "leave `after` out"),
        ({"horizon": 2, "schedule": "auto"}, None, "one item at a time"),
    ],
)
def test_what_has_no_meaning_is_refused_with_a_sentence(
    several_served: Service, asked: dict[str, Any], param: str | None, said: str
) -> None:
    answer = several_served.recommend(user_id="x", history=HISTORY, **asked)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert said in error["message"]
    assert param is None or error["param"] == param


def test_bundles_say_how_many_items_they_predict(served: Service, several_served: Service) -> None:
    for service, most in ((served, 1), (several_served, 3)):
        assert service.client.get("/info").json()["bundle"]["max_horizon"] == most
    refused = served.recommend(user_id="x", history=HISTORY, horizon=2)
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["param"] == "horizon"
    assert "one item at a time, so horizon must be at most 1" in error["message"]


def test_a_manifest_that_promises_more_than_the_graph_is_refused(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "one")
    assert "max_horizon" not in (path / "manifest.json").read_text()
    edit_manifest(path, lambda manifest: manifest.update(max_horizon=2))
    with pytest.raises(BundleInvalid, match=r"decoder\.onnx can be asked for one item at a time"):
        Bundle.load(path)


def test_each_beam_is_a_row_of_a_call_for_each_item(several: Path) -> None:
    bundle = Bundle.load(several)
    job = _job(bundle, Schedule((6, 6)), 3, beam_width=50, k=50)
    assert job.call_rows == 150
    [decoded], _ = bundle.decoder.decode([job])
    assert decoded.rows.shape == (50, 3)
    assert np.all(np.diff(decoded.scores) <= 0)
