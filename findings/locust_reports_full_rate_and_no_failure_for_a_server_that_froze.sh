#!/usr/bin/env bash
# locust: a server that freezes a second into a run of ten is reported at its full rate, no failures.
#
# What one would guess: requests per second are requests over the length of the run, and a request
# that is still open when the run ends is somewhere in the report, as a failure if need be.
#
# What happens: the rate of the totals divides by the time from the start to the last *answer*, so
# the silence after it does not count. Requests that are open at the end are dropped: no failure, no
# response time, not even a request. HttpUser has no timeout of its own, so each simulated user hangs
# in one such request. The exit code is 0, the percentiles are those of the good second, and the
# CSV file says the same.
#
# Seen on 2026-11-30 with locust 2.47.0, 5 users, a server that answers 50 requests and then keeps
# the connections open in silence, run time 8 s: the server received 55 requests, the report has
# 50, 0 failures, exit code 0, 39 and 45 requests/s in two runs (50 / 8 s is 6.2). With timeout=1
# in every call: 25 failures, exit code 1.
#
# Why it matters: a recommender's tail is in what hangs: a lock held by a model swap, a store that
# stalled. A load test that gates a release on rate, p99 and failures of this report lets through the
# one fault that is worse than slow.
#
# Instead: give every call a timeout (the SLO times some factor), count requests that were *due* and
# divide by the run time, or compare with the server's own counter.
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check locust==2.47.0

cat > "$work/locustfile.py" <<'PY'
import os

from locust import HttpUser, constant, task

TIMEOUT = float(os.environ["CALL_TIMEOUT"]) or None


class Reader(HttpUser):
    wait_time = constant(0.1)

    @task
    def ask(self) -> None:
        self.client.get("/recommend", timeout=TIMEOUT)
PY

cat > "$work/finding.py" <<'PY'
import csv
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

USERS, ANSWERED, RUN_S = 5, 50, 8
folder = Path(__file__).parent


def run(name: str, timeout_s: float) -> dict[str, float]:
    received, lock, over = 0, threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal received
            with lock:
                received += 1
                frozen = received > ANSWERED
            if frozen:
                over.wait()
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    locust = subprocess.run(
        [sys.executable, "-m", "locust", "-f", folder / "locustfile.py", "--headless", "--only-summary",
         "--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", f"{RUN_S}s",
         "--host", f"http://127.0.0.1:{server.server_port}", "--csv", folder / name],
        env={**os.environ, "CALL_TIMEOUT": str(timeout_s)}, capture_output=True, text=True, timeout=120,
    )
    in_time = received
    over.set()
    server.shutdown()
    server.server_close()
    with open(folder / f"{name}_stats.csv") as file:
        total = list(csv.DictReader(file))[-1]
    return {
        "exit code": locust.returncode,
        "received": in_time,
        "requests": int(total["Request Count"]),
        "failures": int(total["Failure Count"]),
        "rate": float(total["Requests/s"]),
    }


print(f"locust {version('locust')}")
print(f"The server answers {ANSWERED} requests and freezes; the run lasts {RUN_S} s.")
print(f"Expected: {USERS} failed or open requests in the report, about {ANSWERED / RUN_S:.1f} requests/s.")
silent, with_timeout = run("silent", 0), run("with_timeout", 1)
for name, seen in (("no timeout", silent), ("timeout=1", with_timeout)):
    print(
        f"  {name}: the server received {seen['received']}; reported: {seen['requests']} requests, "
        f"{seen['failures']} failures, {seen['rate']:.1f} requests/s, exit code {seen['exit code']}"
    )
as_found = (
    silent["received"] == ANSWERED + USERS
    and silent["requests"] == ANSWERED
    and silent["failures"] == 0
    and silent["exit code"] == 0
    and silent["rate"] > 2 * ANSWERED / RUN_S
    and with_timeout["failures"] >= USERS
    and with_timeout["exit code"] == 1
)
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
