"""Other kinds of codebooks: what a level gains, SIDs that are not shared, files, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from service.decoding import Codebook, ContentProjection, ResidualCodebook, RQVAECodebook
from training.codebooks import (
    CollisionReport,
    fit_codebook,
    load_codebook,
    rqvae,
    save_codebook,
    sids_of,
)
from training.codebooks.rqvae import RQVAE, _revive
from training.config import CodebookConfig
from training.errors import DataError, FitDiverged

CONFIG = CodebookConfig(kind="residual", num_subspaces=4, num_codes=12, kmeans_iterations=10)
PLAIN = CONFIG.model_copy(update={"normalise_residuals": False})
BY_NAME = {
    "normalised": CONFIG,
    "plain": PLAIN,
    "opq": CodebookConfig(num_subspaces=4, num_codes=12, opq_iterations=3, kmeans_iterations=5),
    "rqvae": CodebookConfig(
        kind="rqvae", num_subspaces=4, num_codes=12, kmeans_iterations=5, rqvae_epochs=100
    ),
    "random": CodebookConfig(kind="random", num_subspaces=2, num_codes=20),
}
BOTH = pytest.mark.parametrize("name", ["normalised", "plain"])
ALL = pytest.mark.parametrize("name", BY_NAME)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Items in clusters, of different norms; some of the same content."""
    random = np.random.default_rng(5)
    found = random.normal(size=(20, 16))[random.integers(0, 20, 400)]
    found = found + random.normal(0, 0.3, (400, 16))
    found[100:140] = found[60:100]
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def fitted(vectors: np.ndarray) -> dict[str, Codebook]:
    return {name: fit_codebook(vectors, config) for name, config in BY_NAME.items()}


def squared_error(codebook: Codebook, vectors: np.ndarray) -> float:
    rebuilt = codebook.vectors_with(codebook.codes_of(vectors))
    return float(np.square(rebuilt - vectors).sum(axis=1).mean())


@BOTH
def test_every_level_lowers_the_error(name: str, vectors: np.ndarray) -> None:
    errors = [float(np.square(vectors).sum(axis=1).mean())]
    for levels in range(1, 5):
        config = BY_NAME[name].model_copy(update={"num_subspaces": levels})
        errors.append(squared_error(fit_codebook(vectors, config), vectors))
    assert all(after < 0.95 * before for before, after in pairwise(errors))


