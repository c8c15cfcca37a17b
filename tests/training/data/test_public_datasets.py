"""Downloads from a real HTTP server on 127.0.0.1: broken, continued, changed, wrong, missing."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from raw_files import write_amazon, write_movielens_dat
from rich.console import Console

from training.__main__ import main
from training.data import public_datasets as module
from training.data.interactions import read_interactions
from training.data.public_datasets import DATASETS, PublicDataset, RemoteFile, fetch
from training.errors import FetchError


@dataclass
class Site:
    """The files of a server, how it misbehaves, and the requests it got."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: bool = True
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes sent before each broken answer
    statuses: list[int] = field(default_factory=list)  # answers to give before the real ones
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    sent: int = 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path.lstrip("/"), request.headers["Range"]
        self.asked.append((name, wanted))
        status = self.statuses.pop(0) if self.statuses else 200
        if name not in self.files:
            status = 404
        if status != 200:
            request.send_response(status)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body, start = self.files[name], 0
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        unchanged = request.headers["If-Range"] in (None, etag)
        if wanted and self.ranges and unchanged:
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
        if start >= len(body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(status)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.etags:
            request.send_header("ETag", etag)
        if name.endswith(".gz"):  # as Apache may: the client must not unpack it
            request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        rest = body[start:]
        if self.breaks:
            rest = rest[: self.breaks.pop(0)]
            request.close_connection = True
        request.wfile.write(rest)
        self.sent += len(rest)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


Get = Callable[..., module.Fetched]


@pytest.fixture
def films(site: Site, tmp_path: Path) -> Get:
    """Fetch a MovieLens archive from the site into `tmp_path/out`."""
    (tmp_path / "made").mkdir()
    site.files["ml-1m.zip"] = write_movielens_dat(tmp_path / "made").read_bytes()
    file = RemoteFile(f"{site.url}/ml-1m.zip", checksum_url=f"{site.url}/ml-1m.zip.md5")
    datasets = {"films": PublicDataset((file,), "terms")}

    def get(**options: Any) -> module.Fetched:
        console = Console(file=io.StringIO())
        return fetch("films", tmp_path / "out", datasets=datasets, console=console, **options)

    return get


def raw_names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "out" / "raw").iterdir()}


def test_an_archive_is_fetched_checked_and_prepared(films: Get, site: Site, tmp_path: Path) -> None:
    body = site.files["ml-1m.zip"]
    md5 = hashlib.md5(body).hexdigest()
    site.files["ml-1m.zip.md5"] = f"MD5 (ml-1m.zip) = {md5}\n".encode()
    fetched = films()
    assert fetched.sha256 == {"ml-1m.zip": hashlib.sha256(body).hexdigest()}
    assert fetched.unchecked == ()
    assert (fetched.prepared.users, fetched.prepared.items) == (2, 4)
    assert read_interactions(tmp_path / "out" / "interactions.parquet").num_interactions == 4
    assert raw_names(tmp_path) == {"ml-1m.zip"}
    films()
    assert [name for name, _ in site.asked].count("ml-1m.zip") == 1  # not downloaded again


def test_two_gzip_files_stay_packed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for path in write_amazon(tmp_path / "made"):
        site.files[path.name] = path.read_bytes()
    names = ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
    datasets = {
        "b": PublicDataset(tuple(RemoteFile(f"{site.url}/{name}") for name in names), "terms")
    }
    fetched = fetch("b", tmp_path / "out", datasets=datasets, console=Console(file=io.StringIO()))
    assert fetched.unchecked == names
    for name in names:
        assert (tmp_path / "out" / "raw" / name).read_bytes() == site.files[name]
    assert fetched.prepared.interactions == 5


def test_a_broken_download_goes_on_where_it_stopped(films: Get, site: Site, tmp_path: Path) -> None:
    site.breaks = [100, 50]
    films()
    ranges = [wanted for name, wanted in site.asked if name == "ml-1m.zip"]
    assert ranges == [None, "bytes=100-", "bytes=150-"]
    assert site.sent == len(site.files["ml-1m.zip"])  # no byte came twice
    assert (tmp_path / "out" / "raw" / "ml-1m.zip").read_bytes() == site.files["ml-1m.zip"]


