"""The documents are true: their blocks run; settings, metrics, targets and links are all there.

Every code block of the pages in PAGES names, in an HTML comment above it, how it is checked:
`demo-output` and `curl-output` are compared with the running demo; `curl`, `requests`, `filter` and
`python` are run; of `commands` every target, module and flag is looked up. The block `system` is
run by the tests of training. With UPDATE_DOCS=1 (`make docs`) the outputs in README.md and the
generated tables of docs/ are written again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.settings import PREFIX, Settings
from service.telemetry.metrics import Metrics
from training.preset import load_config

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = (
    README,
    *(ROOT / "docs" / "how-to" / f"{name}.md" for name in ("train", "serve", "extend")),
)
CHECKS = {
    "demo",
    "demo-output",
    "curl",
    "curl-output",
    "explanation",
    "requests",
    "filter",
    "items",
    "refusal",
    "shop",
    "trending",
    "python",
    "commands",
    "preset",
    "system",
}
MOST_README_LINES = 150
UPDATE = os.environ.get("UPDATE_DOCS") == "1"
DOCUMENTED_URL = "http://127.0.0.1:8000"
BLOCK = re.compile(
    r"^(?:<!-- (?P<check>[\w-]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
VOLATILE = {"recommendation_id", "timings_ms"}
GENERATED = re.compile(r"(?<=<!-- generated -->\n).*(?=<!-- /generated -->)", re.S)


@dataclass(frozen=True)
class Block:
    check: str | None
    language: str
    text: str


def blocks_of(document: str) -> list[Block]:
    return [Block(**match.groupdict()) for match in BLOCK.finditer(document)]


def blocks(check: str) -> list[str]:
    """The texts of all blocks of that kind, in all pages."""
    found = [block for page in PAGES for block in blocks_of(page.read_text())]
    texts = [block.text for block in found if block.check == check]
    assert texts, f"no page has a block marked {check}"
    return texts


def rewrite(check: str, text: str) -> None:
    """Replace the only block of that kind, which is in the README."""
    [old] = blocks(check)
    before, after = README.read_text().split(f"<!-- {check} -->\n")
    after = after.replace(f"\n{old}```", f"\n{text}```", 1)
    README.write_text(f"{before}<!-- {check} -->\n{after}")


def unchecked(document: str) -> list[str]:
    """Blocks that do not say how they are checked, and fences that are no block."""
    found = blocks_of(document)
    wrong = [block.text for block in found if block.check not in CHECKS]
    fences = len(re.findall(r"^ *```", document, re.M))
    return wrong + [f"{fences} fences for {len(found)} blocks"] * (fences != 2 * len(found))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_how_it_is_checked(page: Path) -> None:
    assert unchecked(page.read_text()) == []


def test_a_block_that_is_not_checked_is_noticed() -> None:
    assert unchecked("```bash\nmake demo\n```\n")
    assert unchecked("<!-- looked-at -->\n```bash\nmake demo\n```\n")
    assert unchecked("- a list\n  ```bash\n  make demo\n  ```\n")
    assert not unchecked("<!-- commands -->\n```bash\nmake demo\n```\n")


def test_every_kind_of_block_is_in_a_page() -> None:
    assert {block.check for page in PAGES for block in blocks_of(page.read_text())} == CHECKS


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_README_LINES


# --- the first screen -----------------------------------------------------------------------------


def test_the_demo_prints_what_the_readme_shows(demo: Any) -> None:
    assert blocks("demo") == ["make demo\n"]
    assert "-m service.demo" in make("--dry-run", "--always-make", "demo")
    printed = demo.output.replace(demo.url, DOCUMENTED_URL)
    if UPDATE:
        rewrite("demo-output", printed)
    [shown] = blocks("demo-output")
    assert steady(shown) == steady(printed)


def steady(output: str) -> list[str]:
    """Lines of the demo's output without the blank ones and without the time."""
    output = re.sub(r"in \d+ ms", "in N ms", output)
    return [line.rstrip() for line in output.splitlines() if line.strip()]


