"""Bundles with codebooks of every kind: their files, refusals, and items that come and go."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import (
    EMBEDDING_DIMS,
    NUM_CODES,
    NUM_SUBSPACES,
    edit_manifest,
    replace_file,
    tiny_codebook,
    write_tiny_bundle,
)

from service.bundles import Bundle, Item, verify
from service.bundles.manifest import (
    CONTENT_FILES,
    FILES,
    INT8_FILES,
    LAYERS,
    WEIGHTS,
    Manifest,
)
from service.decoding import (
    Codebook,
    Job,
    ProductCodebook,
    RandomCodebook,
    ResidualCodebook,
    RQVAECodebook,
    Schedule,
)
from service.errors import BundleInvalid

DIMS = NUM_SUBSPACES * NUM_CODES
SHARED = set(FILES) - {"rotation.npy", "centroids.npy"}


def residual(levels: int = NUM_SUBSPACES, **fields: Any) -> ResidualCodebook:
    random = np.random.default_rng(9)
    centroids = random.normal(0, 0.2, (levels, NUM_CODES, DIMS)).astype(np.float32)
    return ResidualCodebook(centroids, content=tiny_codebook().content, **fields)


def with_a_digit(**fields: Any) -> ResidualCodebook:
    """Three levels and a digit: as many positions as the tiny graphs have."""
    return residual(NUM_SUBSPACES - 1, collisions="digit", **fields)


def opq_with_a_digit() -> ProductCodebook:
    random = np.random.default_rng(9)
    centroids = random.normal(0, 0.2, (NUM_SUBSPACES - 1, NUM_CODES, 22)).astype(np.float32)
    rotation = np.eye(DIMS, 66, dtype=np.float32)
    content = tiny_codebook().content
    return ProductCodebook(rotation, centroids, content=content, collisions="digit")


def rqvae() -> RQVAECodebook:
    """Three levels of a latent of five numbers, and a digit."""
    random = np.random.default_rng(9)

    def layers(*sizes: int) -> Any:
        pairs = itertools.pairwise(sizes)
        return tuple(random.normal(0, 0.3, (n + 1, m)).astype(np.float32) for n, m in pairs)

    centroids = random.normal(0, 0.2, (NUM_SUBSPACES - 1, NUM_CODES, 5)).astype(np.float32)
    return RQVAECodebook(
        centroids,
        layers(DIMS, 7, 7, 5),
        layers(5, 7, 7, DIMS),
        content=tiny_codebook().content,
        collisions="digit",
    )


LEVEL_WEIGHTS = np.array([1, 0.5, 0.25], np.float32)
KINDS: dict[str, tuple[Codebook, set[str], dict[str, Any]]] = {
    "plain": (
        residual(collisions="reassign"),
        {"centroids.npy"},
        {"kind": "residual", "collisions": "reassign", "normalised": False},
    ),
    "normalised": (
        with_a_digit(weights=LEVEL_WEIGHTS),
        {"centroids.npy", "weights.npy"},
        {"kind": "residual", "collisions": "digit", "normalised": True},
    ),
    "opq": (
        opq_with_a_digit(),
        {"rotation.npy", "centroids.npy"},
        {"kind": "opq", "collisions": "digit", "normalised": False},
    ),
    "rqvae": (
        rqvae(),
        {"centroids.npy", *LAYERS},
        {"kind": "rqvae", "collisions": "digit", "normalised": False},
    ),
    "random": (
        RandomCodebook((NUM_SUBSPACES, NUM_CODES, DIMS)),
        set(),
        {"kind": "random", "collisions": "keep", "normalised": False},
    ),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        name: write_tiny_bundle(folder / name, codebook=codebook)
        for name, (codebook, _, _) in KINDS.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_codebook_comes_back_as_it_was_written(name: str, paths: dict[str, Path]) -> None:
    written, files, part = KINDS[name]
    bundle = Bundle.load(paths[name])
    read = bundle.codebook
    assert type(read) is type(written)
    assert (read.collisions, read.num_positions) == (written.collisions, NUM_SUBSPACES)
    assert (read.num_subspaces, read.vector_dims) == (written.num_subspaces, DIMS)
    assert read.arrays.keys() == written.arrays.keys()
    for array, values in written.arrays.items():
        np.testing.assert_array_equal(read.arrays[array], values)
    content = set() if name == "random" else set(CONTENT_FILES)
    assert set(verify(paths[name]).files) == SHARED | files | content
    assert json.loads((paths[name] / "manifest.json").read_text())["codebook"] == part


def test_nothing_is_said_of_a_codebook_as_it_always_was(bundles_dir: Path) -> None:
    """So such a bundle is read by older releases, and its digest is what it was."""
    manifest = json.loads((bundles_dir / "tiny" / "1" / "manifest.json").read_text())
    assert "codebook" not in manifest
    assert Bundle.load(bundles_dir / "tiny" / "1").manifest.codebook.kind == "opq"


def new_items(names: Sequence[str]) -> list[Item]:
    return [Item(name, f"New {name}", ()) for name in names]


def sids_in(bundle: Bundle, names: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = bundle.catalogue.codes[bundle.catalogue.rows_of(names)].tolist()
    return found


@pytest.mark.parametrize("name", ["plain", "normalised", "opq", "rqvae"])
def test_new_items_share_no_sid_whether_they_come_at_once_or_not(
    name: str, paths: dict[str, Path]
) -> None:
    bundle = Bundle.load(paths[name])
    names = [f"new-{n}" for n in range(12)]
    embeddings = np.random.default_rng(0).normal(size=(12, EMBEDDING_DIMS))
    embeddings[4:] = embeddings[3]  # nine of the same content
    grown = bundle.with_items(new_items(names), embeddings)
    sids = sids_in(grown, names)
    there = set(map(tuple, bundle.catalogue.codes.tolist()))
    assert len({*map(tuple, sids)} - there) == 12

    vectors, _ = bundle.codebook.vectors_of(embeddings, bundle.catalogue.vectors)
    codes = bundle.codebook.codes_of(vectors).tolist()
    if bundle.codebook.collisions == "digit":
        assert [sid[:-1] for sid in sids] == codes
        first = sum(sid == codes[3] for sid in codes[:3])
        assert [sid[-1] for sid in sids[3:]] == list(range(first, first + 9))
    else:
        assert [sid[:-1] for sid in sids] == [own[:-1] for own in codes]

    again = Bundle.load(paths[name])
    for start in (0, 5, 6):
        end = {0: 5, 5: 6, 6: 12}[start]
        again = again.with_items(new_items(names[start:end]), embeddings[start:end])
    assert sids_in(again, names) == sids

    # what is removed leaves its SID to the next of its kind
    back = again.without_items(["new-5"]).with_items(new_items(["new-5"]), embeddings[5:6])
    assert sids_in(back, names) == sids
    other = again.without_items(["new-5", "item-7"]).with_items(new_items(["x"]), embeddings[5:6])
    assert sids_in(other, ["x"]) == sids_in(again, ["new-5"])

    history = back.catalogue.rows_of(["item-5", "new-4"])
    [decoded], _ = back.decoder.decode([Job(history, 250, Schedule((1, 3)), 250)])
    assert sorted(decoded.rows.tolist()) == list(range(212))


def test_an_item_for_which_nothing_is_free_shares_a_sid(paths: dict[str, Path]) -> None:
    """There are 16 digits. The service must not refuse what is written in the store already."""
    bundle = Bundle.load(paths["normalised"])
    names = [f"new-{n}" for n in range(18)]
    grown = bundle.with_items(new_items(names), np.ones((18, EMBEDDING_DIMS)))
    assert [sid[-1] for sid in sids_in(grown, names)] == [*range(16), 0, 0]
    later = grown.without_items(["new-4"]).with_items(
        new_items(["last"]), np.ones((1, EMBEDDING_DIMS))
    )
    assert sids_in(later, ["last"])[0][-1] == 4


def test_random_codes_take_no_new_items(paths: dict[str, Path]) -> None:
    bundle = Bundle.load(paths["random"])
    assert bundle.manifest.content is None
    with pytest.raises(ValueError, match="takes no embeddings: its codes were drawn at random"):
        bundle.with_items(new_items(["new"]), np.ones((1, EMBEDDING_DIMS)))
    assert bundle.without_items(["item-3"]).catalogue.num_items == 199


def npy_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: replace_file(path, name, npy_of(change(np.load(path / name))))


def edited(**fields: Any) -> Callable[[Path], None]:
    return lambda path: edit_manifest(path, lambda manifest: manifest["codebook"].update(fields))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("normalised", changed("weights.npy", lambda a: a[:2]), r"the manifest says \(3,\)"),
        ("normalised", changed("weights.npy", lambda a: a * np.float32(np.nan)), "finite"),
        ("normalised", changed("weights.npy", lambda a: a.astype("f8")), "array of float32"),
        ("normalised", changed("centroids.npy", lambda a: a[:2]), r"says \(3, 16, d_sub\)"),
        ("normalised", changed("centroids.npy", lambda a: a[..., :60]), "dimensions of vectors"),
        ("normalised", edited(normalised=False), "must list exactly"),
        ("normalised", edited(collisions="keep"), r"says \(4, 16, d_sub\)"),
        ("plain", edited(normalised=True), "must list exactly"),
        ("plain", edited(kind="opq"), "must list exactly"),
        ("plain", edited(kind="random"), "random codes have no content"),
        ("plain", edited(kind="rq-vae"), r"codebook\.kind"),
        ("plain", edited(collisions="drop"), r"codebook\.collisions"),
        ("rqvae", changed("to_latent_1.npy", lambda a: a[1:]), "must have 64 inputs and a bias"),
        ("rqvae", changed("to_latent_1.npy", lambda a: a[:, 1:]), "hidden of to_latent_1"),
        ("rqvae", changed("to_latent_3.npy", lambda a: a[:, 1:]), "d_sub of centroids"),
        ("rqvae", changed("from_latent_1.npy", lambda a: a[1:]), "must have 5 inputs and a bias"),
        ("rqvae", changed("from_latent_3.npy", lambda a: a * np.float32(np.nan)), "finite"),
        ("rqvae", edited(kind="residual"), "must list exactly"),
        ("opq", edited(normalised=True), "only residuals can be normalised"),
        ("opq", edited(collisions="keep"), r"says \(4, 16, d_sub\)"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str,
    damage: Callable[[Path], None],
    message: str,
    tmp_path: Path,
) -> None:
    path = write_tiny_bundle(tmp_path / "damaged", codebook=KINDS[name][0])
    damage(path)
    with pytest.raises(BundleInvalid, match=message):
        Bundle.load(path)


def test_a_digit_needs_codes_before_it_and_sids_the_length_that_the_codebook_gives(
    tmp_path: Path,
) -> None:
    path = write_tiny_bundle(tmp_path / "digit", codebook=with_a_digit())
    edit_manifest(path, lambda manifest: manifest.update(num_subspaces=1))
    with pytest.raises(BundleInvalid, match="must have at least 2 subspaces"):
        Bundle.load(path)
    short = replace(with_a_digit(), collisions="keep")
    with pytest.raises(BundleInvalid, match="as many codes as the codebook gives"):
        write_tiny_bundle(tmp_path / "short", codebook=short)
    assert not (tmp_path / "short").exists()


def test_the_page_about_the_format_leaves_nothing_out() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/reference/bundle.md").read_text()
    files = {*FILES, *LAYERS, *CONTENT_FILES, *INT8_FILES, WEIGHTS, "manifest.json"}
    assert {name for name in {*files, *Manifest.model_fields} if f"`{name}`" not in page} == set()
