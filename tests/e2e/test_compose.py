"""The images and docker-compose.yml on a real Docker engine: `make e2e`.

Builds the service's image and starts everything. Then it does what operators do, and what goes
wrong in practice, while clients ask all the time: none of them may be refused. Tests run in the
order of this file and share one installation, which is removed at the end. If there is no registry
to pull from, tests/e2e/offline has an engine with stand-ins.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import find_free_port
from steady_load import Load, steady_load

from loadtest.clients.held_out import read_held_out

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
[DEMO] = (ROOT / "models_store" / "demo").glob("*/")
USERS = read_held_out(DEMO / "held_out.jsonl")
IMAGE = "unmask:e2e"
PROJECT = "unmask-e2e"
CLIENTS = 4
PAUSE_S = 0.02
MB = 1_000_000
MAX_IMAGE_MB = 420  # above the base image

# What a bare container is run with: nothing can be written, nothing reached, no right had.
BARE = ["--rm", "--read-only", "--network=none", "--cap-drop=ALL", "--memory=512m"]


@dataclass(frozen=True)
class Stack:
    """The installation: its address, and docker compose with its settings."""

    url: str
    prometheus: str
    locust: str
    environment: Mapping[str, str]

    def run(self, *command: str, timeout: float = 300) -> str:
        """Output of a command. If the command fails, the failure shows its output."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        return self.run("docker", "compose", *arguments, timeout=timeout)

    def services(self) -> set[str]:
        return set(self.compose("config", "--services").split())

    def replicas(self) -> list[str]:
        return self.compose("ps", "--quiet", "api").split()

    def scale(self, replicas: int) -> list[str]:
        self.compose("up", "--detach", "--wait", "--no-recreate", "--scale", f"api={replicas}")
        return self.replicas()

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    ports = {name: find_free_port() for name in ("GATEWAY", "PROMETHEUS", "GRAFANA", "LOCUST")}
    ours = {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "COMPOSE_ENV_FILES": os.devnull,  # not the .env of an installation of somebody's own
        "API_IMAGE": IMAGE,
        **{f"{name}_PORT": str(port) for name, port in ports.items()},
    }
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    found = Stack(urls["GATEWAY"], urls["PROMETHEUS"], urls["LOCUST"], theirs | ours)
    found.compose("down", "--volumes", "--remove-orphans")
    try:
        found.compose("build", "api", timeout=1200)
        say(found.compose("up", "--detach", "--wait"), found.compose("ps", "--all"))
        yield found
    finally:
        if "E2E_KEEP" not in os.environ:
            found.compose("--profile", "*", "down", "--volumes", "--remove-orphans")
    assert not found.run(
        "docker",
        "ps",
        "--all",
        "--quiet",
        "--filter",
        f"label=com.docker.compose.project={PROJECT}",
    )


def say(*texts: str) -> None:
    """Print into the log of the run (pytest -s)."""
    for text in filter(None, texts):
        print(f"\n{text.rstrip()}")


def eventually(is_so: Callable[[], Any], within_s: float = 60) -> Any:
    """Wait until `is_so` returns something true, and return that."""
    until = time.monotonic() + within_s
    while not (found := is_so()):
        assert time.monotonic() < until, f"not within {within_s} s: {is_so.__name__}"
        time.sleep(0.5)
    return found


# --- images ---------------------------------------------------------------------------------------


def test_the_image_is_small_and_holds_what_serves(stack: Stack) -> None:
    layers = stack.run("docker", "history", "--no-trunc", "--human=false", "--format",
                       "{{.Size}} {{.CreatedBy}}", IMAGE)  # fmt: skip
    own = layers[: layers.index("org.opencontainers.image.title")]  # the newest are first
    megabytes = sum(int(line.split(" ", 1)[0]) for line in own.splitlines()) // MB
    say(f"The serving image has {megabytes} MB above its base.")
    assert megabytes < MAX_IMAGE_MB

    wanted = ["service", "numpy", "numba", "onnxruntime", "opentelemetry.sdk"]
    unwanted = ["torch", "faiss", "polars", "onnx", "training", "loadtest", "locust"]
    program = f"""
import importlib.util, json, os, shutil
has = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps([
    [name for name in {wanted} if not has(name)],
    [name for name in {unwanted} if has(name)],
    [name for name in ("gcc", "cc", "clang", "ld") if shutil.which(name)],
    os.getuid(),
    os.environ["ORT_DISABLE_TELEMETRY"],
]))"""
    found = json.loads(stack.run("docker", "run", *BARE, IMAGE, "python", "-c", program))
    assert found == [[], [], [], 10001, "1"]

    config = json.loads(stack.run("docker", "image", "inspect", IMAGE))[0]["Config"]
    assert config["User"] == "10001"
    assert config["Labels"]["org.opencontainers.image.title"] == "Unmask"
    assert "Healthcheck" in config


