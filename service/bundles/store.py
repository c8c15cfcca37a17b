"""The bundle store: where bundles are on disk, in a folder laid out as <name>/<version>/.

A reference is name@version, or a name. A name means the version in the file <name>/current, or else
the newest version. Nothing that a client sends is a path. Of a bundle's content, it knows only the
date.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import structlog

from service.bundles.manifest import REFERENCE, read_fields, read_regular
from service.errors import BundleInvalid, BundleNotFound

CURRENT = "current"
MAX_VERSION_BYTES = 1000

log = structlog.get_logger()


def configured_path(store: Path, reference: str) -> Path:
    """The folder that UNMASK_BUNDLE names: by name@version, a name, or a path.

    Raises BundleInvalid when there is no such bundle.
    """
    if "/" in reference:
        return Path(reference)
    if "@" in reference:
        return stored_path(store, reference)
    current = store / reference / CURRENT
    if current.is_file():
        try:
            version = read_regular(current, MAX_VERSION_BYTES).decode().strip()
        except (OSError, ValueError) as error:
            raise BundleInvalid(f"{current} cannot be read; it should hold a version") from error
        return stored_path(store, f"{reference}@{version}")
    return _newest(store, reference)


def stored_path(store: Path, reference: str) -> Path:
    """The folder of `name@version` in a store: `<store>/<name>/<version>`.

    Raises BundleInvalid when the reference is malformed. The path can never leave the store.
    """
    if not REFERENCE.fullmatch(reference):
        raise BundleInvalid(f"{reference!r} is not of the form name@version")
    name, version = reference.split("@")
    return store / name / version


def existing_path(store: Path, reference: str) -> Path:
    """Like `stored_path`, but raises BundleNotFound when no bundle is there."""
    path = stored_path(store, reference)
    if not (path / "manifest.json").is_file():
        raise BundleNotFound("the store has no such bundle")
    return path


def reference_at(path: Path) -> str:
    """The name@version in the manifest of a folder. Raises BundleInvalid."""
    fields = read_fields(path)
    reference = f"{fields.get('name')}@{fields.get('version')}"
    if not REFERENCE.fullmatch(reference):
        raise BundleInvalid(f"bundle {path}: manifest.json names no name@version")
    return reference


@cache  # log it once: the store is looked at again and again
def _say_skipped(manifest: Path) -> None:
    log.warning("bundle_skipped", manifest=str(manifest), reason="not readable")


def versions_of(store: Path, name: str) -> list[str]:
    """The versions of a bundle in a store, newest first: by the dates in their manifests."""
    versions: list[tuple[str, str]] = []  # created_at, version
    for manifest in (store / name).glob("*/manifest.json"):
        if manifest.parent.name.startswith("."):  # a bundle that is being written or removed
            continue
        try:
            created_at = str(read_fields(manifest.parent)["created_at"])
        except (BundleInvalid, KeyError):
            _say_skipped(manifest)
            continue
        versions.append((created_at, manifest.parent.name))
    return [version for _, version in sorted(versions, reverse=True)]


def _newest(store: Path, name: str) -> Path:
    versions = versions_of(store, name)
    if not versions:
        raise BundleInvalid(
            f"there is no bundle {name!r} in {store} with a readable manifest.json; "
            f"set UNMASK_BUNDLE or UNMASK_BUNDLES_DIR{_others_in(store)}"
        )
    return store / name / versions[0]


def _others_in(store: Path) -> str:
    """The names that are there, as the end of a sentence; a misspelt one is seen at once."""
    folders = store.iterdir() if store.is_dir() else ()
    names = sorted(folder.name for folder in folders if versions_of(store, folder.name))
    return f" (there are: {', '.join(names)})" if names else ""
