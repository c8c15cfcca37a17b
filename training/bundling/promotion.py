"""A bundle after its run: a new default setting, and the copy into a store.

A bundle in a store never changes, because services may be serving it and its version stands for
its bytes. Promotion is approval: if there is a key, the bundle is signed here. Knows nothing of
how a bundle was made.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from service.bundles import Manifest, verify, write_manifest
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
