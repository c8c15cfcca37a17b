"""Faults of the history store. Each is injected while clients ask, and then removed."""

from __future__ import annotations

import os
import signal

import httpx
from clients import within_patience
from running_service import Service, is_running, wait_until
from running_valkey import Server, clustered, replicated, running, watched
from slow_proxy import Mood, slow_proxy
from stage import Stage

REFUSED = 20  # requests with events: enough to call it a fault
SECRET = "secret"


def embedded_killed(stage: Stage) -> None:
    with (
        stage.service(history_dir=stage.folder / "history") as service,
        stage.clients(service) as clients,
    ):
        for _ in range(stage.times):
            pid = service.valkey_pid()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not is_running(pid))
            stage.row.check("it is started again", clients.reaches(stage.events // 3))
        stage.row.check("the same process", service.process.poll() is None)
        starts = service.samples()['unmask_embedded_store_starts_total{result="done"}']
        stage.row.check("counted", starts == stage.times)
        stage.row.seen.append(f"Started again {starts:.0f} times.")


def embedded_stopped(stage: Stage) -> None:
    with (
        stage.service(history_dir=stage.folder / "history") as service,
        stage.clients(service) as clients,
    ):
        pid = service.valkey_pid()
        os.kill(pid, signal.SIGSTOP)
        stage.row.check("events are refused", clients.meets(REFUSED, stage.events))
        os.kill(pid, signal.SIGCONT)


def embedded_hangs(stage: Stage) -> None:
    with (
        stage.service(history_dir=stage.folder / "history") as service,
        stage.clients(service) as clients,
    ):
        clients.patience_s = 180  # it takes a minute to be noticed
        pid = service.valkey_pid()
        os.kill(pid, signal.SIGSTOP)
        clients.meets(REFUSED, stage.events)
        ended = within_patience(lambda: not is_running(pid), 120)
        stage.row.check("it is killed and started again", ended)
        wait_until(lambda: bool(stage.logged(service, "embedded_store_started_again")))


def outside_killed(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        for _ in range(3):
            valkey.kill()
            stage.row.check("events are refused", clients.meets(REFUSED, stage.events))
            valkey.start()
            clients.reaches(stage.events // 3)


def outside_stopped(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
        valkey.stopped(),
    ):
        stage.row.check("events are refused", clients.meets(REFUSED, stage.events))


def absent_at_the_start(stage: Stage) -> None:
    valkey = Server(stage.folder / "valkey", {"appendonly": "yes", "save": '""'})
    with stage.service(redis_url=valkey.url) as service:
        body = {"user_id": "x", "k": 3}
        answer = service.recommend(**body)
        is_flagged = answer.headers.get("X-Unmask-Degraded") == "history_unavailable"
        stage.row.check("popular items, flagged", answer.status_code == 200 and is_flagged)
        event = {"event_id": "1", "user_id": "x", "item_id": "item-1", "event_type": "click"}
        refused = service.client.post("/events", json={"events": [event]}).status_code
        stage.row.check("events are refused", refused == 503)
        stage.row.seen.append(f"Before: events {refused}, recommendations {answer.status_code}.")
        with running(valkey), stage.clients(service):
            pass


def full(stage: Stage) -> None:
    with (
        stage.valkey(**{"maxmemory-policy": "noeviction"}) as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        valkey.ask("CONFIG SET maxmemory", 1_000_000)  # it has more already
        stage.row.check("writes are refused", clients.meets(REFUSED, stage.events))
        _reads_go_on(stage, service)
        valkey.ask("CONFIG SET maxmemory", 0)


def read_only(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        valkey.ask("REPLICAOF", "127.0.0.1", 1)  # nobody is there
        stage.row.check("writes are refused", clients.meets(REFUSED, stage.events))
        _reads_go_on(stage, service)
        valkey.ask("REPLICAOF NO ONE")


def too_few_replicas(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        valkey.ask("CONFIG SET min-replicas-to-write", 1)
        stage.row.check("writes are refused", clients.meets(REFUSED, stage.events))
        _reads_go_on(stage, service)
        valkey.ask("CONFIG SET min-replicas-to-write", 0)


def wrong_password(stage: Stage) -> None:
    with (
        stage.valkey(requirepass=SECRET) as valkey,
        stage.service(redis_url=f"redis://:{SECRET}@127.0.0.1:{valkey.port}") as service,
        stage.clients(service) as clients,
    ):
        _set_password(valkey, "another")
        stage.row.check("events are refused", clients.meets(REFUSED, stage.events))
        stage.row.check("the log has no password", SECRET not in service.stdout + service.stderr)
        _set_password(valkey, SECRET)


def _set_password(valkey: Server, password: str) -> None:
    valkey.ask("CONFIG SET requirepass", password)
    valkey.config["requirepass"] = password
    valkey.ask("CLIENT KILL TYPE normal")  # connections that are open stay as they are


def denied_commands(stage: Stage) -> None:
    """The store denies each command of the scripts in turn, and the script itself."""
    denied = ("lpush", "ltrim", "expire", "zadd", "zremrangebyscore", "eval")
    with stage.valkey() as valkey:
        valkey.ask("ACL SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all")
        url = f"redis://app:{SECRET}@127.0.0.1:{valkey.port}"
        with stage.service(redis_url=url) as service, stage.clients(service) as clients:
            for command in denied:
                before = clients.seen["meanwhile"]["events 503"]
                valkey.ask("ACL SETUSER", "app", f"-{command}")
                clients.meets(before + REFUSED // 2, stage.events // 2)
                valkey.ask("ACL SETUSER", "app", f"+{command}")
                clients.reaches(stage.events // 5)
            refused = clients.seen["meanwhile"]["events 503"]
            stage.row.check("events are refused", refused > 0)


def idle_connections(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        valkey.ask("CONFIG SET timeout", 1)
        for _ in range(3):
            clients.pause()
            wait_until(lambda: len(valkey.ask("CLIENT LIST")) < 2)
            clients.go_on()
            clients.reaches(stage.events // 3)
        refused = clients.seen["meanwhile"]["events 503"]
        stage.row.check("no call fails", refused == 0 and not clients.seen["meanwhile"]["popular"])
        valkey.ask("CONFIG SET timeout", 0)


def connections_killed(stage: Stage) -> None:
    with (
        stage.valkey() as valkey,
        stage.service(redis_url=valkey.url) as service,
        stage.clients(service) as clients,
    ):
        killed = 0
        for _ in range(20):
            killed += valkey.ask("CLIENT KILL TYPE normal")
            clients.reaches(stage.events // 20)
        stage.row.check("there were some", killed > 0)
        stage.row.seen.append(f"{killed} connections closed.")


def sentinel_failover(stage: Stage) -> None:
    with watched(stage.folder / "valkey", password=SECRET) as (primary, _, sentinel):
        host = f"127.0.0.1:{sentinel.port}"
        url = f"redis+sentinel://:{SECRET}@{host}/shop/0?sentinel_password={SECRET}"
        with stage.service(redis_url=url) as service, stage.clients(service) as clients:
            primary.kill()
            stage.row.check("events are refused", clients.meets(1, stage.events))
            stage.row.check("the replica takes over", clients.reaches(stage.events))
            primary.start()  # a replica from now on
            clients.reaches(stage.events)


def cluster_failover(stage: Stage) -> None:
    with clustered(stage.folder / "valkey") as nodes:
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        with stage.service(redis_url=url) as service, stage.clients(service) as clients:
            nodes[0].kill()
            stage.row.check("events are refused", clients.meets(1, stage.events))
            stage.row.check("the replica takes over", clients.reaches(stage.events))
            nodes[0].start()
            clients.reaches(stage.events)


def cluster_handover(stage: Stage) -> None:
    with clustered(stage.folder / "valkey") as nodes:
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        with stage.service(redis_url=url) as service, stage.clients(service) as clients:
            nodes[3].ask("CLUSTER FAILOVER")
            wait_until(lambda: nodes[3].ask("ROLE")[0] == "master")
            clients.reaches(stage.events)


def replica_killed(stage: Stage) -> None:
    with (
        replicated(stage.folder / "valkey") as (primary, replica),
        stage.service(redis_url=primary.url, redis_replica_url=replica.url) as service,
        stage.clients(service) as clients,
    ):
        replica.kill()
        clients.reaches(stage.events)
        popular = clients.seen["meanwhile"]["popular"]
        stage.row.check("the primary is read instead", popular == 0)


def bad_line(stage: Stage) -> None:
    """A network that is slow, then silent, then breaks connections."""
    moods: tuple[Mood, ...] = ("kind", "silent", "rude")
    with (
        stage.valkey() as valkey,
        slow_proxy(valkey.port) as proxy,
        stage.service(redis_url=f"redis://127.0.0.1:{proxy.port}") as service,
        stage.clients(service) as clients,
    ):
        for mood in moods:
            before = clients.seen["meanwhile"]["events 503"]
            proxy.mood, proxy.delay_s = mood, 1.0 if mood == "kind" else 0.0
            refused = clients.meets(before + REFUSED // 2, stage.events)
            stage.row.check("events are refused", refused)
            proxy.mood, proxy.delay_s = "kind", 0.0
            clients.reaches(stage.events // 3)


def _reads_go_on(stage: Stage, service: Service) -> None:
    """A store that refuses only writes: reads still work."""
    histories = [service.client.get("/users/reader/history") for _ in range(5)]
    stage.row.check("histories are read", all(one.status_code == 200 for one in histories))
    answers: list[httpx.Response] = [service.recommend(user_id="reader", k=3) for _ in range(5)]
    own = [one.status_code == 200 and not one.json()["degraded"] for one in answers]
    stage.row.check("recommendations go by them", all(own))
