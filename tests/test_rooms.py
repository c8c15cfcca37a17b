"""The plan of the house holds: floors, doors, sizes, and the pictures in docs/structure.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rooms import (
    FLOORS,
    ROOT,
    Import,
    Plan,
    exported,
    faults,
    files_in_a_line,
    picture,
    plan_of,
    too_much,
)

STRUCTURE = ROOT / "docs" / "structure.md"
DOCSTRING = re.compile(r'\A"""(.*?)"""', re.S)


@pytest.fixture(params=FLOORS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return plan_of(request.param)


def test_the_plan_is_kept(plan: Plan) -> None:
    assert plan.arrows
    assert faults(plan) == []


def test_every_room_says_what_it_is(plan: Plan) -> None:
    """5 to 15 lines: what it provides, what it must not know, in which order to read it."""
    for folder in plan.folders:
        init = ROOT.joinpath(*plan.package.split("."), *folder.split("."), "__init__.py")
        found = DOCSTRING.match(init.read_text())
        assert found, init
        lines = [line for line in found[1].splitlines() if line.strip()]
        assert 2 <= len(lines) <= 15, (init, len(lines))
        modules = {path.stem for path in init.parent.glob("*.py")} - {"__init__", "__main__"}
        unnamed = {name for name in modules if f"`{name}`" not in found[1]}
        assert not unnamed, f"{init} does not say when to read {unnamed}"


@pytest.mark.parametrize(
    ("mark", "made", "package"),
    [("rooms", picture, package) for package in FLOORS]
    + [("files", files_in_a_line, package) for package in (*FLOORS, "loadtest")],
)
def test_the_structure_shows_what_is_there(
    mark: str, made: Callable[[Plan], str], package: str
) -> None:
    """The picture is what the imports say, and every file is listed with what it says of itself."""
    plan = plan_of(package)
    start, end = f"<!-- {mark} {package} -->\n", f"<!-- /{mark} -->"
    text = STRUCTURE.read_text()
    assert text.count(start) == 1
    before, _, rest = text.partition(start)
    shown, _, after = rest.partition(end)
    if os.environ.get("UPDATE_DOCS") == "1":
        STRUCTURE.write_text(before + start + made(plan) + end + after)
        shown = made(plan)
    assert shown == made(plan), "run UPDATE_DOCS=1 pytest tests/test_rooms.py"


def test_every_file_that_the_structure_names_exists() -> None:
    """Every path is from the top; in a row that has named the folder the file's name is enough."""
    by_hand = re.sub(r"<!-- files .*?<!-- /files -->", "", STRUCTURE.read_text(), flags=re.S)
    named = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|yml|yaml|cfg|md))`", by_hand)
    assert len(named) > 100
    bare = {
        path.name for package in (*FLOORS, "tests") for path in folder_of(package).rglob("*.py")
    }
    assert [n for n in named if not ((ROOT / n).exists() or ("/" not in n and n in bare))] == []


def folder_of(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))


def with_import(plan: Plan, arrow: tuple[str, str], source: str, name: str) -> Plan:
    one = Import(f"{plan.package}.{arrow[0]}.module", source, name)
    return replace(plan, arrows={**plan.arrows, arrow: (one,)})


def test_a_broken_plan_is_noticed() -> None:
    plan = plan_of("service")
    up = with_import(plan, ("telemetry", "http"), "service.http", "create_app")
    assert [fault for fault in faults(up) if fault.startswith("telemetry -> http")]
    past = with_import(plan, ("http", "batching"), "service.batching.lanes", "Lane")
    assert [fault for fault in faults(past) if "imports Lane" in fault]
    inside = with_import(plan, ("http", "batching"), "service.batching", "Lane")
    assert [fault for fault in faults(inside) if "imports Lane" in fault]
    homeless = replace(plan, folders={**plan.folders, "attic": 1})
    assert [fault for fault in faults(homeless) if "attic has no floor" in fault]
    crowded = replace(plan, folders={**plan.folders, "http": 13})
    assert too_much(crowded)
    assert too_much(replace(plan, root_modules=tuple("abcdefghijk")))


def test_what_a_room_exports_is_read() -> None:
    assert "create_app" in exported("service.http")
