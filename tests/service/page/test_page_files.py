"""The files of the page over HTTP: who gets them, with which headers, and how large they are."""

from __future__ import annotations

import base64
import gzip
import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from opened_page import ADMIN_KEY, KEY
from started_lifecycle import tell

from service.lifecycle import Lifecycle
from service.page import DOCS, PAGE, assets_of

MOST_BYTES = 300_000  # of the page, compressed; the documentation is counted apart
MOST_DOCS_BYTES = 600_000
KEYED = {"api_keys": KEY, "admin_keys": ADMIN_KEY}


def basic(password: str, name: str = "me") -> dict[str, str]:
    pair = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def policy_of(answer: httpx.Response) -> dict[str, str]:
    parts = answer.headers["Content-Security-Policy"].split(";")
    return {name: value for name, _, value in (part.strip().partition(" ") for part in parts)}


def test_every_file_is_served_as_what_it_is(bundles_dir: Path, redis_url: str) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        for folder, root in ((PAGE, "/page"), (DOCS, "/docs")):
            for name, asset in assets_of(folder).items():
                answer = await client.get(f"{root}/{name}")
                assert (answer.status_code, answer.content) == (200, asset.content)
                assert answer.headers["Content-Type"] == asset.media_type
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                again = {"If-None-Match": f'"x", {answer.headers["ETag"]}'}
                unchanged = await client.get(f"{root}/{name}", headers=again)
                assert (unchanged.status_code, unchanged.content) == (304, b"")
                plain = await client.get(f"{root}/{name}", headers={"Accept-Encoding": "identity"})
                assert "Content-Encoding" not in plain.headers
                assert plain.content == asset.content
        for path in ("/", "/docs"):
            answer = await client.get(path)
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.headers["Content-Encoding"] == "gzip"
        for path in ("/page/nothing.js", "/page", "/page/", "/page/../app.js", "/page/%2e%2e/x"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
        assert (await client.post("/")).status_code == 405
        assert (await client.head("/")).status_code == 200

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")


def test_the_policy_allows_files_of_this_service_only(bundles_dir: Path, redis_url: str) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        page, docs = policy_of(await client.get("/")), policy_of(await client.get("/docs"))
        for policy in (page, docs):
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
            assert "unsafe" not in str(policy)
            assert "http" not in str(policy)
        assert page["require-trusted-types-for"] == "'script'"

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")


def test_no_code_or_style_is_inline_and_no_text_is_parsed_as_html() -> None:
    for folder in (PAGE, DOCS):
        html = assets_of(folder)["index.html"].content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
        named = re.findall(r'(?:src|href)="(/(?:page|docs)/[^"]+)"', html)
        own = assets_of(folder)
        assert len(named) >= 3
        assert [one for one in named if one.rpartition("/")[2] not in own] == []
    ours = {name: one.content.decode() for name, one in assets_of(PAGE).items() if "js" in name}
    del ours["uplot.js"]
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert {name for name, text in ours.items() if re.search(sinks, text)} == set()


def test_the_files_are_small() -> None:
    sizes = {
        folder: sum(len(gzip.compress(one.content)) for one in assets_of(folder).values())
        for folder in (PAGE, DOCS)
    }
    assert sizes[PAGE] <= MOST_BYTES
    assert sizes[DOCS] <= MOST_DOCS_BYTES


def test_the_wheel_has_them() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["package-data"]["service"]
    assert packed == [f"page/{folder}/*" for folder in (PAGE, DOCS)]


def test_libraries_come_with_their_licences() -> None:
    assert b"MIT License" in assets_of(PAGE)["uplot-LICENSE.txt"].content
    assert b"Apache License" in assets_of(DOCS)["LICENSE.txt"].content


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/nothing.js"])
def test_where_keys_are_set_the_page_needs_one(
    bundles_dir: Path, redis_url: str, path: str
) -> None:
    right = 404 if "nothing" in path else 200

    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        for headers in ({}, basic("wrong"), basic(""), {"Authorization": "Basic !"}):
            answer = await client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"].startswith('Basic realm="Unmask')
        for headers in (basic(KEY), basic(ADMIN_KEY, ""), {"Authorization": f"Bearer {KEY}"}):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == right
            if right == 200:
                assert answer.headers["Cache-Control"] == "private, no-cache"

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1", **KEYED)


def test_a_key_as_password_is_a_clients_key_and_never_an_administrators(
    bundles_dir: Path, redis_url: str
) -> None:
    """A browser adds a password by itself, also where a page of others sends the request."""
    body = {"user_id": "x", "history": ["item-1"]}

    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        for password, status in ((KEY, 200), (ADMIN_KEY, 200), ("wrong-key", 401)):
            answer = await client.post("/recommend", json=body, headers=basic(password))
            assert answer.status_code == status
        for password in (KEY, ADMIN_KEY):
            answer = await client.post("/admin/bundles/rollback", headers=basic(password))
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        form = {**basic(KEY), "Content-Type": "text/plain"}
        answer = await client.post("/events", content="{}", headers=form)
        assert answer.status_code == 415, "what a page of others can send without asking"

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1", **KEYED)


def test_the_page_can_be_switched_off(bundles_dir: Path, redis_url: str) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        for path in ("/", "/page/app.js", "/held-out-users"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
        assert (await client.get("/docs")).status_code == 200

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1", page=False)


def test_held_out_users_come_in_parts(bundles_dir: Path, redis_url: str) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        async def users(query: str) -> list[Any]:
            answer = (await client.get(f"/held-out-users?{query}")).json()
            assert (answer["num_users"], answer["bundle"]) == (10, "tiny@1")
            return [one["user_id"] for one in answer["users"]]

        everybody = [f"user-{n}" for n in range(10)]
        assert await users("") == everybody
        assert await users("first=3&limit=2") == everybody[3:5]
        assert await users("first=10") == []
        [first] = (await client.get("/held-out-users?limit=1")).json()["users"]
        assert (first["history"][:2], first["target"]) == (["item-0", "item-1"], "item-7")
        refused = await client.get("/held-out-users?limit=0")
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "limit")

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")
