"""The rules of the house: imports, sizes of modules, names, docstrings, files.

Every rule is a function from a source file (or path) to its violations. It is applied to the
repository and, in this file, to a bad example: a rule that cannot fail protects nothing.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "training", "loadtest")
MAX_LINES = 450
MAX_FILE_BYTES = 3_000_000
MAX_DEMO_BYTES = 3_500_000

TRAINING_ONLY = {
    "torch",
    "faiss",
    "polars",
    "sklearn",
    "scipy",
    "onnx",
    "onnxscript",
    "matplotlib",
}
KERNEL_MAY_IMPORT = {"numpy", "numba", "llvmlite", "onnxruntime", "service.decoding"}
TRAINING_MAY_IMPORT = {"service.bundles", "service.decoding", "service.errors"}
# docs/decisions/011: the benchmarks time the kernel itself.
BENCH = "loadtest.bench"
BENCH_MAY_IMPORT = {"service.bundles", "service.decoding", "service.errors"}
# A library that belongs to one idea is imported by the room that is this idea, no others.
ONLY_IN = {
    "fastapi": {"service.http"},
    "starlette": {"service.http"},
    "httptools": {"service.http.wire.parser"},
    "uvicorn": {"service.__main__", "service.http.wire.protocol"},
    "redis": {"service.histories"},
    "opentelemetry": {"service.telemetry.traces"},
    "prometheus_client": {"service.telemetry.merged_metrics", "service.telemetry.metrics"},
    "onnxruntime": {"service.decoding.network.onnx_denoiser"},
}
DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc"}
UNWANTED_SUFFIXES = {".ipynb", ".pkl", ".pickle", ".pt", ".pth", ".parquet", ".joblib"}
DEVELOPERS_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt)/\w")


@dataclass(frozen=True)
class Module:
    """A Python file of the repository, under its dotted name."""

    name: str
    source: str

    def inside(self, *packages: str) -> bool:
        return any(_within(self.name, package) for package in packages)

    def imports(self) -> Iterator[str]:
        """Dotted names of everything imported anywhere in the file: `a.b` for `from a import b`."""
        for node in ast.walk(ast.parse(self.source)):
            match node:
                case ast.Import():
                    yield from (alias.name for alias in node.names)
                case ast.ImportFrom():
                    package = node.module or ""
                    if node.level:
                        parents = self.name.split(".")[: -node.level]
                        package = ".".join([*parents, *filter(None, [package])])
                    yield from (f"{package}.{alias.name}" for alias in node.names)
                case ast.Call(
                    func=ast.Attribute(attr="import_module") | ast.Name(id="__import__"),
                    args=[ast.Constant(value=str() as name), *_],
                ):
                    yield name


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _within_any(name: str, packages: set[str]) -> bool:
    return any(_within(name, package) for package in packages)


def forbidden_imports(module: Module) -> list[str]:
    """Imports that break the one arrow: training -> {bundles, decoding}, loadtest -> HTTP.

    loadtest.bench -> {bundles, decoding}: it times the kernel. What rooms of one package may import
    of each other is in rooms.py.
    """
    return [name for name in module.imports() if not _may_import(module, name)]


DRAWS = {"loadtest.sweeping.plot", "loadtest.sweeping.labels"}


def _may_import(module: Module, name: str) -> bool:
    top = name.partition(".")[0]
    if top in ONLY_IN and module.inside("service") and not module.inside(*ONLY_IN[top]):
        return False
    if module.inside("service.decoding"):
        return top in sys.stdlib_module_names or _within_any(name, KERNEL_MAY_IMPORT)
    if module.inside("service"):
        return top not in TRAINING_ONLY | {"training", "loadtest", "locust"}
    if module.inside("training"):
        return top != "loadtest" and (top != "service" or _within_any(name, TRAINING_MAY_IMPORT))
    if module.inside(BENCH):
        if (module.name, name) == ("loadtest.bench.flops", "onnx"):
            return True
        if top == "service":
            return _within_any(name, BENCH_MAY_IMPORT)
    elif _within(name, BENCH):
        return False
    if module.name in DRAWS and top == "matplotlib":
        return True
    return top not in {"service", "training"} | TRAINING_ONLY


def too_long(module: Module) -> list[str]:
    lines = len(module.source.splitlines())
    return [f"{lines} lines"] if lines > MAX_LINES else []


def undocumented(module: Module) -> list[str]:
    return [] if ast.get_docstring(ast.parse(module.source)) else ["no module docstring"]


def unwanted_name(path: PurePosixPath) -> list[str]:
    """A name that says nothing, such as utils, or a kind of file that does not belong here."""
    drawers = [part for part in path.parts if PurePosixPath(part).stem.lower() in DRAWERS]
    return drawers + [path.suffix] * (path.suffix in UNWANTED_SUFFIXES)


def developers_paths(text: str) -> list[str]:
    return DEVELOPERS_PATH.findall(text)


@cache
def committed_files() -> tuple[PurePosixPath, ...]:
    """Every file that is, or would be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    paths = (PurePosixPath(name) for name in listing.split("\0") if name)
    return tuple(path for path in paths if (ROOT / path).is_file())


@cache
def modules() -> tuple[Module, ...]:
    paths = [path for path in committed_files() if path.suffix == ".py"]
    names = (".".join(path.with_suffix("").parts) for path in paths)
    return tuple(
        Module(name, (ROOT / path).read_text()) for name, path in zip(names, paths, strict=True)
    )


def package_modules() -> list[Module]:
    return [module for module in modules() if module.inside(*PACKAGES)]


def test_there_is_something_to_check() -> None:
    for package in PACKAGES:
        assert [module for module in modules() if module.inside(package)], package


