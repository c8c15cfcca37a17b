"""Common HTTP clients, unchanged, post events and get recommendations, each for a user."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from running_service import Service

Posts = list[tuple[str, Any]]  # paths and bodies, one after another
Answers = list[tuple[int, Any]]
JDK_CLIENT = Path(__file__).parent / "clients" / "JdkClient.java"


def with_jdk(url: str, posts: Posts) -> Answers:
    """Java's HttpClient, which offers HTTP/2."""
    lines = "".join(f"{path}\t{json.dumps(body)}\n" for path, body in posts)
    done = subprocess.run(
        ["java", str(JDK_CLIENT), url], input=lines.encode(), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = (line.split("\t", 1) for line in done.stdout.decode().splitlines())
    return [(int(status), json.loads(body)) for status, body in answers]


def with_curl(url: str, posts: Posts, *options: str) -> Answers:
    """All requests over one connection."""
    command = ["curl", "--silent", "--show-error"]
    for path, body in posts:
        command += [*options, "--header", "Content-Type: application/json"]
        command += ["--data", json.dumps(body), "--write-out", "\n%{http_code} %{num_connects}\n"]
        command += [f"{url}{path}", "--next"]
    done = subprocess.run(command[:-1], capture_output=True, timeout=300, check=True)
    lines = done.stdout.decode().splitlines()
    ends = [line.split() for line in lines[1::2]]
    assert [int(connects) for _, connects in ends] == [1] + [0] * (len(posts) - 1)
    bodies = (json.loads(line) for line in lines[::2])
    return [(int(status), body) for (status, _), body in zip(ends, bodies, strict=True)]


def with_curl_and_http2(url: str, posts: Posts) -> Answers:
    return with_curl(url, posts, "--http2")


def with_requests(url: str, posts: Posts) -> Answers:
    with requests.Session() as session:
        answers = [session.post(f"{url}{path}", json=body, timeout=300) for path, body in posts]
    return [(answer.status_code, answer.json()) for answer in answers]


def with_httpx(url: str, posts: Posts) -> Answers:
    with httpx.Client(base_url=url, timeout=300) as client:
        answers = [client.post(path, json=body) for path, body in posts]
    return [(answer.status_code, answer.json()) for answer in answers]


def with_aiohttp(url: str, posts: Posts) -> Answers:
    async def main() -> Answers:
        answers = []
        async with aiohttp.ClientSession(url) as session:
            for path, body in posts:
                async with session.post(path, json=body) as answer:
                    answers.append((answer.status, await answer.json()))
        return answers

    return asyncio.run(main())


CLIENTS = [with_jdk, with_curl, with_curl_and_http2, with_requests, with_httpx, with_aiohttp]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_off_the_shelf(served: Service, client: Callable[[str, Posts], Answers]) -> None:
    user_id = f"{client.__name__}-Zoë"
    first, second, third = (
        {"event_id": f"{n}", "user_id": user_id, "item_id": f"item-{n}", "event_type": "click"}
        for n in (1, 2, 3)
    )
    url = str(served.client.base_url).rstrip("/")
    answers = client(
        url,
        [
            ("/events", {"events": [first, second]}),
            ("/recommend", {"user_id": user_id, "k": 5}),
            ("/events", {"events": [second, third]}),
            ("/recommend", {"user_id": user_id, "k": 0}),
            ("/recommend", {"user_id": user_id, "k": 4}),
        ],
    )
    assert [status for status, _ in answers] == [200, 200, 200, 422, 200]
    stored, recommended, stored_again, refused, last = (body for _, body in answers)
    assert (stored["accepted"], stored["duplicates"]) == (2, 0)
    assert (stored_again["accepted"], stored_again["duplicates"]) == (1, 1)
    assert refused["error"]["param"] == "k"
    for answer, k, length in ((recommended, 5, 2), (last, 4, 3)):
        assert answer["user_id"] == user_id
        assert answer["history"] == {"source": "store", "length": length, "unknown_items": 0}
        assert len({item["item_id"] for item in answer["items"]}) == k
    history = served.client.get(f"/users/{user_id}/history").json()["history"]
    assert history == ["item-1", "item-2", "item-3"]
