"""Bundles and items that change while the service runs, over real HTTP with real bundles."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from running_service import Service, service_process, wait_until
from running_valkey import Server, running
from tiny_bundle import (
    EMBEDDING_DIMS,
    NUM_ITEMS,
    edit_manifest,
    tiny_catalogue,
    tiny_codebook,
    write_tiny_bundle,
)

ADMIN = {"Authorization": "Bearer an-admin-key"}
CLIENT = {"Authorization": "Bearer a-client-key"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one@1, one@2 and one@3 give different answers; next@1 fills SIDs from left to right.

    There are broken bundles beside them.
    """
    folder = tmp_path_factory.mktemp("store")
    for number in (1, 2, 3):
        path = folder / "one" / str(number)
        write_tiny_bundle(
            path, name="one", version=str(number), offset=5 * number, created_at=f"2026-0{number}"
        )
    for name in ("shop", "shelf"):  # with changes to their items, kept in the shared store
        for version in ("1", "2"):
            write_tiny_bundle(folder / name / version, name=name, version=version)
    write_tiny_bundle(folder / "one" / "cut", name="one", version="cut", created_at="2025")
    codes = folder / "one" / "cut" / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:-1])
    write_tiny_bundle(folder / "next" / "1", name="next", autoregressive=True)
    write_tiny_bundle(folder / "one" / "liar", name="one", version="honest", created_at="2025")
    return folder