def test_a_second_run_goes_on_where_the_first_gave_up(
    films: Get, site: Site, tmp_path: Path
) -> None:
    site.breaks = [100, 0, 0, 0]
    with pytest.raises(FetchError, match=r"in 4 attempts .* run the command again to continue"):
        films()
    assert raw_names(tmp_path) == {"ml-1m.zip.part", "ml-1m.zip.validator"}
    assert not (tmp_path / "out" / "interactions.parquet").exists()
    films()
    assert site.asked[-2] == ("ml-1m.zip", "bytes=100-")
    assert (tmp_path / "out" / "raw" / "ml-1m.zip").read_bytes() == site.files["ml-1m.zip"]


def test_a_file_that_changed_meanwhile_starts_over(films: Get, site: Site, tmp_path: Path) -> None:
    new, site.files["ml-1m.zip"] = site.files["ml-1m.zip"], b"an older version" * 50
    site.breaks = [100, 0, 0, 0]
    with pytest.raises(FetchError):
        films()
    site.files["ml-1m.zip"] = new
    films()
    assert (tmp_path / "out" / "raw" / "ml-1m.zip").read_bytes() == new


@pytest.mark.parametrize("missing", ["etags", "ranges"])
def test_servers_that_cannot_resume_start_over(
    films: Get, site: Site, tmp_path: Path, missing: str
) -> None:
    setattr(site, missing, False)
    site.breaks = [100]
    films()
    assert (tmp_path / "out" / "raw" / "ml-1m.zip").read_bytes() == site.files["ml-1m.zip"]


def test_a_part_that_is_whole_is_only_renamed(films: Get, site: Site, tmp_path: Path) -> None:
    site.breaks = [100, 0, 0, 0]
    with pytest.raises(FetchError):
        films()
    raw, sent = tmp_path / "out" / "raw", site.sent
    (raw / "ml-1m.zip.part").write_bytes(site.files["ml-1m.zip"])
    films()
    assert site.sent == sent
    assert raw_names(tmp_path) == {"ml-1m.zip"}


def test_a_part_that_is_too_long_starts_over(films: Get, site: Site, tmp_path: Path) -> None:
    site.breaks = [100, 0, 0, 0]
    with pytest.raises(FetchError):
        films()
    (tmp_path / "out" / "raw" / "ml-1m.zip.part").write_bytes(b"x" * 100_000)
    films()
    assert (tmp_path / "out" / "raw" / "ml-1m.zip").read_bytes() == site.files["ml-1m.zip"]


def test_a_busy_server_is_asked_again(films: Get, site: Site) -> None:
    site.statuses = [503, 502]
    assert films().prepared.users == 2


def test_a_missing_file_is_not_asked_for_again(films: Get, site: Site) -> None:
    del site.files["ml-1m.zip"]
    with pytest.raises(FetchError, match=r"ml-1m\.zip answered 404"):
        films()
    assert len(site.asked) == 1


@pytest.mark.parametrize("kind", ["published", "md5", "sha256"])
def test_a_wrong_checksum_is_refused(films: Get, site: Site, tmp_path: Path, kind: str) -> None:
    options = {}
    if kind == "published":
        site.files["ml-1m.zip.md5"] = b"0" * 32 + b"  ml-1m.zip\n"
    else:
        digits = {"md5": 32, "sha256": 64}[kind]
        options = {"checksums": {"ml-1m.zip": f"{kind}:{'0' * digits}"}}
    with pytest.raises(FetchError, match=r"of ml-1m\.zip is [0-9a-f]+, expected 0+; it is kept as"):
        films(**options)
    assert raw_names(tmp_path) == {"ml-1m.zip.wrong"}
    assert not (tmp_path / "out" / "interactions.parquet").exists()
    site.files.pop("ml-1m.zip.md5", None)
    assert films().prepared.users == 2  # downloaded anew


def test_a_pinned_checksum_wins_over_the_published_one(films: Get, site: Site) -> None:
    site.files["ml-1m.zip.md5"] = b"0" * 32
    sha256 = hashlib.sha256(site.files["ml-1m.zip"]).hexdigest()
    fetched = films(checksums={"ml-1m.zip": f"SHA256:{sha256.upper()}"})
    assert fetched.unchecked == ()


def test_a_file_without_any_checksum_is_said_to_be_unchecked(films: Get) -> None:
    assert films().unchecked == ("ml-1m.zip",)


def test_a_file_put_there_by_hand_is_used(films: Get, site: Site, tmp_path: Path) -> None:
    raw = tmp_path / "out" / "raw"
    raw.mkdir(parents=True)
    (raw / "ml-1m.zip").write_bytes(site.files.pop("ml-1m.zip"))
    assert films().prepared.users == 2


