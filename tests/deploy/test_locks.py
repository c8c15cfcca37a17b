"""What images are built from: the locks fit pyproject.toml, and all versions are pinned.

Needs neither Docker nor a registry. `make e2e` tests the images themselves.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CORE = PROJECT["project"]["dependencies"]
WANTED = {
    "build": PROJECT["build-system"]["requires"],
    "cpu": CORE + EXTRAS["cpu"] + EXTRAS["otel"],
    "gpu": CORE + EXTRAS["gpu"] + EXTRAS["otel"],
    "loadtest": EXTRAS["loadtest"],
    "train": CORE + EXTRAS["cpu"] + EXTRAS["train"],
}
IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.14",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def complaints(lock: str, wanted: list[str]) -> list[str]:
    """What a lock lacks or has in another version than `wanted`, and lines without a hash."""
    lines = re.sub(r" \\\n +", " ", lock).splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    versions, wrong = {}, []
    for line in lines:
        if match := re.fullmatch(r"([\w.-]+)==(\S+)( --hash=sha256:[0-9a-f]{64})+", line):
            versions[canonicalize_name(match[1])] = Version(match[2])
        else:
            wrong.append(f"not a version with its hashes: {line}")
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate(IMAGE):
            continue
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement} against {version}; run make lock")
    return wrong


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_has_what_pyproject_asks_for(name: str) -> None:
    assert not complaints((LOCKS / f"{name}.txt").read_text(), WANTED[name])


def test_every_lock_is_known_and_used() -> None:
    assert {file.stem for file in LOCKS.iterdir()} == set(WANTED)
    dockerfile = (ROOT / "Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for name in WANTED:
        assert f"--require-hashes --only-binary :all: -r requirements/{name}.txt" in dockerfile
        assert f"-o deploy/requirements/{name}.txt" in makefile


def test_a_lock_that_does_not_fit_is_noticed() -> None:
    lock = f"one==1.5 \\\n    --hash=sha256:{'0' * 64}\n    # via x\n"
    assert not complaints(lock, ["One>=1.2", "two; sys_platform == 'win32'"])
    assert complaints(lock, ["one>=2"])
    assert complaints(lock, ["two"])
    assert complaints(lock + "--index-url https://example.org/simple\n", [])
    assert complaints(lock + "two @ https://example.org/two.whl\n", [])
    assert complaints("one==1.5\n", [])


def test_bases_are_pinned_and_need_no_frontend() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert not dockerfile.startswith("# syntax")
    [base] = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", dockerfile, re.M)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    stages = set(re.findall(r"^FROM \S+ AS ([\w-]+)$", dockerfile, re.M))
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.M)) <= stages | {"${PYTHON_IMAGE}"}
    assert stages >= {"cpu", "gpu", "loadtest", "train"}
    assert re.findall(r"^FROM .+", dockerfile, re.M)[-1].endswith(" AS cpu")  # the default
    [version] = re.findall(r"^ARG VERSION=(.+)$", dockerfile, re.M)
    assert version == PROJECT["project"]["version"]


def test_compose_pins_images_and_bounds_what_they_use() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" not in service and name not in ("seed", "export"):  # of the service's image
            assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", service["image"]), name
        assert name in ("train", "nightly") or service["deploy"]["resources"]["limits"]["memory"], (
            name
        )
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_what_compose_mounts_is_in_the_clone() -> None:
    mounts = [m for service in COMPOSE["services"].values() for m in service.get("volumes", ())]
    sources = [re.sub(r"^\$\{\w+:-(.+?)\}", r"\1", mount).split(":")[0] for mount in mounts]
    brought = ("./data", "./runs/nights")  # by whoever trains
    folders = [source for source in sources if source.startswith("./") and source not in brought]
    assert len(folders) >= 6
    assert not [folder for folder in folders if not (ROOT / folder).exists()]
    [held_out] = re.findall(r"HELD_OUT:-/srv/(.+?)\}", COMPOSE["services"]["loadtest"]["command"])
    assert (ROOT / held_out).is_file()


def test_every_variable_of_the_example_is_read_by_compose() -> None:
    example = (ROOT / ".env.example").read_text()
    known = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    known |= set(COMPOSE["services"]["api"]["environment"])
    named = set(re.findall(r"^#?([A-Z_]+)=", example, re.M))
    assert len(named) >= 10
    assert not named - known
