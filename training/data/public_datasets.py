"""Downloads public data sets. A download continues where it stopped, and is checked at the end.

Raw files go to `<out>/raw/` and are then prepared for `load_dataset`. A file gets its name only
when it is complete. A raw file that somebody put there by hand is not downloaded and needs no
network. Knows the addresses of the data sets, but not what they hold.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx
from rich.console import Console
from rich.progress import (
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from training.data.raw_formats import Prepared, prepare, read_raw
from training.errors import ConfigError, FetchError
from training.printing import progress_bar

ATTEMPTS = 4
PAUSE_S = 1.0  # before the second attempt; twice as long before each later one
TIMEOUT_S = 30.0
HEX_DIGITS = {"md5": 32, "sha256": 64}


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL. `checksum_url`: where its publisher puts the MD5; None if nowhere."""

    url: str
    checksum_url: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class PublicDataset:
    """The raw files of a data set and the terms under which they are published."""

    files: tuple[RemoteFile, ...]
    terms: str


@dataclass(frozen=True)
class Fetched:
    """The result of `fetch`: what it prepared, and the SHA-256 of every raw file, to pin next time.

    unchecked: raw files without a known checksum, or whose checksum could not be read offline
    """

    prepared: Prepared
    sha256: dict[str, str]
    unchecked: tuple[str, ...]
    terms: str


def _amazon_2014(category: str) -> PublicDataset:
    base = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    return PublicDataset(
        (
            RemoteFile(f"{base}/reviews_{category}_5.json.gz"),
            RemoteFile(f"{base}/meta_{category}.json.gz"),
        ),
        "Amazon reviews of 2014, J. McAuley, UCSD: for research; cite McAuley et al., SIGIR 2015",
    )


def _movielens(name: str) -> PublicDataset:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return PublicDataset(
        (RemoteFile(url, checksum_url=f"{url}.md5"),),
        "MovieLens, GroupLens: no commercial use; cite Harper & Konstan, TiiS 2015",
    )


DATASETS: Mapping[str, PublicDataset] = MappingProxyType(
    {
        "amazon2014-beauty": _amazon_2014("Beauty"),
        "amazon2014-sports": _amazon_2014("Sports_and_Outdoors"),
        "amazon2014-toys": _amazon_2014("Toys_and_Games"),
        "ml-1m": _movielens("ml-1m"),
        "ml-latest-small": _movielens("ml-latest-small"),
    }
)


def checksums_of(given: Sequence[str]) -> dict[str, str]:
    """`file=sha256:HEX` as {file: "sha256:HEX"}. Raises ConfigError for anything else."""
    checksums = {}
    for text in given:
        file, separator, digest = text.partition("=")
        if not separator:
            raise ConfigError(f"--checksum wants file=sha256:HEX, got {text!r}")
        checksums[file] = digest
    return checksums


def fetch(
    name: str,
    out: Path,
    *,
    checksums: Mapping[str, str] = MappingProxyType({}),
    datasets: Mapping[str, PublicDataset] = DATASETS,
    console: Console | None = None,
) -> Fetched:
    """Download a data set into `out/raw` and prepare `out` for `load_dataset`.

    checksums: file name -> "sha256:<hex>" or "md5:<hex>"; wins over a published checksum
    console:   where the progress bar goes; standard error by default
    Raises FetchError if a file cannot be downloaded completely; the next call continues where it
    stopped. Raises DataError if a complete file cannot be read.
    """
    if name not in datasets:
        raise FetchError(f"no data set {name!r}; there are: {', '.join(datasets)}")
    files = datasets[name].files
    unknown = checksums.keys() - {file.name for file in files}
    if unknown:
        raise FetchError(f"a checksum is given for {', '.join(sorted(unknown))}, not in {name}")
    pinned = {file: _parse_checksum(text) for file, text in checksums.items()}

    raw = out / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    sha256, unchecked = {}, []
    with (
        _progress(console) as progress,
        httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client,
    ):
        for file in files:
            path = raw / file.name
            was_there = path.exists()
            if not was_there:
                _download(client, file.url, path, progress)
            try:
                expected = pinned.get(file.name) or _published(client, file)
            except httpx.RequestError as error:
                if not was_there:
                    raise FetchError(
                        f"{file.checksum_url} could not be read ({error}); try again, or give the "
                        "checksum"
                    ) from error
                expected = None
            if expected:
                _verify(path, *expected)
            else:
                unchecked.append(file.name)
            sha256[file.name] = _digest(path, "sha256")
    log = read_raw([raw / file.name for file in files])
    return Fetched(prepare(log, out), sha256, tuple(unchecked), datasets[name].terms)