def test_the_curl_answers_what_the_readme_shows(demo: Any) -> None:
    [command] = blocks("curl")
    [answer] = answers_to(command, demo.url)
    if UPDATE:
        rewrite("curl-output", laid_out(answer))
    [shown] = blocks("curl-output")
    assert differences(json.loads(shown), answer) == []


def test_the_requests_are_answered(demo: Any) -> None:
    [commands] = blocks("requests")
    stored, recommended = answers_to(commands, demo.url)
    assert (stored["accepted"] + stored["duplicates"], stored["rejected"]) == (1, [])
    assert (recommended["served_by"], recommended["history"]["source"]) == ("model", "request")
    assert "item-0920" not in [item["item_id"] for item in recommended["items"]]


def test_the_explanation_is_of_that_item(demo: Any) -> None:
    [command] = blocks("explanation")
    [told] = answers_to(command, demo.url)
    assert told["item"]["item_id"] == "item-0920"
    assert (told["rank"] is None) == (told["reason"] is not None)
    assert told["sentences"]
    assert [step["call"] for step in told["steps"]] == list(range(1, len(told["steps"]) + 1))


def test_the_filter_is_obeyed(demo: Any) -> None:
    [command] = blocks("filter")
    [answer] = answers_to(command, demo.url)
    folder = ROOT / "models_store" / answer["bundle"].replace("@", "/")
    lines = (folder / "items.jsonl").read_text().splitlines()
    categories = {item["item_id"]: item["categories"] for item in map(json.loads, lines)}
    found = [category for item in answer["items"] for category in categories[item["item_id"]]]
    assert (answer["served_by"], len(found)) == ("model", 10)
    assert all(category.startswith("Books > ") or category == "Kitchen > Tea" for category in found)


def test_the_rules_of_a_shop_are_obeyed(demo: Any) -> None:
    [commands] = blocks("shop")
    ranked, capped, boosted = (answer["items"] for answer in answers_to(commands, demo.url))
    body = {"user_id": "u1", "history": ["item-0916"], "metadata": True}
    plain = httpx.post(f"{demo.url}/recommend", json=body).json()["items"]
    assert {item["item_id"] for item in ranked} == {"item-0920", "item-0942", "item-0001"}
    shelves = Counter(category for item in capped for category in item["categories"])
    assert (len(capped), max(shelves.values())) == (10, 2)
    assert (boosted[0]["item_id"], boosted[0]["pinned"]) == ("item-0001", True)
    assert (len(boosted), boosted[1]["pinned"]) == (10, False)
    paintings, before = (
        sum("Crafts > Painting" in item["categories"] for item in items if not item["pinned"])
        for items in (boosted, plain)
    )
    assert paintings > before, "the boost raises them"


def test_what_is_refused_is_not_recommended(demo: Any) -> None:
    [commands] = blocks("refusal")
    stored, recommended, kept = answers_to(commands, demo.url)
    assert stored["accepted"] + stored["duplicates"] == 1
    assert "item-0920" in kept["refused"]
    assert len(recommended["items"]) == 10
    assert "item-0920" not in [item["item_id"] for item in recommended["items"]]


def test_items_are_listed(demo: Any) -> None:
    [command] = blocks("items")
    [answer] = answers_to(command, demo.url)
    assert [item["title"].count("Merino Yarn") for item in answer["items"]] == [1, 1, 1]
    assert answer["next"] == f"0:{answer['items'][-1]['item_id']}"
    assert answer["warnings"] == ["filter.category: no item has 'Offers'"]


def test_what_is_trending_is_listed(demo: Any) -> None:
    [command] = blocks("trending")
    [answer] = answers_to(command, demo.url)
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    shelves = Counter(category for item in answer["items"] for category in item["categories"])
    assert (max(shelves.values()) <= 2, answer["degraded"]) == (True, False)


