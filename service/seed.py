"""`python -m service.seed --url URL`: stores the histories of a bundle's held-out users.

So a fresh installation has users to recommend to. It posts to `POST /events`, as a shop would.
Users who have a history keep it, so a second run changes nothing. But users who were erased get
their histories back. Use `--demo-only` where it runs at every start: then only the demo bundle's
users get histories, never real users. The bundle is the one that UNMASK_BUNDLE names, as for the
service.
"""

from __future__ import annotations

import argparse
import sys
import time
from urllib.parse import quote

import httpx

from service.bundles import Bundle, HeldOutUser, configured_path, reference_at
from service.errors import StartError
from service.schemas import is_user_id
from service.settings import load_settings

NEWEST = 100  # the newest items of a history are stored: as many as one POST /events takes
TIMEOUT_S = 10
RETRY_FOR_S = 30  # for one user


def main(arguments: list[str]) -> int:
    """Store the histories. Returns 1, with a sentence on stderr, when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m service.seed", description=__doc__)
    parser.add_argument("--url", required=True, help="the service, e.g. http://127.0.0.1:8000")
    parser.add_argument("--demo-only", action="store_true", help="do nothing for other bundles")
    asked = parser.parse_args(arguments)
    try:
        settings = load_settings()
        path = configured_path(settings.bundles_dir, settings.bundle)
        if asked.demo_only and not reference_at(path).startswith("demo@"):
            print("This is not the demo bundle: nothing is stored.")
            return 0
        users = Bundle.load(path).held_out
        with httpx.Client(base_url=asked.url, timeout=TIMEOUT_S, trust_env=False) as client:
            if settings.api_keys:
                key = settings.api_keys[0].get_secret_value()
                client.headers["Authorization"] = f"Bearer {key}"
            nameable = [user for user in users if is_user_id(user.user_id)]
            stored = sum(_store_with_retries(client, user) for user in nameable)
    except (StartError, httpx.HTTPError) as error:
        print(f"the histories could not be stored: {error}", file=sys.stderr)
        return 1
    print(f"Stored the histories of {stored} users; {len(nameable) - stored} had one already.")
    if len(nameable) < len(users):
        print(f"{len(users) - len(nameable)} users have ids that the service does not take.")
    return 0


def _store_with_retries(client: httpx.Client, user: HeldOutUser) -> bool:
    """Like `store_history`, but repeated while the service or its store is not ready yet."""
    until = time.monotonic() + RETRY_FOR_S
    has_said = False
    while True:
        try:
            return store_history(client, user)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            is_final = isinstance(error, httpx.HTTPStatusError) and (
                error.response.status_code not in (429, 503)
            )
            if is_final or time.monotonic() > until:
                raise
            if not has_said:
                reason = str(error).partition("\n")[0]
                print(f"not yet ({reason}); trying for {RETRY_FOR_S} seconds", file=sys.stderr)
                has_said = True
            time.sleep(1)


def store_history(client: httpx.Client, user: HeldOutUser) -> bool:
    """Post the user's history as events, unless there is one; returns whether it was posted."""
    if history_of(client, user.user_id) or not user.history:
        return False
    events = [
        {"event_id": f"seed-{place}", "user_id": user.user_id, "item_id": item_id}
        | {"event_type": "click"}
        for place, item_id in enumerate(user.history[-NEWEST:])
    ]
    client.post("/events", json={"events": events}).raise_for_status()
    return True


def history_of(client: httpx.Client, user_id: str) -> list[str]:
    """The stored history, oldest to newest."""
    answer = client.get(f"/users/{quote(user_id, safe='')}/history").raise_for_status()
    history: list[str] = answer.json()["history"]
    return history


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
