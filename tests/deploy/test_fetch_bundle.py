"""The chart's program that fetches a bundle, over real HTTP."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "deploy" / "kubernetes" / "unmask" / "files" / "fetch_bundle.py"
OTHER_HASH = 64 * "0"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the HTTP address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetch(url: str, sha256: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, url, sha256, folder],
        capture_output=True,
        text=True,
        timeout=300,
    )


def packed(path: Path, *members: tuple[str, Path]) -> str:
    """Write a .tar.gz of files with these names; returns its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, source in members:
            tar.add(source, name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bundle_is_fetched_whole_or_not_at_all(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    store = tmp_path / "store"
    store.mkdir()
    [demo] = (ROOT / "models_store" / "demo").iterdir()
    url = f"{address}/demo.tar.gz?signature=secret"
    right = packed(folder / "demo.tar.gz", (f"demo/{demo.name}", demo))

    wrong = fetch(url, OTHER_HASH, store)
    assert (wrong.returncode, list(store.iterdir())) == (1, [])
    assert "SHA-256" in wrong.stderr
    assert "secret" not in wrong.stderr

    for _ in range(2):  # a pod whose init container ran twice
        done = fetch(url, right, store)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in store.iterdir()] == ["demo"]
        found = store / "demo" / demo.name
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            path.name: path.read_bytes() for path in demo.iterdir()
        }
    gone = fetch(f"{address}/nothing.tar.gz?signature=secret", right, store)
    assert gone.returncode == 1
    assert "404" in gone.stderr
    assert "secret" not in gone.stderr


def test_an_archive_cannot_write_elsewhere(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    store = tmp_path / "in" / "store"
    store.mkdir(parents=True)
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    inside = ("shop/1/manifest.json", manifest)
    for members in ([inside, ("../../outside.json", manifest)], [("manifest.json", manifest)]):
        sha256 = packed(folder / "bad.tar.gz", *members)
        done = fetch(f"{address}/bad.tar.gz", sha256, store)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("outside.json"))
    assert not [
        path
        for path in store.rglob("*")
        if not path.name.startswith(".") and ".unpacked" not in str(path)
    ]
