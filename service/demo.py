"""`python -m service.demo`: shows the service at work, in one command.

It starts `python -m service` as a child process, stores the histories of a few held-out users
through POST /events, and says where the page for people is. It asks for items for each of these
users, counts how often the answer has the item that really came next, and shows one of them. Then
it serves until Ctrl-C; with ONCE=1 it ends. Only titles and held-out users come from the bundle;
all else goes over HTTP. Its histories are gone when it ends, unless UNMASK_HISTORY_DIR or
UNMASK_REDIS_URL says where to keep them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import httpx

from service.bundles import Bundle, HeldOutUser, configured_path
from service.errors import StartError
from service.seed import history_of, store_history
from service.settings import Settings, load_settings

NUM_USERS = 20
K = 10
READY_WITHIN_S = 120
STOP_WITHIN_S = 30


class DemoFailed(StartError):
    """The demo cannot run. The sentence says what to do."""


def main() -> int:
    """Run the demo. Returns 1, with a sentence on stderr, when it cannot run."""
    with tempfile.TemporaryDirectory(prefix="unmask-demo-") as folder:
        if "UNMASK_REDIS_URL" not in os.environ:
            os.environ.setdefault("UNMASK_HISTORY_DIR", folder)
        return run()


def run() -> int:
    """Serve, show, and wait; returns the exit status."""
    # Otherwise SIGTERM would end this process and leave the server running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if port := os.environ.get("PORT"):
        os.environ["UNMASK_PORT"] = port
    os.environ.setdefault("UNMASK_LOG_LEVEL", "warning")
    os.environ.setdefault("UNMASK_DRAIN_DELAY_S", "0")
    os.environ.setdefault("UNMASK_REDIS_TIMEOUT_MS", "1000")  # this machine may be busy installing
    try:
        settings = load_settings()
        bundle = Bundle.load(configured_path(settings.bundles_dir, settings.bundle))
        url = f"http://{settings.host}:{settings.port}"
        with _server(settings) as server, httpx.Client(base_url=url, trust_env=False) as client:
            _wait_until_ready(client, server)
            if settings.page:
                print(f"See it think: {url}/", flush=True)
            shown = show(client, bundle)
            if os.environ.get("ONCE") == "1":
                print(json.dumps(shown, ensure_ascii=False))
            else:
                print(f"\nServing on {url} until Ctrl-C.", flush=True)
                server.wait()
                raise DemoFailed("the server ended by itself; its last words are above")
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    except httpx.HTTPError as error:
        print(f"the server refused the demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


def show(client: httpx.Client, bundle: Bundle) -> dict[str, Any]:
    """Store the histories, ask for all users, and print one of those for whom it worked.

    Returns what was printed, as JSON.
    """
    users = bundle.held_out[:NUM_USERS]
    if not users:
        raise DemoFailed(f"{bundle.manifest.ref} has no held-out users to show")
    for user in users:
        store_history(client, user)
    answers = [_post(client, "/recommend", {"user_id": user.user_id, "k": K}) for user in users]
    ranks = [_rank(user, answer) for user, answer in zip(users, answers, strict=True)]
    hits = [place for place, rank in enumerate(ranks) if rank is not None]
    shown = hits[0] if hits else 0
    manifest = bundle.manifest
    print(
        f"{manifest.ref}: {manifest.num_items:,} items, "
        f"semantic IDs of {manifest.num_subspaces} codes out of {manifest.num_codes}\n"
        f"Asked for {K} items for each of {len(users)} test users. "
        f"The item that came next is among them for {len(hits)}."
    )
    _print_one(client, bundle, users[shown], answers[shown])
    return {
        "url": str(client.base_url),
        "bundle": manifest.ref,
        "request": {"user_id": users[shown].user_id, "k": K},
        "response": answers[shown],
        "came_next": users[shown].target,
        "rank": ranks[shown],
        "users": len(users),
        "hits": len(hits),
    }


def _print_one(
    client: httpx.Client, bundle: Bundle, user: HeldOutUser, answer: dict[str, Any]
) -> None:
    titles = {item.item_id: item.title for item in bundle.items}
    print(f"\nFor instance for {user.user_id}, who has seen, oldest to newest:")
    for item_id in history_of(client, user.user_id):
        print(f"      {titles.get(item_id, item_id)}")
    body = json.dumps({"user_id": user.user_id, "k": K})
    print(
        f"\n$ curl -s {client.base_url.join('/recommend')} "
        f"-H 'Content-Type: application/json' -d '{body}'\n"
    )
    for item in answer["items"]:
        came_next = "   <- came next" if item["item_id"] == user.target else ""
        print(f"  {item['rank']:>2}  {item['title']}{came_next}")
    decoding, timings = answer["decoding"], answer["timings_ms"]
    if decoding:
        print(
            f"\nDecoded in {timings['total']:.0f} ms, denoiser calls: {decoding['nfe']} "
            f"(positions filled by each: {', '.join(map(str, decoding['schedule']))})."
        )


def _rank(user: HeldOutUser, answer: dict[str, Any]) -> int | None:
    return next((i["rank"] for i in answer["items"] if i["item_id"] == user.target), None)


def _post(client: httpx.Client, route: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(route, json=body).raise_for_status().json()
    return answer


@contextlib.contextmanager
def _server(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `python -m service` during the block. Afterwards it has ended and its port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise DemoFailed(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                f"choose another port: PORT={settings.port + 1} make demo"
            ) from error
    server = subprocess.Popen(
        [sys.executable, "-m", "service"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # stdout is the demo's own
        start_new_session=True,  # Ctrl-C is for the demo, which ends the server once
    )
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_WITHIN_S
    last_reasons: list[str] = []
    while time.monotonic() < until:
        if server.poll() is not None:
            raise DemoFailed("the server did not start; its last words are above")
        with contextlib.suppress(httpx.TransportError):
            response = client.get("/health/ready")
            if response.status_code == 200:
                return
            reasons = response.json()["reasons"]
            if reasons != last_reasons:
                print("Starting:", ", ".join(reasons).replace("_", " "), file=sys.stderr)
                last_reasons = reasons
        time.sleep(0.1)
    raise DemoFailed(f"the server was not ready within {READY_WITHIN_S} seconds")


if __name__ == "__main__":
    sys.exit(main())