def test_plain_levels_rebuild_better_and_normalised_ones_use_codes_more_evenly(
    fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    plain, normalised = fitted["plain"], fitted["normalised"]
    assert squared_error(plain, vectors) < squared_error(normalised, vectors)
    bits = [
        CollisionReport.of(codebook.codes_of(vectors), 12).entropy_bits
        for codebook in (plain, normalised)
    ]
    assert sum(bits[0][1:]) < sum(bits[1][1:])


def test_a_level_more_leaves_the_levels_before_as_they_are(
    fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    three = fit_codebook(vectors, PLAIN.model_copy(update={"num_subspaces": 3}))
    np.testing.assert_array_equal(three.codes_of(vectors), fitted["plain"].codes_of(vectors)[:, :3])


def test_weights_are_the_best_ones(fitted: dict[str, Codebook], vectors: np.ndarray) -> None:
    normalised = fitted["normalised"]
    assert isinstance(normalised, ResidualCodebook)
    assert normalised.weights is not None
    best = squared_error(normalised, vectors)
    for level in range(4):
        for factor in (0.95, 1.05):
            weights = normalised.weights.copy()
            weights[level] *= factor
            assert squared_error(replace(normalised, weights=weights), vectors) > best
    plain = fitted["plain"]
    assert isinstance(plain, ResidualCodebook)
    assert plain.weights is None


@pytest.mark.parametrize("name", ["normalised", "plain", "rqvae"])
def test_a_refit_is_the_same_whatever_the_threads(
    name: str, fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    with threadpool_limits(2):
        again = fit_codebook(vectors, BY_NAME[name])
    assert again.arrays.keys() == fitted[name].arrays.keys()
    for array, value in again.arrays.items():
        np.testing.assert_array_equal(value, fitted[name].arrays[array])


def test_an_rqvae_rebuilds_vectors_and_its_codes_are_those_of_the_network_that_was_trained(
    fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    """torch has float32, the service float64: only codes of near ties may differ."""
    codebook = fitted["rqvae"]
    assert isinstance(codebook, RQVAECodebook)
    assert squared_error(codebook, vectors) < 0.25 * np.square(vectors).sum(axis=1).mean()
    report = CollisionReport.of(sids_of(codebook, vectors, seed=7), 12)
    assert min(report.codes_used) >= 11
    assert 80 <= report.collided_items < 400, "forty items have a twin"
    assert (
        sids_of(codebook, vectors, seed=7)[100:140].tolist()
        == codebook.codes_of(vectors[60:100]).tolist()
    )

    model = RQVAE(16, 4, 12)
    with torch.no_grad():
        model.levels.copy_(torch.from_numpy(codebook.centroids))
        for network, layers in (
            (model.to_latent, codebook.to_latent),
            (model.from_latent, codebook.from_latent),
        ):
            for linear, layer in zip(network[::2], layers, strict=True):
                linear.weight.copy_(torch.from_numpy(layer[:-1].T))
                linear.bias.copy_(torch.from_numpy(layer[-1]))
        loss, codes, seen = model(torch.from_numpy(vectors))
        rebuilt = model.from_latent(model.levels[torch.arange(4), codes].sum(dim=1))
    np.testing.assert_allclose(seen[0].numpy(), codebook.latents_of(vectors), rtol=1e-4, atol=1e-5)
    same = (codes.numpy() == codebook.codes_of(vectors)).all(axis=1)
    assert same.mean() > 0.99
    expected = codebook.vectors_with(codebook.codes_of(vectors))
    np.testing.assert_allclose(rebuilt.numpy()[same], expected[same], rtol=1e-3, atol=1e-4)
    assert loss.item() > squared_error(codebook, vectors)


def test_the_gradient_of_a_rebuilt_vector_passes_the_levels_straight_through() -> None:
    torch.manual_seed(0)
    model = RQVAE(6, 2, 3)
    with torch.no_grad():
        model.levels.normal_()
    vectors = torch.randn(5, 6)
    loss, codes, seen = model(vectors)
    loss.backward()
    chosen = model.levels.detach()[torch.arange(2), codes]
    # a centroid is pulled to the residuals that chose it, by its own level's error alone
    wanted = torch.zeros_like(model.levels)
    for level in range(2):
        wanted[level].index_add_(0, codes[:, level], 2 * (chosen[:, level] - seen[level]) / 5)
    torch.testing.assert_close(model.levels.grad, wanted)
    # the last layer before the latent: as if the latent had been the sum of the centroids
    latent = model.to_latent(vectors).detach().requires_grad_()
    offset = (chosen.sum(dim=1) - latent).detach()
    rebuilt = (model.from_latent(latent + offset) - vectors).square().sum(dim=1)
    left = [latent, latent - chosen[:, 0]]
    pulled = sum((left[n] - chosen[:, n]).square().sum(dim=1) for n in range(2))
    (rebuilt + 0.25 * pulled).mean().backward()
    assert latent.grad is not None
    torch.testing.assert_close(model.to_latent[-1].bias.grad, latent.grad.sum(dim=0))


def test_unused_codes_of_an_rqvae_begin_again_at_residuals() -> None:
    model, seen = RQVAE(6, 2, 3), torch.randn(2, 7, 32)
    unused = torch.tensor([[False, True, False], [False, False, True]])
    _revive(model, unused, seen)
    for level, code in ((0, 1), (1, 2)):
        assert (model.levels[level, code] == seen[level]).all(dim=1).any()
    assert not model.levels[~unused].any()


def test_an_rqvae_whose_loss_is_not_finite_ends(
    vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rqvae, "LEARNING_RATE", 1e30)
    with pytest.raises(FitDiverged, match=r"the loss of the RQ-VAE is (inf|nan) in epoch 2"):
        fit_codebook(vectors, BY_NAME["rqvae"])


def test_random_codes_are_drawn_by_the_seed(
    fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    sids = sids_of(fitted["random"], vectors, seed=7)
    assert (sids.shape, sids.dtype) == ((400, 2), np.uint16)
    assert np.bincount(sids.ravel(), minlength=20).min() > 20
    np.testing.assert_array_equal(sids_of(fitted["random"], vectors, seed=7), sids)
    assert (sids_of(fitted["random"], vectors, seed=8) != sids).any()
    assert fitted["random"].content is None


@ALL
@pytest.mark.parametrize("collisions", ["digit", "reassign"])
def test_no_sid_is_shared_and_the_popular_item_keeps_its_own(
    name: str, collisions: str, fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    vectors = vectors[40:140]  # few enough for the codes of one position
    shared = sids_of(fitted[name], vectors, seed=7)
    sids = sids_of(replace(fitted[name], collisions=collisions), vectors, seed=7)
    assert len(np.unique(sids, axis=0)) == len(vectors)
    num_shared = CollisionReport.of(shared, 20).collided_items
    assert num_shared >= 10, "or there is nothing to see"
    _, first = np.unique(shared, axis=0, return_index=True)
    is_first = np.isin(np.arange(len(vectors)), first)
    if collisions == "digit":
        np.testing.assert_array_equal(sids[:, :-1], shared)
        seen: dict[tuple[int, ...], int] = {}
        for sid in sids.tolist():
            key = tuple(sid[:-1])
            assert sid[-1] == seen.get(key, 0), "0, 1, 2, ... by popularity"
            seen[key] = sid[-1] + 1
    else:
        np.testing.assert_array_equal(sids[:, :-1], shared[:, :-1])
        np.testing.assert_array_equal((sids == shared).all(axis=1), is_first)


def test_reassigned_codes_are_the_nearest_that_are_free(
    fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    codebook, vectors = replace(fitted["plain"], collisions="reassign"), vectors[40:140]
    shared, sids = codebook.codes_of(vectors), sids_of(codebook, vectors, seed=7)
    nearness = codebook.nearness_of_last(vectors)
    first = np.unique(shared, axis=0, return_index=True)[1].tolist()
    there = {tuple(shared[row]) for row in first}
    others = [row for row in range(len(vectors)) if row not in first]
    assert len(others) >= 40
    for row in others:
        free = [c for c in range(12) if (*shared[row, :-1], np.uint16(c)) not in there]
        assert sids[row, -1] == max(free, key=lambda code: nearness[row, code])
        there.add(tuple(sids[row]))


@pytest.mark.parametrize(
    ("collisions", "words"),
    [
        ("digit", r"13 have the same in all codes and a position has 12 codes; raise"),
        ("reassign", r"13 have the same in all codes but the last and a position has 12"),
    ],
)
def test_too_many_items_of_one_sid_are_refused(
    collisions: str, words: str, fitted: dict[str, Codebook], vectors: np.ndarray
) -> None:
    codebook = replace(fitted["normalised"], collisions=collisions)
    twelve, same = np.repeat(vectors[:1], 12, axis=0), np.repeat(vectors[:1], 13, axis=0)
    assert len(np.unique(sids_of(codebook, twelve, seed=7), axis=0)) == 12
    with pytest.raises(DataError, match=words):
        sids_of(codebook, same, seed=7)
    with pytest.raises(DataError, match=r"or set codebook\.collisions=keep"):
        sids_of(codebook, same, seed=7)


@ALL
@pytest.mark.parametrize("collisions", ["keep", "digit", "reassign"])
def test_save_and_load(
    name: str, collisions: str, fitted: dict[str, Codebook], vectors: np.ndarray, tmp_path: Path
) -> None:
    written = replace(fitted[name], collisions=collisions)
    if name != "random":
        mean, components = np.arange(3, dtype=np.float32), np.eye(2, 3, dtype=np.float32)
        written = replace(written, content=ContentProjection(mean, components, weight=0.3))
    save_codebook(written, tmp_path / "codebook.npz")
    read = load_codebook(tmp_path / "codebook.npz")
    assert (type(read), read.collisions) == (type(written), collisions)
    for size in ("num_subspaces", "num_codes", "vector_dims", "num_positions"):
        assert getattr(read, size) == getattr(written, size)
    assert read.arrays.keys() == written.arrays.keys()
    for array, value in written.arrays.items():
        np.testing.assert_array_equal(read.arrays[array], value)
    assert (read.content is None) == (name == "random")


def test_only_the_new_is_written_of_a_configuration() -> None:
    """So stages from before there were kinds stay done, and old configurations are read."""
    before = {"num_subspaces", "num_codes", "opq_iterations", "kmeans_iterations", "seed"}
    assert CodebookConfig().model_dump().keys() == before
    assert PLAIN.model_dump().keys() - before == {"kind", "normalise_residuals"}
    assert CodebookConfig.model_validate(PLAIN.model_dump()) == PLAIN
    assert BY_NAME["rqvae"].model_dump().keys() - before == {"kind", "rqvae_epochs"}
    digit = CodebookConfig(collisions="digit")
    assert digit.model_dump().keys() - before == {"collisions"}
    with pytest.raises(ValidationError, match="num_subspaces may be at most 63"):
        CodebookConfig(collisions="digit", num_subspaces=64)
    with pytest.raises(ValidationError, match="'opq', 'residual', 'rqvae' or 'random'"):
        CodebookConfig(kind="pq")


def test_fewer_vectors_than_codes_are_refused_for_every_kind(vectors: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"11 items .* codebook\.num_codes=12; set it to at most"):
        fit_codebook(vectors[:11], CONFIG)
