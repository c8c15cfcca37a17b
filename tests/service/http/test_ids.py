"""Ids in paths and bodies: every stored id can be shown and erased, by any client.

No id is taken for another one.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import pytest
import requests
from running_service import Service, service_process
from tiny_bundle import EMBEDDING_DIMS, write_tiny_bundle

from service import seed
from service.bundles import HeldOutUser
from service.errors import BundleInvalid

ADMIN = {"Authorization": "Bearer an-admin-key"}
# As they are in JSON; everything is quoted in a path.
ODD = ["a b", " x ", "a?b", "a#b", "a%2Fb", "100%", "a+b", "a;b&c=d", "...", ".a", "a\\b", "ü日本",
       "\u2028", "\ufeff", "\x85", '"', "'", "<>^`|[]~", "a:b@c", "-", "0", "e\u0301"]  # fmt: skip
UNNAMEABLE = [".", "..", "a\nb", "a\n", "\x00", "\x7f", "\ud800", "", "x" * 257]
NO_USERS = [*UNNAMEABLE, "a/b", "{a}"]
Send = Callable[[str, str], tuple[int, str]]  # method and URL: status and body


@pytest.fixture(scope="module")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """odd@1 with an administrator. Its items change."""
    folder = tmp_path_factory.mktemp("ids")
    write_tiny_bundle(folder / "bundles" / "odd" / "1", name="odd")
    with service_process(
        folder,
        bundles_dir=folder / "bundles",
        bundle="odd@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
    ) as service:
        yield service


def by_httpx(method: str, url: str) -> tuple[int, str]:
    answer = httpx.request(method, url, timeout=300)
    return answer.status_code, answer.text


def by_requests(method: str, url: str) -> tuple[int, str]:
    answer = requests.request(method, url, timeout=300)
    return answer.status_code, answer.text


def by_aiohttp(method: str, url: str) -> tuple[int, str]:
    async def send() -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
            return answer.status, await answer.text()

    return asyncio.run(send())


def by_curl(method: str, url: str) -> tuple[int, str]:
    command = ["curl", "-sg", "--max-time", "30", "-X", method, "-w", "\n%{http_code}", url]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


CLIENTS: list[Send] = [by_httpx, by_requests, by_aiohttp]
CLIENTS += [by_curl] if shutil.which("curl") else []


def raw(service: Service, method: str, target: str) -> tuple[int, dict[str, Any]]:
    """Sends the target unchanged, byte by byte."""
    connection = http.client.HTTPConnection("127.0.0.1", service.client.base_url.port, timeout=300)
    connection.request(method, target)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else {}


def post(service: Service, path: str, body: Any) -> httpx.Response:
    headers = {"Content-Type": "application/json", **ADMIN}
    return service.client.post(path, content=json.dumps(body), headers=headers)


def event(user_id: str, item_id: str, event_id: str = "1") -> dict[str, str]:
    return {
        "event_id": event_id,
        "user_id": user_id,
        "item_id": item_id,
        "event_type": "click",
    }


@pytest.mark.parametrize("send", CLIENTS)
def test_every_user_that_can_be_stored_is_shown_and_erased(service: Service, send: Send) -> None:
    base = str(service.client.base_url).rstrip("/")
    for number, user_id in enumerate(ODD):
        own = event(user_id, f"item-{number}", send.__name__)
        assert post(service, "/events", {"events": [own]}).json()["accepted"] == 1
        assert service.recommend(user_id=user_id).json()["history"]["length"] == 1
    for number, user_id in enumerate(ODD):
        url = f"{base}/users/{quote(user_id, safe='')}/history"
        status, body = send("GET", url)
        assert (status, json.loads(body)) == (
            200,
            {"user_id": user_id, "history": [f"item-{number}"], "refused": []},
        )
        assert send("DELETE", url) == (204, "")
        assert json.loads(send("GET", url)[1])["history"] == []


@pytest.mark.parametrize("user_id", NO_USERS)
def test_what_no_path_can_name_is_no_user(service: Service, user_id: str) -> None:
    refused = post(service, "/events", {"events": [event(user_id, "item-1")]}).json()
    assert (refused["accepted"], refused["rejected"][0]["code"]) == (0, "invalid_event")
    assert refused["rejected"][0]["message"].startswith("user_id: ")
    answer = post(service, "/recommend", {"user_id": user_id})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "user_id")
    batch = post(service, "/recommend/batch", {"requests": [{"user_id": user_id}]}).json()
    assert batch["results"][0]["error"]["param"] == "user_id"
    if user_id and "/" not in user_id:
        target = f"/users/{quote(user_id, safe='', errors='surrogatepass')}/history"
        for method in ("GET", "DELETE"):
            for path in (target, target.replace(".", "%2E")):
                assert raw(service, method, path)[0] in (400, 422)


# What a URL may not contain, and whom it would name if that were replaced or accepted.
NOT_TEXT = {
    "%ff": "\ufffd",
    "a%C3": "a\ufffd",
    "%C0%AF": "\ufffd\ufffd",
    "%ED%A0%80": "\ufffd\ufffd\ufffd",
    "%F5%80%80%80": "\ufffd\ufffd\ufffd\ufffd",
    "%": "%",
    "100%": "100%",
    "%zz": "%zz",
    "%2": "%2",
}


@pytest.mark.parametrize("part", NOT_TEXT)
def test_a_url_that_is_not_text_is_refused_and_means_nobody(service: Service, part: str) -> None:
    misread = NOT_TEXT[part]
    body = {"events": [event(misread, "item-1")]}
    assert post(service, "/events", body).json()["rejected"] == []
    for method, target in (
        ("GET", f"/users/{part}/history"),
        ("HEAD", f"/users/{part}/history"),
        ("DELETE", f"/users/{part}/history"),
        ("GET", f"/users/a/history?limit=1&x={part}"),
        ("DELETE", f"/users/{quote(misread)}/history?{part}"),
        ("GET", f"/items/{part}"),
        ("POST", f"/items/{part}/similar"),
        ("POST", f"/admin/bundles/{part}/activate"),
        ("GET", f"/{part}"),
        ("GET", f"/health/live?{part}"),
    ):
        status, answer = raw(service, method, target)
        assert status == 400, target
        if method != "HEAD":
            error = answer["error"]
            assert (error["code"], error["retryable"]) == ("malformed_url", False)
    kept = service.client.get(f"/users/{quote(misread, safe='')}/history").json()
    assert kept["history"] == ["item-1"]


def test_paths_are_taken_to_their_very_end(service: Service) -> None:
    post(service, "/events", {"events": [event("ends", "item-1")]})
    for target in ("/users/ends/history%0A", "/health/live%0A", "/info%0A", "/items/item-7%0A"):
        status, answer = raw(service, "GET", target)
        assert (status, answer["error"]["retryable"]) == (404, False), target
    assert raw(service, "DELETE", "/users/ends/history%0A")[0] == 404
    assert raw(service, "POST", "/items/item-7/similar%0A")[0] in (404, 405)
    kept = service.client.get("/users/ends/history").json()
    assert kept["history"] == ["item-1"]


@pytest.mark.parametrize("send", CLIENTS)
def test_every_item_that_can_be_added_is_shown_named_and_removed(
    service: Service, send: Send
) -> None:
    base = str(service.client.base_url).rstrip("/")
    odd = [*ODD, "a/b", "/", "a//b", "a/../b", "{a}", "x/similar", "similar"]
    new = [{"item_id": one, "title": one, "embedding": [1.0] * EMBEDDING_DIMS} for one in odd]
    assert post(service, "/admin/items", {"add": new}).json()["added"] == len(odd)
    for item_id in odd:
        status, body = send("GET", f"{base}/items/{quote(item_id, safe='')}")
        assert (status, json.loads(body)["item_id"]) == (200, item_id)
    user = f"who-likes-odd-{send.__name__}"
    events = [event(user, item_id, f"{n}") for n, item_id in enumerate(odd)]
    assert post(service, "/events", {"events": events}).json()["accepted"] == len(odd)
    history = service.client.get(f"/users/{user}/history").json()["history"]
    assert history == odd
    answer = post(service, "/recommend", {"user_id": "x", "history": odd, "exclude_items": odd})
    assert answer.json()["history"]["unknown_items"] == 0
    assert post(service, "/admin/items", {"remove": odd}).json()["removed"] == len(odd)


@pytest.mark.parametrize("item_id", UNNAMEABLE)
def test_what_no_path_can_name_is_no_new_item(service: Service, item_id: str) -> None:
    new = {"item_id": item_id, "title": "t", "embedding": [1.0] * EMBEDDING_DIMS}
    answer = post(service, "/admin/items", {"add": [new]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "add.0.item_id")


def test_an_item_of_a_bundle_may_have_any_name_that_can_be_shown(
    redis_url: str, tmp_path: Path
) -> None:
    """`..` may not be added, as most clients take it out of a path; bundles may have it."""
    names = {f"item-{number}": name for number, name in enumerate([*ODD, "..", "a/b", "y" * 256])}
    write_tiny_bundle(tmp_path / "named" / "1", name="named", names=names)
    with service_process(
        tmp_path, bundles_dir=tmp_path, bundle="named@1", redis_url=redis_url, redis_timeout_ms=5000
    ) as service:
        for item_id in names.values():
            status, answer = raw(service, "GET", f"/items/{quote(item_id, safe='')}")
            assert (status, answer["item_id"]) == (200, item_id)
            sent = {"user_id": "x", "history": [item_id], "exclude_items": [item_id]}
            answer = post(service, "/recommend", sent).json()
            assert answer["history"]["unknown_items"] == 0
        assert raw(service, "GET", "/items/b")[0] == 404


@pytest.mark.parametrize("name", ["a\nb", "b\n", "\tc", "\x00", "\x7f", "", "x" * 257])
def test_a_bundle_with_a_name_that_cannot_be_shown_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="line 2: item_id"):
        write_tiny_bundle(tmp_path / "named" / "1", name="named", names={"item-1": name})


def test_seeding_leaves_out_users_that_the_service_does_not_take(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    users = [HeldOutUser(name, ("item-1",), "item-2") for name in ("..", "a/b", "seeded")]

    class Held:
        held_out = users

    monkeypatch.setenv("UNMASK_BUNDLES_DIR", str(service.folder / "bundles"))
    monkeypatch.setenv("UNMASK_BUNDLE", "odd@1")
    monkeypatch.setattr(seed.Bundle, "load", lambda _: Held())
    assert seed.main(["--url", str(service.client.base_url)]) == 0
    said = capsys.readouterr().out
    assert "of 1 users" in said
    assert "2 users have ids that the service does not take" in said
    assert seed.history_of(service.client, "seeded") == ["item-1"]