def answers_to(commands: str, url: str) -> list[dict[str, Any]]:
    """Run documented curl commands against the demo; the JSON documents they print."""
    if shutil.which("curl") is None:
        pytest.skip("install curl to run the documented requests")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace(DOCUMENTED_URL, url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    decoder, text, answers = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    return answers


def laid_out(answer: dict[str, Any]) -> str:
    """JSON with one line for each field and for each entry of a list of objects."""
    lines = []
    for key, value in answer.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n    ".join(json.dumps(entry) for entry in value)
            lines.append(f'  "{key}": [\n    {entries}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences(shown: Any, real: Any, where: str = "") -> list[str]:
    """Where two JSON answers differ: in fields, types or values; volatile values may differ."""
    if isinstance(shown, dict) and isinstance(real, dict):
        found = [f"{where}.{key}: only one has it" for key in shown.keys() ^ real.keys()]
        for key in shown.keys() & real.keys():
            found += differences(shown[key], real[key], f"{where}.{key}")
        return found
    if isinstance(shown, list) and isinstance(real, list):
        if len(shown) != len(real):
            return [f"{where}: {len(shown)} entries shown, {len(real)} real"]
        pairs = enumerate(zip(shown, real, strict=True))
        return [text for i, pair in pairs for text in differences(*pair, f"{where}[{i}]")]
    if type(shown) is not type(real):
        return [f"{where}: {type(shown).__name__} shown, {type(real).__name__} real"]
    if isinstance(shown, float):
        return [] if ".timings_ms" in where or abs(shown - real) < 0.01 else [f"{where}: {real}"]
    return [] if shown == real or VOLATILE & set(where.split(".")) else [f"{where}: {real!r}"]


@pytest.mark.parametrize(
    "real",
    [
        {"items": [{"item_id": "a", "rank": 1, "score": -1.0}]},
        {"items": [{"item_id": "a", "rank": 1}], "k": 1},
        {"items": [{"item_id": "b", "rank": 1, "score": -1.0}], "k": 1},
        {"items": [{"item_id": "a", "rank": 1, "score": -1.5}], "k": 1},
        {"items": [{"item_id": "a", "rank": 1, "score": None}], "k": 1},
        {"items": [], "k": 1},
    ],
)
def test_a_different_answer_is_noticed(real: dict[str, Any]) -> None:
    shown = {"items": [{"item_id": "a", "rank": 1, "score": -1.0}], "k": 1}
    assert differences(shown, real)
    assert not differences(shown, shown)


# --- commands and Python --------------------------------------------------------------------------


def test_python_blocks_run(demo: Any) -> None:
    for text in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", text.replace(DOCUMENTED_URL, demo.url)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr


def test_the_preset_can_be_used(tmp_path: Path) -> None:
    [text] = blocks("preset")
    (tmp_path / "shop.toml").write_text(text)
    config = load_config(str(tmp_path / "shop.toml"))
    assert config.interactions.targets == ("transaction",)


def test_commands_exist() -> None:
    commands = [command for text in blocks("commands") for command in commands_in(text)]
    assert [complaint for command in commands for complaint in complaints(command)] == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert complaints("make dmeo")
    assert complaints("python -m loadtest.replay --hold-out x")
    assert complaints("python -m loadtest.rerun --users 3")
    assert complaints("UNMASK_BUNDEL=x make serve")
    assert complaints("npm start")
    assert complaints("docker compose up --scale apis=2")
    assert complaints("docker compose --profile loadtests up")
    assert not complaints("UNMASK_BUNDLE=x python -m loadtest.replay --users 3")


def commands_in(text: str) -> list[str]:
    """The commands of a shell block: joins continued lines, splits at `&&`, drops comments."""
    lines = text.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [command for line in lines for command in line.split("&&")]


def complaints(command: str) -> list[str]:
    """What is wrong with a command: an unknown setting, target, module, verb or flag."""
    words = shlex.split(command, comments=True)
    wrong = []
    while words and re.fullmatch(r"\w+=.*", words[0]):
        name = words.pop(0).partition("=")[0]
        if name.startswith(PREFIX) and name not in setting_names() | {"UNMASK_DATA_DIR"}:
            wrong.append(f"{name} is no setting")
    match words:
        case ["make", *arguments]:
            targets = [argument for argument in arguments if "=" not in argument]
            wrong += [f"no make target {t}" for t in targets if t not in make_targets()]
        case ["python" | ".venv/bin/python", "-m", module, *arguments]:
            verb = [a for a in arguments[:1] if not a.startswith("-")]
            known = re.findall(r"--[\w-]+", help_of(module, *verb))
            flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
            wrong += [f"{module} knows no {flag}" for flag in flags if flag not in known]
            wrong += [f"{module} has no help"] * (not known)
        case ["torchrun", "--standalone", "--nproc-per-node", number, *arguments] if int(number):
            wrong += complaints(shlex.join(["python", *arguments]))
        case ["docker", "compose", *arguments]:
            services, profiles = compose_names()
            for option, value in itertools.pairwise(arguments):
                if option == "--scale" and value.partition("=")[0] not in services:
                    wrong.append(f"no service {value} in docker-compose.yml")
                if option == "--profile" and value not in profiles:
                    wrong.append(f"no profile {value} in docker-compose.yml")
        case [".", ".venv/bin/activate"]:
            pass
        case _:
            wrong.append(f"cannot check {command!r}")
    return wrong


def compose_names() -> tuple[set[str], set[str]]:
    """Services and profiles. tests/e2e tries Docker's own verbs and options."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = [name for service in services.values() for name in service.get("profiles", ())]
    return set(services), set(profiles)


@cache
def help_of(module: str, *verb: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *verb, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout if done.returncode == 0 else ""


def make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def test_every_make_target_is_in_the_readme() -> None:
    assert make_targets() >= {"demo", "check", "train", "serve", "faults", "rooms", "help"}
    assert not [t for t in make_targets() if not re.search(rf"\bmake {t}\b", README.read_text())]


# --- generated tables -----------------------------------------------------------------------------


def setting_names() -> set[str]:
    return {PREFIX + name.upper() for name in Settings.model_fields}


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if field.default_factory is not None:
            default = ""  # the sentence says which
        elif isinstance(field.default, tuple):
            default = f"`{','.join(field.default)}`"
        else:
            default = "" if field.default is None else f"`{field.default}`"
        meaning = (field.description or "").replace("<", r"\<")
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def metrics_table() -> str:
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    metrics = Metrics()
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):
            [family] = metric.describe()
            name = family.name + "_total" * (family.type == "counter")
            labels = ", ".join(metric._labelnames)
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("document", "table"),
    [
        ("docs/reference/settings.md", settings_table()),
        ("docs/reference/metrics.md", metrics_table()),
    ],
)
def test_generated_tables_are_current(document: str, table: str) -> None:
    path = ROOT / document
    if UPDATE:
        path.write_text(GENERATED.sub(lambda _: table, path.read_text()))
    found = GENERATED.search(path.read_text())
    assert found is not None
    assert found.group() == table, f"run UPDATE_DOCS=1 pytest tests/test_docs.py for {document}"


def test_the_tables_leave_nothing_out() -> None:
    assert all(f"`{name}`" in settings_table() for name in setting_names())
    exposed = re.findall(r"^# TYPE (unmask_\w+) ", Metrics().text().decode(), re.M)
    names = [name for name in exposed if not name.endswith("_created")]
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in metrics_table()] == []


# --- links ----------------------------------------------------------------------------------------


def broken_links(document: Path, text: str) -> list[str]:
    return [link for link in LINK.findall(text) if not (document.parent / link).exists()]


def test_relative_links_exist() -> None:
    listing = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documents = [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]
    assert README in documents
    broken = {str(d): found for d in documents if (found := broken_links(d, d.read_text()))}
    assert not broken
    assert broken_links(README, "see [nothing](docs/nothing.md)")
