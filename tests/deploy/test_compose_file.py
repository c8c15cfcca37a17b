"""docker-compose.yml without an engine: the files it names are there. tests/e2e runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import typer
import yaml

from service.histories.transfer import command_parser
from service.http.error_map import RETRYABLE
from service.schemas.errors import Error
from training.__main__ import app

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_what_is_mounted_from_here_is_here() -> None:
    mounts = [
        str(one) for service in COMPOSE["services"].values() for one in service.get("volumes", ())
    ]
    ours = [one.split(":")[0] for one in mounts if one.startswith("./")]
    assert len(ours) >= 5
    assert [path for path in ours if not (ROOT / path).exists()] == []


def test_the_load_test_replays_users_of_the_demo_that_ships() -> None:
    """The path contains the demo's version, which a new demo changes."""
    [path] = re.findall(
        r"/srv/(models_store/\S+/held_out\.jsonl)", COMPOSE["services"]["loadtest"]["command"]
    )
    assert (ROOT / path).is_file()


def test_the_commands_of_a_night_are_understood() -> None:
    """Compose fills in the defaults; the parsers of the commands read what is left."""
    services = COMPOSE["services"]
    export, nightly = (services[name] for name in ("export", "nightly"))
    assert export["profiles"] == nightly["profiles"] == ["nightly"]
    asked = command_parser().parse_args(export["command"][3:])
    assert str(asked.days) == "/data/interactions"
    words = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in nightly["command"]]
    commands = typer.main.get_group(app).commands
    assert commands["nightly"].make_context("nightly", words[1:]).params["keep"] == 7
    at = {str(one).rsplit(":", 1)[-1] for one in nightly["volumes"]}
    assert {"/runs", "/srv/models_store"} <= at
    assert {"--out=/runs", "--store=/srv/models_store", "--data=/data"} <= set(words)


def test_errors_of_the_gateway_are_like_the_services() -> None:
    config = (ROOT / "deploy" / "compose" / "haproxy.cfg").read_text()
    answers = re.findall(r"status (\d+) content-type application/json string '(.*?)'(.*)", config)
    assert {"400", "408", "500", "502", "503", "504"} <= {status for status, *_ in answers}
    documented = (ROOT / "docs" / "how-to" / "operate.md").read_text()
    for status, body, headers in answers:
        error = json.loads(body)["error"]
        assert set(error) == set(Error.model_fields)
        assert error["retryable"] == (int(status) in RETRYABLE) == ("Retry-After" in headers)
        assert re.search(rf"^\| (\d+, )*{status}\b.*`{error['code']}`", documented, re.M), status