def _download(client: httpx.Client, url: str, path: Path, progress: Progress) -> None:
    """Download to `path`, with a new attempt if a connection breaks.

    `path` exists only when it is complete. Raises FetchError.
    """
    part, validator = path.with_name(path.name + ".part"), path.with_name(path.name + ".validator")
    task = progress.add_task(path.name, total=None)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            _receive(client, url, part, validator, progress, task)
        except httpx.RequestError as error:
            reason = f"{type(error).__name__}: {error}"
        except httpx.HTTPStatusError as error:
            if not error.response.is_server_error:
                raise FetchError(f"{url} answered {error.response.status_code}") from error
            reason = f"it answered {error.response.status_code}"
        except OSError as error:
            raise FetchError(f"{path} cannot be written: {error}") from error
        else:
            part.replace(path)
            validator.unlink(missing_ok=True)
            return
    raise FetchError(
        f"{url} could not be downloaded in {ATTEMPTS} attempts ({reason}); run the command again "
        f"to continue where it stopped, or put the file at {path}"
    )


def _receive(
    client: httpx.Client, url: str, part: Path, validator: Path, progress: Progress, task: TaskID
) -> None:
    """One attempt: append what is missing to `part`, or start again if the file has changed.

    `validator` keeps the ETag or date of the version that `part` began with. Without it, bytes of
    two versions of a file could be joined.
    """
    headers = {"Accept-Encoding": "identity"}
    done = part.stat().st_size if part.exists() and validator.exists() else 0
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": validator.read_text()}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range") == f"bytes */{done}":
                return  # the last attempt ended after the last byte, before the rename
            part.unlink()
            raise httpx.RemoteProtocolError(f"the server has no byte {done} of it")
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise httpx.RemoteProtocolError("the server sent another range than asked for")
        if not resumed:
            done = 0
            _remember(response, validator)
        length = response.headers.get("Content-Length")
        progress.update(task, completed=done, total=done + int(length) if length else None)
        with part.open("ab" if resumed else "wb") as file:
            # Raw, because a .gz must stay a .gz. No chunk size, so that all bytes that came before
            # the connection broke are written.
            for chunk in response.iter_raw():
                file.write(chunk)
                progress.advance(task, len(chunk))


def _remember(response: httpx.Response, validator: Path) -> None:
    etag = response.headers.get("ETag", "")
    mark = response.headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
    if mark:
        validator.write_text(mark)
    else:
        validator.unlink(missing_ok=True)


def _published(client: httpx.Client, file: RemoteFile) -> tuple[str, str] | None:
    """The MD5 that the publisher has put beside the file; None if there is none.

    Raises httpx.RequestError if the publisher cannot be reached.
    """
    if file.checksum_url is None:
        return None
    response = client.get(file.checksum_url)
    found = re.search(r"\b[0-9a-f]{32}\b", response.text.lower()) if response.is_success else None
    return ("md5", found[0]) if found else None


def _parse_checksum(text: str) -> tuple[str, str]:
    kind, _, digest = text.lower().partition(":")
    if not re.fullmatch(rf"[0-9a-f]{{{HEX_DIGITS.get(kind, 0)}}}", digest) or not digest:
        raise FetchError(f"a checksum is sha256:<64 hex digits> or md5:<32 hex digits>, not {text}")
    return kind, digest


def _verify(path: Path, kind: str, expected: str) -> None:
    actual = _digest(path, kind)
    if actual != expected:
        path.rename(path.with_name(path.name + ".wrong"))
        raise FetchError(
            f"the {kind} of {path.name} is {actual}, expected {expected}; it is kept as "
            f"{path.name}.wrong; run the command again for a new download"
        )


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _progress(console: Console | None) -> Progress:
    return progress_bar(
        DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console
    )