def test_a_file_put_there_by_hand_needs_no_network(
    tmp_path: Path, free_port: int, site: Site
) -> None:
    away = f"http://127.0.0.1:{free_port}/ml-1m.zip.md5"
    dataset = PublicDataset((RemoteFile(f"{site.url}/ml-1m.zip", checksum_url=away),), "")
    options = {"datasets": {"f": dataset}, "console": Console(file=io.StringIO())}
    site.files["ml-1m.zip"] = write_movielens_dat(tmp_path).read_bytes()
    with pytest.raises(FetchError, match=r"could not be read .* or give the checksum"):
        fetch("f", tmp_path / "downloaded", **options)
    (tmp_path / "by_hand" / "raw").mkdir(parents=True)
    write_movielens_dat(tmp_path / "by_hand" / "raw")
    assert fetch("f", tmp_path / "by_hand", **options).unchecked == ("ml-1m.zip",)


def test_a_file_put_there_by_hand_must_still_be_the_published_one(
    films: Get, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "out" / "raw").mkdir(parents=True)
    write_movielens_dat(tmp_path / "out" / "raw")
    site.files["ml-1m.zip.md5"] = b"0" * 32
    with pytest.raises(FetchError, match=r"expected 0+"):
        films()


def test_the_command_takes_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*checksums: str) -> int:
        options = [text for checksum in checksums for text in ("--checksum", checksum)]
        arguments = ["training", "fetch", "ml-1m", "--out", str(tmp_path), *options]
        monkeypatch.setattr("sys.argv", arguments)
        return main()

    (tmp_path / "raw").mkdir()
    archive = write_movielens_dat(tmp_path / "raw")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert run(f"ml-1m.zip=sha256:{sha256}") == 0  # pinned, so the network is not asked
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["sha256"], printed["unchecked"]) == ({"ml-1m.zip": sha256}, [])
    assert run("ml-1m.zip") == 2
    assert "--checksum wants file=sha256:HEX" in capsys.readouterr().err
    assert run(f"ml-1m.zip=sha256:{sha256}", "other.zip=md5:" + "0" * 32) == 1
    assert "given for other.zip" in capsys.readouterr().err
    assert run("ml-1m.zip=sha256:" + "0" * 64) == 1
    assert "the sha256 of ml-1m.zip is" in capsys.readouterr().err


def test_a_server_that_is_not_there(tmp_path: Path, free_port: int, site: Site) -> None:
    file = RemoteFile(f"http://127.0.0.1:{free_port}/ml-1m.zip")
    with pytest.raises(FetchError, match=r"ConnectError.* or put the file at .*raw/ml-1m\.zip"):
        fetch(
            "f",
            tmp_path,
            datasets={"f": PublicDataset((file,), "")},
            console=Console(file=io.StringIO()),
        )


def test_wrong_requests_are_refused(films: Get, site: Site, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no data set 'ml-2m'; there are: .*ml-1m"):
        fetch("ml-2m", tmp_path)
    with pytest.raises(FetchError, match=r"given for other\.zip, not in films"):
        films(checksums={"other.zip": "md5:" + "0" * 32})
    for wrong in ("", "abc", "md5:", "md5:12", "sha1:" + "0" * 40, "sha256:" + "g" * 64):
        with pytest.raises(FetchError, match="a checksum is sha256:"):
            films(checksums={"ml-1m.zip": wrong})
    assert site.asked == []


def test_progress_is_shown(films: Get, site: Site, tmp_path: Path) -> None:
    screen = io.StringIO()
    file = RemoteFile(f"{site.url}/ml-1m.zip")
    console = Console(file=screen, force_terminal=True, width=100)
    fetch("f", tmp_path, datasets={"f": PublicDataset((file,), "")}, console=console)
    assert "ml-1m.zip" in screen.getvalue()
    size = len(site.files["ml-1m.zip"])
    assert f"{size}/{size} bytes" in screen.getvalue() or "kB" in screen.getvalue()


def test_the_known_data_sets_have_files_that_can_be_read() -> None:
    for name, dataset in DATASETS.items():
        assert dataset.terms
        for file in dataset.files:
            assert file.url.startswith(
                ("https://snap.stanford.edu/", "https://files.grouplens.org/")
            )
            assert file.name.endswith((".zip", ".json.gz")), name
