"""The files for a browser, in memory, each also compressed and with a tag that names its content.

A file whose type is not known here is not served: it is a mistake. Knows nothing of HTTP beyond the
names of media types.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

PAGE, DOCS = "static", "docs"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """A file. `compressed` is its content as gzip; `tag` differs if the content differs."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str


def assets_of(folder: str) -> dict[str, Asset]:
    """The files of PAGE or DOCS, by name. Raises KeyError for a file of an unknown type."""
    found = {}
    for path in sorted((Path(__file__).parent / folder).iterdir()):
        content = path.read_bytes()
        found[path.name] = Asset(
            content,
            gzip.compress(content, mtime=0),
            MEDIA_TYPES[path.suffix],
            hashlib.blake2b(content, digest_size=12).hexdigest(),
        )
    return found
