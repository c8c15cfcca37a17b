"""The lower bounds in pyproject.toml are true: the demo runs on the lowest versions they allow.

Asks PyPI, and compiles the search for the lowest numba, in a folder of its own: nothing of the
environment that runs the tests is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
[DEMO_BUNDLE] = (ROOT / "models_store" / "demo").iterdir()
WITH_ALL_WHEELS = (3, 11)  # newer Pythons have none of some of the lowest versions
COMPILE = """
import gc
import sys
from pathlib import Path
from service.batching import LatencyModel
from service.bundles import Bundle
from service.loading.priming import prime
gc.disable()  # compiling takes a fifth longer with it
prime(Bundle.load(Path(sys.argv[1])), LatencyModel())
"""


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def lower_bounds() -> Iterator[tuple[str, Version]]:
    for requirement in map(Requirement, PROJECT["dependencies"] + cpu_extra()):
        if requirement.marker is None or requirement.marker.evaluate():
            [bound] = [one for one in requirement.specifier if one.operator in (">=", "~=")]
            yield canonicalize_name(requirement.name), Version(bound.version)


def cpu_extra() -> list[str]:
    extra: list[str] = PROJECT["optional-dependencies"]["cpu"]
    return extra


def test_the_demo_finds_its_answer_on_the_lowest_versions(free_port: int, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    python = tmp_path / "venv" / "bin" / "python"
    run(uv, "venv", "--python", sys.executable, tmp_path / "venv")
    lowest = ("--resolution", "lowest-direct", "--only-binary", ":all:")
    asked = ("--requirements", "pyproject.toml", "--extra", "cpu")
    run(uv, "pip", "install", "--python", python, *lowest, *asked)

    listed = run(uv, "pip", "list", "--python", python, "--format", "json")
    installed = {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed)}
    for name, bound in lower_bounds():
        found = Version(installed[name])
        assert found == bound or (found > bound and sys.version_info[:2] != WITH_ALL_WHEELS), name

    # Compiled before it is served: on a busy machine the demo would not wait long enough. For this
    # processor only: what is asked is whether these versions can do it. With optimisation: without
    # it compiling is hardly quicker, and each priming takes ten times as long.
    machine_code = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    run(python, "-c", COMPILE, DEMO_BUNDLE, **machine_code)
    served = {"ONCE": "1", "PORT": str(free_port), "UNMASK_HISTORY_DIR": str(tmp_path / "history")}
    printed = run(python, "-m", "service.demo", **machine_code, **served)
    document = json.loads(printed.splitlines()[-1])
    answer = document["response"]
    assert answer["served_by"] == "model"
    assert document["came_next"] in [item["item_id"] for item in answer["items"]]
    assert 3 <= document["hits"] <= document["users"]