@pytest.mark.parametrize(
    ("processor", "compiles"),
    [
        ({}, False),
        ({"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}, False),
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}, True),
    ],
    ids=["same processor", "an older one", "one of no level"],
)
def test_machine_code_comes_with_the_image(
    stack: Stack, processor: dict[str, str], compiles: bool
) -> None:
    """On a processor of no level, or if the cache cannot be read, the code is compiled again."""
    variables = [f"--env={name}={value}" for name, value in processor.items()]
    folder = f"/srv/models_store/demo/{DEMO.name}"
    said = stack.run(
        "docker",
        "run",
        *BARE,
        *variables,
        IMAGE,
        "python",
        "-m",
        "service.loading.compile_ahead",
        folder,
    )
    say(said)
    [number] = re.findall(r"Compiled (\d+) functions", said)
    assert (int(number) > 0) == compiles


# --- up -------------------------------------------------------------------------------------------


def test_it_recommends_to_users_whose_histories_are_seeded(stack: Stack) -> None:
    hits = 0
    for user in USERS[:20]:
        answer = ask(stack.url, user.user_id)
        assert answer["served_by"] == "model"
        assert answer["history"]["source"] == "store"
        hits += user.rank_in([item["item_id"] for item in answer["items"]]) is not None
    say(json.dumps(answer)[:600], f"The item that came next is among the 10 for {hits} of 20.")
    assert hits >= 3
    assert "0 users; 200 had one already" in stack.compose("run", "--rm", "--no-deps", "seed")


