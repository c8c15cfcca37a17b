"""`python fetch_bundle.py URL SHA256 FOLDER`: unpack a .tar.gz of <name>/<version>/ into a folder.

It runs before the service, in the service's image, and knows nothing of the service, which checks
the hashes of the bundle again. Nothing is unpacked unless the whole archive has the given hash. It
tries once: Kubernetes starts it again, with longer and longer pauses.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import urllib.request
from pathlib import Path

TIMEOUT_S = 30  # for each read, not for the whole download
CHUNK_BYTES = 1 << 20


def fetch(url: str, sha256: str, folder: Path) -> None:
    """Download and unpack; a second call changes nothing. Raises OSError, ValueError, TarError."""
    archive, unpacked = folder / ".archive", folder / ".unpacked"
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, archive.open("wb") as file:
        while chunk := answer.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        archive.unlink()
        raise ValueError(f"the archive's SHA-256 is {digest.hexdigest()}, not {sha256}")
    shutil.rmtree(unpacked, ignore_errors=True)  # left by an interrupted run
    with tarfile.open(archive, "r:gz") as tar:
        tar.extractall(unpacked, filter="data")  # no files outside, and no links to there
    manifests = list(unpacked.glob("*/*/manifest.json"))
    if not manifests:
        raise ValueError("the archive has no <name>/<version>/manifest.json")
    for manifest in manifests:
        version = manifest.parent
        target = folder / version.parent.name / version.name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        version.rename(target)
    shutil.rmtree(unpacked)
    archive.unlink()


def main(url: str, sha256: str, folder: str) -> int:
    """Returns the exit status. The reason is a sentence on stderr, without the URL."""
    try:
        fetch(url, sha256, Path(folder))
    except (OSError, ValueError, tarfile.TarError) as error:
        print(f"fetch_bundle: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