@pytest.mark.parametrize("rule", [forbidden_imports, too_long, undocumented])
def test_packages_keep_the_rules(rule) -> None:
    broken = {module.name: found for module in package_modules() if (found := rule(module))}
    assert not broken


def test_tests_have_docstrings() -> None:
    tests = [module for module in modules() if module.inside("tests")]
    assert not [module.name for module in tests if undocumented(module)]


def test_no_file_is_a_drawer() -> None:
    assert not {path: found for path in committed_files() if (found := unwanted_name(path))}


def test_no_developers_path_is_committed() -> None:
    broken = {}
    for path in committed_files():
        text = (ROOT / path).read_bytes().decode("latin-1")  # graphs and arrays hold text too
        if found := developers_paths(text):
            broken[path] = found
    assert not broken


def test_committed_files_are_small() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in committed_files()}
    assert not {path: size for path, size in sizes.items() if size > MAX_FILE_BYTES}
    for name in ("demo", "demo-maskgr", "demo-tiger", "demo-liger"):
        demo = PurePosixPath("models_store") / name
        demo_sizes = [size for path, size in sizes.items() if demo in path.parents]
        assert demo_sizes, f"the bundle {name} is not there"
        assert sum(demo_sizes) < MAX_DEMO_BYTES


@pytest.mark.parametrize("entry", ["service.http.app", "service.__main__", "service.demo"])
def test_the_server_loads_nothing_that_trains(entry: str) -> None:
    """Everything that is imported at run time, also by libraries, not only by our files."""
    program = f"import sys, {entry}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "service" in loaded
    loaded.discard("scipy")  # numba asks whether it is there; serving does not install it
    assert not loaded & (TRAINING_ONLY | {"training", "loadtest", "locust"})


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.recommending.recommender", "import torch"),
        (
            "service.recommending.recommender",
            "def late():\n    from training.families.mdgr.model import Model",
        ),
        ("service.recommending.recommender", "from ...training import families"),
        ("service.recommending.recommender", "import importlib\nimportlib.import_module('faiss')"),
        ("service.recommending.recommender", "from fastapi import Request"),
        ("service.batching.batcher", "import redis.asyncio"),
        ("service.decoding.search.beam_search", "import structlog"),
        ("service.decoding.search.beam_search", "from service.bundles.bundle import Bundle"),
        ("service.decoding.search.beam_search", "from ...bundles import Bundle"),
        ("service.decoding.__init__", "from ..bundle import Bundle"),
        ("service.decoding.search.beam_search", "import onnxruntime"),
        (
            "training.families.export",
            "from service.recommending.recommender import Recommender",
        ),
        ("training.families.export", "from service import recommending"),
        ("training.families.export", "from loadtest import replay"),
        ("loadtest.replay", "from service.schemas.recommend import RecommendRequest"),
        ("loadtest.replay", "import training"),
        ("loadtest.replay", "from service.decoding import Decoder"),
        ("loadtest.replay", "from loadtest.bench.synthetic import RandomDenoiser"),
        ("loadtest.bench.decode_bench", "from service.recommending.recommender import Recommender"),
        ("loadtest.bench.decode_bench", "from training.evaluation.evaluation import evaluate"),
        ("loadtest.bench.decode_bench", "import onnx"),
        ("loadtest.bench.flops", "import torch"),
        ("loadtest.sweep", "import matplotlib"),
        ("loadtest.sweeping.plot", "import scipy"),
        ("loadtest.decoder", "from service.decoding import Decoder"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str) -> None:
    assert forbidden_imports(Module(name, source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.recommending.recommender", "from service.decoding.schedule import Schedule"),
        (
            "service.decoding.search.beam_search",
            "import heapq\nimport numpy as np\nfrom . import trie",
        ),
        ("service.decoding.__init__", "from .beam import decode"),
        (
            "training.families.export",
            "from service.bundles.bundle import write_bundle\nimport torch",
        ),
        ("loadtest.replay", "import httpx"),
        ("loadtest.bench.decode_bench", "from service.bundles.bundle import Bundle"),
        ("loadtest.bench.decode_bench", "from loadtest.bench.flops import FlopCounter"),
        ("loadtest.bench.synthetic", "from service.decoding import Catalogue"),
        ("loadtest.bench.flops", "def late():\n    import onnx"),
        ("loadtest.sweeping.plot", "from matplotlib.figure import Figure"),
        ("loadtest.sweeping.labels", "from matplotlib.axes import Axes"),
    ],
)
def test_an_allowed_import_is_not(name: str, source: str) -> None:
    assert not forbidden_imports(Module(name, source))


def test_other_violations_are_found() -> None:
    assert too_long(Module("service.long", "pass\n" * (MAX_LINES + 1)))
    assert undocumented(Module("service.bare", "import numpy"))
    assert unwanted_name(PurePosixPath("service/utils.py"))
    assert unwanted_name(PurePosixPath("service/common/arrays.py"))
    assert unwanted_name(PurePosixPath("docs/first_look.ipynb"))
    assert developers_paths("the data is in " + "/".join(["", "home", "ada", "data"]))
    assert not developers_paths("COPY service /app/service and https://example.org/work/x")


@pytest.mark.parametrize(
    "package", ["service.decoding.network.onnx_denoiser", "training.bundling.quantise"]
)
def test_onnx_runtime_reports_to_nobody(package: str) -> None:
    """It decides this when it is imported. An operator may set it otherwise."""
    program = f"""
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"), flush=True)
            os._exit(0)  # what is imported after it cannot change what it saw
sys.meta_path.insert(0, Watch())
import {package}
"""
    for asked, expected in ((None, "1"), ("0", "0")):
        environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        environment |= {"ORT_DISABLE_TELEMETRY": asked} if asked else {}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout.split()) == (0, [expected]), done.stderr