def ask(url: str, user_id: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/recommend", json={"user_id": user_id, "k": 10}, timeout=30)
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def test_replicas_are_not_administered_through_the_gateway(stack: Stack) -> None:
    for answer in (httpx.get(f"{stack.url}/metrics"), httpx.post(f"{stack.url}/admin/drain")):
        assert answer.status_code == 404
        assert "ask a replica" in answer.json()["error"]["message"]
    assert httpx.get(f"{stack.url}/health/ready").status_code == 200


def targets(stack: Stack) -> Counter[str]:
    """Prometheus targets that are up, by job."""
    return Counter(one["metric"]["job"] for one in stack.query("up == 1"))


def test_prometheus_scrapes_and_has_the_rules(stack: Stack) -> None:
    eventually(lambda: targets(stack) == {"unmask": 1, "gateway": 1})
    say(f"Prometheus targets up: {dict(targets(stack))}")
    eventually(lambda: stack.query("sum(unmask_recommend_requests_total) > 0"))
    groups = httpx.get(f"{stack.prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    assert not [rule["name"] for rule in rules if rule.get("lastError")]


def test_grafana_has_data_source_and_dashboards(stack: Stack) -> None:
    if "grafana" not in stack.services():
        pytest.skip("there is no image of Grafana here")
    url = f"http://admin:admin@127.0.0.1:{stack.environment['GRAFANA_PORT']}"
    assert httpx.get(f"{url}/api/datasources/uid/prometheus/health").json()["status"] == "OK"
    found = httpx.get(f"{url}/api/search", params={"type": "dash-db"}).json()
    committed = (ROOT / "deploy/monitoring/grafana/dashboards").glob("*.json")
    assert {one["uid"] for one in found} == {json.loads(f.read_text())["uid"] for f in committed}


# --- accidents and operators ----------------------------------------------------------------------


@contextlib.contextmanager
def under_load(stack: Stack, what: str) -> Iterator[Load]:
    """Clients that ask through the gateway; each answer must be 200 and from the model."""

    def recommend(client: httpx.Client, number: int) -> None:
        user = USERS[number % len(USERS)]
        answer = client.post("/recommend", json={"user_id": user.user_id, "k": 10})
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        assert len(answer.json()["items"]) == 10
        time.sleep(PAUSE_S)

    with steady_load(httpx.URL(stack.url), [recommend] * CLIENTS) as load:
        more(load, 50)
        yield load
        more(load, 200)
    say(f"{what}: {load.total} requests, none failed.")


def more(load: Load, requests: int) -> None:
    """Wait until this many more requests are answered, or until one is not."""
    goal = load.total + requests
    eventually(lambda: load.total >= goal or load.has_failed)


def answered_by(stack: Stack, replicas: list[str]) -> list[int]:
    """How many recommendations each replica has answered, by its own metrics."""
    program = "from httpx import get; print(get('http://127.0.0.1:8000/metrics').text)"
    pattern = r'unmask_http_requests_total\{method="POST",route="/recommend",status="200"\} (\d+)'
    texts = [stack.run("docker", "exec", one, "python", "-c", program) for one in replicas]
    return [sum(map(int, re.findall(pattern, text))) for text in texts]


def test_two_replicas_share_the_load(stack: Stack) -> None:
    with under_load(stack, "Scaled from 1 to 2 replicas"):
        replicas = stack.scale(2)
        assert len(replicas) == 2
    before = answered_by(stack, replicas)
    with under_load(stack, "On 2 replicas"):
        pass
    counts = [now - then for now, then in zip(answered_by(stack, replicas), before, strict=True)]
    say(f"Answered by each replica: {counts}")
    assert min(counts) > 0.3 * sum(counts)
    eventually(lambda: targets(stack)["unmask"] == 2)
    say(f"Prometheus targets up: {dict(targets(stack))}")


def test_a_killed_replica_fails_no_request(stack: Stack) -> None:
    [victim, survivor] = stack.replicas()
    with under_load(stack, "A replica killed") as load:
        stack.run("docker", "kill", victim)
        more(load, 200)
    assert stack.replicas() == [survivor]
    with under_load(stack, "Back to 2 replicas"):
        assert len(stack.scale(2)) == 2


def test_a_rolling_restart_fails_no_request(stack: Stack) -> None:
    old = set(stack.replicas())
    with under_load(stack, "Rolling restart of 2 replicas"):
        say(stack.run("deploy/compose/roll"))
    new = set(stack.replicas())
    assert len(new) == 2
    assert not old & new


def test_a_store_that_restarts_loses_nothing(stack: Stack) -> None:
    stack.compose("kill", "--signal", "SIGKILL", "redis")
    assert ask(stack.url, USERS[0].user_id)["degraded_reasons"] == ["history_unavailable"]
    stack.compose("up", "--detach", "--wait", "--no-recreate", "--no-deps", "redis")
    eventually(lambda: not ask(stack.url, USERS[0].user_id)["degraded"])
    assert ask(stack.url, USERS[0].user_id)["history"]["length"] == len(USERS[0].history)


def test_without_a_replica_the_gateway_says_so(stack: Stack) -> None:
    replicas = len(stack.replicas())
    stack.compose("stop", "api")
    answer = httpx.post(f"{stack.url}/recommend", json={"user_id": "u"}, timeout=30)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"
    assert answer.headers["Retry-After"] == "1"
    stack.scale(replicas)
    assert ask(stack.url, USERS[0].user_id)["served_by"] == "model"


def test_locust_has_its_page(stack: Stack) -> None:
    stack.compose("build", "loadtest", timeout=1200)
    stack.compose("up", "--detach", "--wait", "--no-deps", "loadtest")
    with httpx.Client(base_url=stack.locust, timeout=30) as client:
        assert "Locust" in client.get("/").text
        begun = client.post("/swarm", data={"user_count": 5, "spawn_rate": 5})
        assert begun.json()["success"], begun.text

        def answers() -> bool:
            return client.get("/recall").json()["answers"] >= 50

        eventually(answers)
        client.get("/stop")
        figures = client.get("/recall").json()
    say(f"Locust: {json.dumps({k: v for k, v in figures.items() if k != 'stages'})}")
    assert figures["failures"] == figures["degraded"] == 0
    assert figures["recall@10"] > 0.1


def test_training_runs_in_its_image(stack: Stack) -> None:
    stack.compose("build", "train", timeout=1800)
    world = "--out /runs/world --users 600 --items 300 --noise 0 --seed 1"
    stack.compose("run", "--rm", "train", "synthesize", *world.split())
    run = "--preset tiny --data /runs/world --out /runs/tiny"
    said = stack.compose("run", "--rm", "train", "run", *run.split(), timeout=900)
    report = json.loads(said.splitlines()[-1])
    say(f"Trained in a container: {json.dumps(report)[:300]}")
