"""Dense retrieval over real HTTP: what a request may ask for, of which bundle, and what it gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from running_service import Service, service_process
from tiny_bundle import DENSE, tiny_codebook, write_tiny_bundle

from service.bundles.bundle import Bundle
from service.decoding import Histories, Job, Retrieval, Schedule

HISTORY = ["item-7", "item-80"]
ADMIN = {"Authorization": "Bearer an-admin-key"}


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of head@1, whose network has a dense head."""
    folder = tmp_path_factory.mktemp("head")
    return write_tiny_bundle(folder / "head" / "1", name="head", dense=DENSE)


@pytest.fixture(scope="module")
def head_served(
    with_head: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service_process(
        tmp_path_factory.mktemp("head-served"),
        bundles_dir=with_head.parents[1],
        bundle="head@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
    ) as service:
        yield service


@pytest.mark.parametrize("retrieval", get_args(Retrieval))
def test_a_request_gets_what_the_decoder_gives_alone_and_in_a_batch(
    head_served: Service, with_head: Path, retrieval: Retrieval
) -> None:
    bundle = Bundle.load(with_head)
    rows = bundle.catalogue.rows_of(HISTORY)
    job = Job(rows, 10, Schedule((1, 1, 2)), 10, rows, retrieval=retrieval)
    [decoded], _ = bundle.decoder.decode([job])
    asked = {"user_id": "x", "history": HISTORY, "retrieval": retrieval}
    alone = head_served.recommend(**asked).json()
    others = [{**asked, "retrieval": other} for other in get_args(Retrieval)]
    body = {"requests": [*others, asked]}
    results = head_served.client.post("/recommend/batch", json=body).json()["results"]
    for answer in (alone, results[-1]["response"]):
        found = [item["item_id"] for item in answer["items"]]
        assert found == [bundle.items[row].item_id for row in decoded.rows]
        scores = [item["score"] for item in answer["items"]]
        assert scores == pytest.approx(decoded.scores.tolist(), abs=1e-3)
        used = answer["decoding"]
        assert (used["retrieval"], used["nfe"]) == (retrieval, decoded.nfe)
        assert used["schedule"] == ([] if retrieval == "dense" else [1, 1, 2])
    assert (decoded.nfe == 0) == (retrieval == "dense")


def test_retrievals_differ_and_filters_hold(head_served: Service) -> None:
    asked = {"user_id": "x", "history": HISTORY, "filter": {"category": ["Shelves > 3"]}}
    answers = [
        head_served.recommend(**asked, retrieval=one).json()["items"] for one in get_args(Retrieval)
    ]
    for items in answers:
        assert len(items) == 10
        assert all(int(item["item_id"].removeprefix("item-")) % 10 == 3 for item in items)
    orders = {tuple(item["item_id"] for item in items) for items in answers}
    assert len(orders) > 1


def test_a_bundle_without_a_head_refuses_it(served: Service) -> None:
    for retrieval in ("dense", "fused"):
        answer = served.recommend(user_id="x", history=HISTORY, retrieval=retrieval)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["param"] == "retrieval"
        assert "has no dense head, so retrieval must be generate" in error["message"]


def test_what_no_beam_found_is_not_explained(head_served: Service) -> None:
    asked: dict[str, Any] = {"user_id": "x", "history": HISTORY, "explain": True}
    answer = head_served.recommend(**asked, retrieval="dense")
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "explain"
    assert 'ask for retrieval "generate"' in answer.json()["error"]["message"]
    assert head_served.recommend(**asked).json()["items"][0]["explanation"]


def test_auto_chooses_the_retrieval_too(head_served: Service) -> None:
    answer = head_served.recommend(user_id="x", schedule="auto", retrieval="dense")
    assert answer.status_code == 422
    assert "guidance and retrieval must not be given" in answer.json()["error"]["message"]


def test_info_says_that_there_is_a_head(head_served: Service) -> None:
    info = head_served.client.get("/info").json()["bundle"]
    assert info["dense"] is True
    assert info["decoding"]["retrieval"] == "generate"


def test_an_item_that_is_added_while_serving_is_found_by_its_content(
    head_served: Service, with_head: Path
) -> None:
    """Without training: it lies where the query of this history points."""
    content, history = tiny_codebook().content, ["item-12", "item-15"]
    assert content is not None
    bundle = Bundle.load(with_head)
    rows = bundle.catalogue.rows_of(history)
    head = bundle.decoder.dense
    assert head is not None
    histories = Histories.of([rows], bundle.catalogue, 8)
    query = head.queries(bundle.decoder.denoiser.encode(histories))[0]
    embedding = content.mean + np.linalg.pinv(content.components) @ query
    asked = {"user_id": "y", "history": history, "retrieval": "dense", "k": 100}
    before = head_served.recommend(**asked).json()["items"]
    add = [{"item_id": "fresh", "title": "Fresh", "embedding": embedding.tolist()}]
    answer = head_served.client.post("/admin/items", json={"add": add}, headers=ADMIN)
    assert answer.json()["added"] == 1
    after = head_served.recommend(**asked).json()["items"]
    assert "fresh" not in {item["item_id"] for item in before}
    assert after[0]["item_id"] == "fresh"
    fused = head_served.recommend(**{**asked, "retrieval": "fused"}).json()["items"]
    assert "fresh" in {item["item_id"] for item in fused}
