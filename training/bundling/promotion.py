"""A bundle after its run: a new default setting, the copy into a store, and the end of old copies.

A bundle in a store never changes, because services may be serving it and its version stands for
its bytes. Promotion is approval: if there is a key, the bundle is signed here. Knows nothing of
how a bundle was made.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from service.bundles import (
    CURRENT,
    Manifest,
    configured_path,
    verify,
    versions_of,
    write_manifest,
)
from service.errors import BundleInvalid
from training.errors import DataError
from training.evaluation import Grid


def check_not_promoted(bundle: Path, manifest: Manifest) -> None:
    """Raise DataError if the bundle lies in a store, `<name>/<version>`: it must not change."""
    bundle = bundle.resolve()
    if (bundle.parent.name, bundle.name) == (manifest.name, manifest.version):
        raise DataError(
            f"{bundle} is a promoted bundle, which never changes; set the default of the run's "
            "bundle, with a version of its own, and promote that"
        )


def set_default(bundle: Path, grid: Grid) -> Manifest:
    """Write the grid and its choice into a bundle's manifest; nothing else changes.

    Raises BundleInvalid, or DataError for a promoted bundle.
    """
    manifest = verify(bundle)
    check_not_promoted(bundle, manifest)
    facts = {**manifest.facts, "grid": grid.as_json()}
    manifest = manifest.model_copy(update={"decoding": grid.default, "facts": facts})
    return write_manifest(bundle, manifest)


def promote(bundle: Path, store: Path, key: str | None = None) -> tuple[Manifest, Path]:
    """Verify a bundle and copy it to `<store>/<name>/<version>`.

    The copy has a temporary name until it is complete. Its manifest gets a digest if it has none,
    and a signature if there is a key.
    Raises BundleInvalid, or FileExistsError if that version is there already.
    """
    manifest = verify(bundle)
    target = store / manifest.name / manifest.version
    if target.exists():
        raise FileExistsError(f"{target} exists; a version is never overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in manifest.files:
        shutil.copyfile(bundle / name, temporary / name)
    write_manifest(temporary, manifest, key)
    manifest = verify(temporary, key)
    temporary.rename(target)
    return manifest, target


def in_service(store: Path, name: str) -> Path | None:
    """The folder of the version that a service loads by this name; None if there is no version.

    Raises BundleInvalid if that cannot be told: a version that cannot be read might be the newest,
    and without it there might seem to be nothing in service.
    """
    folder = store / name
    if (folder / CURRENT).is_file():
        return configured_path(store, name)
    readable = set(versions_of(store, name))
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in readable:
            raise BundleInvalid(
                f"{path} has no readable manifest.json, so it cannot be told what is in service; "
                f"mend or remove that folder, or write a version into {folder / CURRENT}"
            )
    return configured_path(store, name) if readable else None


def put_in_service(path: Path) -> None:
    """Let the name of a promoted bundle mean this version, where it does not by its date.

    It does not if `<name>/current` names another one, or if a newer one was promoted meanwhile.
    """
    folder = path.parent
    if configured_path(folder.parent, folder.name) != path:
        temporary = folder / f".{CURRENT}.part"
        temporary.write_text(f"{path.name}\n")
        temporary.replace(folder / CURRENT)


def prune(store: Path, name: str, keep: int, removable: Collection[str]) -> list[str]:
    """Remove old versions of a bundle from a store; the versions removed.

    Those stay: the `keep` newest, the one in service, and the one before it, which a rollback
    needs. removable: no others are removed
    A replica reads the version that the name meant when it began. So call this before a promotion
    and not after it: then what is removed here was not in service since the promotion before.
    """
    for half_removed in (store / name).glob(".*.removed"):
        shutil.rmtree(half_removed)
    versions, serving = versions_of(store, name), in_service(store, name)
    kept = set(versions[:keep])
    if serving is not None and serving.name in versions:
        place = versions.index(serving.name)
        kept.update(versions[place : place + 2])
    removed = [version for version in versions if version in removable and version not in kept]
    for version in removed:
        hidden = (store / name / version).rename(store / name / f".{version}.removed")
        shutil.rmtree(hidden)
    return removed