@pytest.fixture(scope="module")
def service(
    store: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """one@1 with keys. Each test leaves it as it was, but for the last one, which drains it."""
    with service_process(
        tmp_path_factory.mktemp("operated"),
        bundles_dir=store,
        bundle="one@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
        api_keys="a-client-key,another-key",
    ) as service:
        service.client.headers.update(CLIENT)
        yield service


def admin(service: Service, path: str, body: Any = None) -> httpx.Response:
    return service.client.post(f"/admin/{path}", json=body, headers=ADMIN)


def answers(service: Service) -> tuple[str, list[str]]:
    """Which bundle answered, and what."""
    body = service.recommend(user_id="u", history=["item-3", "item-40"], k=5).json()
    return body["bundle"], [item["item_id"] for item in body["items"]]


def test_bundles_are_loaded_activated_and_rolled_back(service: Service) -> None:
    first = answers(service)
    assert first[0] == "one@1"
    assert admin(service, "bundles/one@2/activate").json()["error"]["code"] == "bundle_not_loaded"
    assert admin(service, "bundles/rollback").json()["error"]["code"] == "no_previous_bundle"
    assert admin(service, "bundles/one@2/load", {}).status_code == 200
    assert service.roles() == {"one@1": ["active"], "one@2": ["candidate"]}
    assert answers(service) == first
    assert admin(service, "bundles/one@2/activate").status_code == 200
    assert service.roles() == {"one@2": ["active"], "one@1": ["previous"]}
    second = answers(service)
    assert second[0] == "one@2"
    assert second[1] != first[1]
    assert service.client.get("/info").json()["bundle"]["version"] == "2"
    assert admin(service, "bundles/rollback").status_code == 200
    assert answers(service) == first
    assert service.roles() == {"one@1": ["active"], "one@2": ["previous"]}
    assert admin(service, "bundles/one@1/unload").json()["error"]["code"] == "bundle_in_use"
    assert admin(service, "bundles/one@2/unload").status_code == 200
    assert service.roles() == {"one@1": ["active"]}


@pytest.mark.parametrize(
    ("ref", "status", "code"),
    [
        ("one@9", 404, "bundle_not_found"),
        ("one@cut", 422, "bundle_invalid"),
        ("one@liar", 422, "bundle_invalid"),
        ("one", 422, "invalid_request"),
        ("..%2Fone@1", 404, "route_not_found"),
        ("..@..", 422, "invalid_request"),
    ],
)
def test_a_bundle_that_cannot_be_loaded_changes_nothing(
    service: Service, ref: str, status: int, code: str
) -> None:
    answer = admin(service, f"bundles/{ref}/load", {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert service.roles() == {"one@1": ["active"]}
    assert answers(service)[0] == "one@1"


def test_a_hangup_activates_what_the_store_calls_current(service: Service, store: Path) -> None:
    os.kill(service.process.pid, signal.SIGHUP)  # UNMASK_BUNDLE is one@1: nothing to do
    assert answers(service)[0] == "one@1"


def test_the_current_pointer_is_followed_on_hangup(
    store: Path, redis_url: str, tmp_path: Path
) -> None:
    current = store / "one" / "current"
    current.write_text("1\n")
    try:
        with service_process(
            tmp_path, bundles_dir=store, bundle="one", redis_url=redis_url
        ) as service:
            assert answers(service)[0] == "one@1"
            current.write_text("3\n")
            os.kill(service.process.pid, signal.SIGHUP)
            wait_until(lambda: answers(service)[0] == "one@3")
            current.write_text("cut\n")  # what cannot be loaded leaves all as it is
            os.kill(service.process.pid, signal.SIGHUP)
            wait_until(lambda: "reload_failed" in service.stdout)
            assert answers(service)[0] == "one@3"
            counts = service.samples()
            reloads = 'unmask_bundle_operations_total{operation="reload",result="%s"}'
            assert [counts[reloads % result] for result in ("done", "failed")] == [1, 1]
    finally:
        current.unlink()


def test_which_key_may_do_what(service: Service) -> None:
    bare = {"Authorization": ""}
    post = service.client.post
    assert post("/admin/bundles/rollback", headers=bare).status_code == 401
    assert post("/admin/bundles/rollback", headers=CLIENT).status_code == 403
    wrong = {"Authorization": "Bearer an-admin-kex"}
    assert post("/admin/bundles/rollback", headers=wrong).status_code == 401
    refused = post("/recommend", json={"user_id": "u"}, headers=bare)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["code"] == "unauthenticated"
    for content in (b"{", b"[" * 1000):  # a stranger's body is not even read
        for path in ("/recommend", "/recommend/batch", "/admin/items"):
            assert post(path, content=content, headers=bare).status_code == 401
    assert post("/recommend", json={"user_id": "u"}, headers=ADMIN).status_code == 200
    for path in ("/health/live", "/health/ready", "/metrics", "/info", "/models"):
        assert service.client.get(path, headers=bare).status_code == 200
    log = service.stdout + service.stderr
    assert "a-client-key" not in log
    assert "an-admin-ke" not in log


def test_without_administrators_there_are_no_admin_routes(served: Service) -> None:
    answer = served.client.post("/admin/bundles/rollback", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
    paths = served.client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if "admin" in path]


def test_a_candidate_shadows_unseen(service: Service) -> None:
    before = answers(service)
    assert admin(service, "bundles/one@2/load", {"shadow_fraction": 1.0}).status_code == 200

    def compared() -> float:
        return service.samples().get('unmask_shadow_requests_total{result="compared"}', 0)

    def some_more() -> bool:  # those that come while another is decoded are skipped
        assert answers(service) == before
        return compared() >= 3

    wait_until(some_more)
    assert "unmask_shadow_overlap_ratio_sum 0.0\n" not in service.client.get("/metrics").text
    assert admin(service, "bundles/one@2/unload").status_code == 200


def test_an_operator_asks_a_bundle_that_answers_nobody(service: Service) -> None:
    """Its answer is the one that users get when it is active, and nothing knows of it."""
    service.send("item-3", "item-40", user_id="previewed")
    asked = {"user_id": "previewed", "k": 5, "filter": {"category": ["Shelves"]}}
    url = "bundles/next@1/recommend"
    refused = admin(service, url, asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "bundle_not_loaded")
    assert "one@1" in refused.json()["error"]["message"]  # what is there
    assert admin(service, "bundles/next@1/load", {}).status_code == 200
    try:
        counted = ("unmask_recommend", "unmask_nfe", "unmask_hit", "unmask_items_returned")
        before = {k: v for k, v in service.samples().items() if k.startswith(counted)}
        found = admin(service, url, asked)
        assert found.status_code == 200, found.text
        assert found.headers["X-Unmask-Bundle"] == found.json()["bundle"] == "next@1"
        shown = found.json()["items"]
        own = admin(service, "bundles/one@1/recommend", asked).json()
        assert own["items"] == service.recommend(**asked, r_warm=2).json()["items"]
        assert [one["item_id"] for one in own["items"]] != [one["item_id"] for one in shown]

        wrong = admin(service, url, asked | {"m_par": 2, "r_warm": 0})  # not of this family
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "m_par")
        assert admin(service, url, {"k": 3}).json()["error"]["param"] == "user_id"
        for headers, status in (({"Authorization": ""}, 401), (CLIENT, 403)):
            for method, path in (("POST", url), ("GET", "bundles/next@1/info")):
                sent = service.client.request(method, f"/admin/{path}", json=asked, headers=headers)
                assert sent.status_code == status

        facts = service.client.get("/admin/bundles/next@1/info", headers=ADMIN).json()
        assert (facts["name"], facts["autoregressive"]) == ("next", True)
        assert service.client.get("/info").json()["bundle"]["name"] == "one"

        of_preview = {"recommendation_id": found.json()["recommendation_id"]}
        event = {
            "event_id": "of-a-preview",
            "user_id": "previewed",
            "item_id": shown[0]["item_id"],
            "event_type": "impression",
        }
        sent = service.client.post("/events", json={"events": [event | of_preview]}).json()
        assert (sent["accepted"], sent["attributed"]) == (1, 0)
        page = service.recommend(**asked, after=of_preview["recommendation_id"])
        assert page.json()["error"]["code"] == "recommendation_not_found"
        after = {k: v for k, v in service.samples().items() if k.startswith(counted)}
        ours = {k: v - before.get(k, 0) for k, v in after.items() if "_created" not in k}
        assert ours["unmask_items_returned_count"] == 1  # of the one that a client asked for
        assert not [k for k, v in ours.items() if "next@1" in k and v]

        assert admin(service, "bundles/next@1/activate").status_code == 200
        assert service.recommend(**asked).json()["items"] == shown
        assert admin(service, "bundles/rollback").status_code == 200
    finally:
        admin(service, "bundles/one@1/activate")
        admin(service, "bundles/next@1/unload")


# Items


def embedding(seed: int) -> list[float]:
    return np.random.default_rng(seed).normal(size=EMBEDDING_DIMS).tolist()


def test_items_are_added_and_removed_for_good(store: Path, redis_url: str, tmp_path: Path) -> None:
    keys = {"admin_keys": "an-admin-key", "redis_url": redis_url, "redis_timeout_ms": 5000}
    new = {"item_id": "new-1", "title": "A new one", "categories": ["Shelves > 77"]}
    body = {"add": [new | {"embedding": embedding(1)}], "remove": ["item-5", "unknown"]}
    with service_process(tmp_path / "1", bundles_dir=store, bundle="shop@1", **keys) as service:
        changed = admin(service, "items", body).json()
        expected = {"bundle": "shop@1", "added": 1, "removed": 1, "num_items": NUM_ITEMS}
        assert changed == expected | {"hidden": 0}
        again = admin(service, "items", body).json()
        assert (again["added"], again["removed"], again["num_items"]) == (0, 0, NUM_ITEMS)
        item = service.client.get("/items/new-1").json()
        assert (item["title"], item["categories"]) == ("A new one", ["Shelves > 77"])
        assert item["popularity_rank"] == NUM_ITEMS
        assert service.client.get("/items/item-5").status_code == 404
        wanted = {"filter": {"category": ["Shelves > 77"]}, "metadata": True}
        found = service.recommend(user_id="u", history=["item-3"], k=3, **wanted).json()["items"]
        assert [(one["item_id"], one["categories"]) for one in found] == [
            ("new-1", ["Shelves > 77"])
        ]
        # A bundle of that name that is loaded later has the changes too,
        admin(service, "bundles/shop@2/load", {})
        admin(service, "bundles/shop@2/activate")
        assert service.client.get("/items/new-1").json()["bundle"] == "shop@2"
        assert service.client.get("/items/item-5").status_code == 404
        # and so have the next process and, soon, another one that is running.
        with service_process(tmp_path / "2", bundles_dir=store, bundle="shop@1", **keys) as other:
            assert other.client.get("/items/new-1").json()["title"] == "A new one"
            assert other.client.get("/items/item-5").status_code == 404
            renamed = new | {"title": "Another title", "embedding": embedding(1)}
            admin(service, "items", {"add": [renamed]})
            assert service.client.get("/items/new-1").json()["title"] == "Another title"
            url = "/items/new-1"
            wait_until(lambda: other.client.get(url).json()["title"] == "Another title")
            admin(service, "items", {"remove": ["new-1"]})
            assert service.client.get("/items/new-1").status_code == 404


def test_a_new_item_is_recommended_where_one_is_that_it_is_like(
    redis_url: str, tmp_path: Path
) -> None:
    """item-4 follows item-3. A new item with the content of item-4 does, too; another does not."""
    path = write_tiny_bundle(tmp_path / "store" / "new" / "1", name="new", version="1")
    edit_manifest(path, lambda manifest: manifest["prior"].update(weight=20.0))
    projection, vectors = tiny_codebook().content, tiny_catalogue().vectors
    assert projection is not None
    numbers = {
        name: projection.mean + np.linalg.pinv(projection.components) @ vectors[row, :8]
        for name, row in (("like-item-4", 4), ("like-item-90", 90))
    }
    added = [
        {"item_id": name, "title": name, "categories": [], "embedding": embedding.tolist()}
        for name, embedding in numbers.items()
    ]
    settings = {"bundles_dir": tmp_path / "store", "bundle": "new", "admin_keys": "an-admin-key"}
    with service_process(tmp_path, redis_url=redis_url, **settings) as service:

        def answer(*history: str) -> list[str]:
            found = service.recommend(user_id="u", history=history, k=10).json()["items"]
            return [item["item_id"] for item in found]

        before = answer("item-3")
        assert before[:2] == ["item-4", "item-5"]
        assert admin(service, "items", {"add": added}).json()["added"] == 2
        after = answer("item-3")
        assert after[0] == "item-4"
        assert "like-item-4" in after[:3]
        assert "like-item-90" not in after
        assert "like-item-90" in answer("item-89")[:3]
        follows = answer("like-item-4")
        assert follows[0] == "item-4"  # what it is like most
        assert "item-5" in follows  # what follows that
        admin(service, "items", {"remove": list(numbers)})
        assert answer("item-3") == before


def test_a_bundle_that_is_loaded_without_the_store_gets_its_changes_when_it_is_back(
    store: Path, tmp_path: Path
) -> None:
    valkey = Server(tmp_path / "valkey", {})
    settings = {"bundles_dir": store, "admin_keys": "an-admin-key", "redis_timeout_ms": 200}
    with (
        running(valkey),
        service_process(tmp_path, bundle="shop@1", redis_url=valkey.url, **settings) as service,
    ):
        assert admin(service, "items", {"remove": ["item-5"]}).json()["removed"] == 1
        with valkey.stopped():
            answer = admin(service, "bundles/shop@2/load", {})
        assert answer.json()["error"]["code"] == "history_unavailable"
        assert admin(service, "bundles/shop@2/activate").status_code == 200
        wait_until(lambda: service.client.get("/items/item-5").status_code == 404)
        assert service.client.get("/items/item-6").json()["bundle"] == "shop@2"


def test_a_bundle_of_another_name_has_its_own_changes_before_it_is_active(
    store: Path, tmp_path: Path
) -> None:
    valkey = Server(tmp_path / "valkey", {})
    with running(valkey):
        settings = {
            "bundles_dir": store,
            "admin_keys": "an-admin-key",
            "redis_url": valkey.url,
        }
        with service_process(tmp_path / "1", bundle="shelf@1", **settings) as service:
            assert admin(service, "items", {"remove": ["item-8"]}).json()["removed"] == 1
        with service_process(tmp_path / "2", bundle="shop@1", **settings) as service:
            assert service.client.get("/items/item-8").status_code == 200
            admin(service, "bundles/shelf@1/load", {})
            admin(service, "bundles/shelf@1/activate")
            assert service.client.get("/items/item-8").status_code == 404
            admin(service, "bundles/rollback")
            assert service.client.get("/items/item-8").json()["bundle"] == "shop@1"


def test_titles_are_embedded_where_an_embedder_is_set(
    store: Path, redis_url: str, tmp_path: Path
) -> None:
    class Embedder(BaseHTTPRequestHandler):
        """Answers as Text Embeddings Inference does; a title of `broken` breaks it."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/embed"
            is_broken = "broken" in body["inputs"]
            self.send_response(500 if is_broken else 200)
            self.end_headers()
            answer = [embedding(len(title)) for title in body["inputs"]]
            is_other = "another server" in body["inputs"]
            self.wfile.write(json.dumps({"embeddings": answer} if is_other else answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Embedder)
    Thread(target=server.serve_forever, daemon=True).start()
    with service_process(
        tmp_path,
        bundles_dir=store,
        bundle="shelf@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
        embedder_url=f"http://me:hunter2@127.0.0.1:{server.server_port}",
    ) as service:
        added = admin(service, "items", {"add": [{"item_id": "t-1", "title": "Its title"}]})
        assert added.json()["added"] == 1
        assert service.client.get("/items/t-1").json()["title"] == "Its title"
        for title, status, code in (
            ("broken", 503, "embedder_unavailable"),
            ("another server", 502, "embedder_unfit"),
            ("", 422, "invalid_request"),
        ):
            broken = admin(service, "items", {"add": [{"item_id": "t-2", "title": title}]})
            assert (broken.status_code, broken.json()["error"]["code"]) == (status, code)
            assert broken.json()["error"]["retryable"] == (status == 503)
        assert service.client.get("/items/t-2").status_code == 404
        slashed = {"add": [{"item_id": "a/b/similar", "title": "a title"}]}
        assert admin(service, "items", slashed).json()["added"] == 1
        for path in ("a/b/similar", "a%2Fb%2Fsimilar"):
            assert service.client.get(f"/items/{path}").json()["item_id"] == "a/b/similar"
            similar = service.client.post(f"/items/{path}/similar", json={"k": 3})
            assert len(similar.json()["similar"]) == 3
        assert '"embedder_failed"' in service.stdout
        assert "hunter2" not in service.stdout
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"add": [{"item_id": "n", "title": "t"}]}, "add.0.embedding"),
        ({"add": [{"item_id": "n", "title": "t", "embedding": [1.0]}]}, "add.0.embedding"),
        (
            {"add": [{"item_id": "n", "title": "t", "embedding": [1e39] * EMBEDDING_DIMS}]},
            "add.0.embedding",
        ),
        ({"remove": [f"item-{n}" for n in range(NUM_ITEMS)]}, "remove"),
        ({"add": [{"title": "t"}]}, "add.0.item_id"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(
    service: Service, body: dict[str, Any], param: str
) -> None:
    answer = admin(service, "items", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize("number", ["1e400", "NaN", "9" * 400, "9" * 5000, "[" * 3000, "1e39"])
def test_a_body_of_huge_numbers_or_deep_json_is_refused(service: Service, number: str) -> None:
    numbers = ",".join([number] * EMBEDDING_DIMS)
    body = f'{{"add": [{{"item_id": "n", "title": "t", "embedding": [{numbers}]}}]}}'
    headers = {**ADMIN, "Content-Type": "application/json"}
    answer = service.client.post("/admin/items", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["code"] in ("malformed_json", "invalid_request")


def test_an_item_and_those_like_it(served: Service) -> None:
    item = served.client.get("/items/item-7").json()
    assert (item["title"], item["popularity_rank"], item["same_sid"]) == ("Title of item-7", 8, [])
    similar = served.client.post("/items/item-7/similar", json={"k": 4}).json()["similar"]
    codes = {
        other: served.client.get(f"/items/{other}").json()["sid"]
        for other in [one["item_id"] for one in similar]
    }
    for one in similar:
        sid = codes[one["item_id"]]
        assert one["codes"] == sum(a == b for a, b in zip(sid, item["sid"], strict=True)) > 0
    in_common = [one["codes"] for one in similar]
    assert in_common == sorted(in_common, reverse=True)
    assert "item-7" not in codes
    missing = served.client.post("/items/none/similar", json={})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "item_not_found")


def test_draining_is_not_ready_and_goes_on_answering(service: Service) -> None:
    assert admin(service, "drain").json() == {"status": "draining"}
    ready = service.client.get("/health/ready")
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
    assert answers(service)[0] == "one@1"
