"""Item vectors: affinities compared with plain Python, the shares of both parts, and cold items."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import log_of
from sklearn.decomposition import PCA

from service.bundles.bundle import Item
from training.codebooks.codebook import fit_codebook
from training.config import CodebookConfig, EmbeddingsConfig
from training.data.embeddings import (
    MOST_PAIRED,
    collaborative_factors,
    content_embeddings,
    embed,
    item_affinities,
    item_vectors,
    users_with_both,
)
from training.data.interactions import Dataset, load_dataset
from training.data.splits import Interactions, leave_last_out
from training.errors import ConfigError, DataError

CONFIG = EmbeddingsConfig(content_dims=4, collaborative_dims=3)
WORDS = ["red nail lacquer", "blue nail lacquer", "hair dryer", "ionic hair dryer", "sun cream"]


def items_of(titles: list[str]) -> tuple[Item, ...]:
    return tuple(Item(f"i{row}", title, ()) for row, title in enumerate(titles))


@pytest.fixture
def two_groups() -> Interactions:
    """Rows 0-4 are bought together and so are rows 5-9; row 10 was never bought."""
    rng = np.random.default_rng(0)
    return log_of([list(rng.permutation(5) + 5 * (user % 2)) for user in range(40)], 11)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=6), st.integers(1, 3))
def test_affinities_against_plain_python(histories: list[list[int]], window: int) -> None:
    log, weight = log_of(histories, 6), 2.5
    expected = np.zeros((6, 6))
    for history in histories:
        for i in set(history):
            for j in set(history):
                expected[i, j] += 1
        for early, i in enumerate(history):
            for late, j in enumerate(history):
                if 1 <= late - early <= window:
                    expected[i, j] += weight / (late - early)
    counts = np.maximum(log.popularity(), 1)
    expected /= np.sqrt(np.outer(counts, counts))
    np.fill_diagonal(expected, 0)
    found = item_affinities(log, window=window, transition_weight=weight)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5)
    assert found.nnz == np.count_nonzero(expected)


def test_the_newest_interactions_of_a_user_are_paired() -> None:
    rng = np.random.default_rng(0)
    short, long = ([rng.integers(0, 5000, n).tolist() for n in lengths] for lengths in
                   ((3, MOST_PAIRED), (MOST_PAIRED + 1, 4000)))  # fmt: skip
    had = np.zeros((4, 5000))
    for user, history in enumerate([*short, *long]):
        had[user, history[-1000:]] = 1
    found = users_with_both(log_of([*short, *long], 5000))
    np.testing.assert_array_equal(found.toarray(), had.T @ had)


def test_one_huge_user_does_not_fill_the_memory() -> None:
    log = log_of([list(range(50_000))], 50_000)
    affinity = item_affinities(log, window=2, transition_weight=1.0)
    assert affinity.nnz <= MOST_PAIRED**2 + 2 * 50_000


def test_factors_tell_groups_apart_and_leave_unseen_items_at_zero(two_groups: Interactions) -> None:
    factors = collaborative_factors(two_groups, CONFIG)
    assert factors.shape == (11, 3)
    assert factors.dtype == np.float32
    similarity = factors @ factors.T
    np.testing.assert_allclose(np.diag(similarity)[:10], 1, rtol=1e-5)
    assert similarity[:5, :5].min() > 0.5
    assert similarity[:5, 5:10].max() < 0.1
    assert not factors[10].any()


def test_given_embeddings_are_used_as_they_are() -> None:
    given_embeddings = np.eye(5, dtype=np.float32)
    content, sentence, repeatable = content_embeddings(
        items_of(WORDS), given_embeddings, np.ones(5, dtype=bool), CONFIG
    )
    assert content is given_embeddings
    assert repeatable
    assert sentence == "content: the given embeddings, 5 dimensions"


@pytest.fixture
def without_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)


@pytest.mark.usefixtures("without_text_model")
def test_text_falls_back_to_tfidf_and_says_so() -> None:
    content, sentence, repeatable = content_embeddings(
        items_of([*WORDS, ""]), None, np.ones(6, dtype=bool), CONFIG
    )
    assert not repeatable
    assert "TF-IDF" in sentence
    assert "sentence-transformers is not installed" in sentence
    similarity = content @ content.T
    assert similarity[0, 1] > 0.5 > similarity[0, 2]
    assert similarity[2, 3] > 0.5 > similarity[2, 4]
    assert not content[5].any()  # no text, no direction


@pytest.mark.usefixtures("without_text_model")
def test_words_of_unseen_items_are_not_learnt() -> None:
    seen = np.array([True] * 4 + [False])
    content, _, _ = content_embeddings(items_of(WORDS), None, seen, CONFIG)
    assert not content[4].any()  # "sun cream" shares no word with the items that were fitted
    assert content[:4].any(axis=1).all()


@pytest.mark.usefixtures("without_text_model")
@pytest.mark.parametrize("titles", [["", ""], ["!", "?"]])
def test_without_words_the_factors_stand_alone(two_groups: Interactions, titles: list[str]) -> None:
    items = items_of([titles[row % 2] for row in range(11)])
    dataset = Dataset(leave_last_out(two_groups), items, None, ())
    vectors, projection, sentence, embeddings = embed(dataset, CONFIG)
    assert projection is None
    assert embeddings.shape == (11, 0)
    factors = collaborative_factors(dataset.split.train, CONFIG)
    np.testing.assert_array_equal(vectors, factors)
    assert sentence.startswith("no content, because")
    with pytest.raises(DataError, match=r"there is no content, because .* --items with titles"):
        embed(dataset, EmbeddingsConfig(collaborative_dims=0))


def test_interactions_alone_are_enough_for_codes(two_groups: Interactions, tmp_path: Path) -> None:
    log = [
        f"{user},{item},{place}"
        for user in range(two_groups.num_users)
        for place, item in enumerate(two_groups.history_of(user))
    ]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,position", *log]))
    dataset = load_dataset(tmp_path)
    vectors, projection, sentence, embeddings = embed(dataset, EmbeddingsConfig())
    assert projection is None
    assert not embeddings.size
    assert "no content, because no item" in sentence
    assert "10 factors" in sentence
    config = CodebookConfig(num_subspaces=2, num_codes=4, opq_iterations=2)
    codes = fit_codebook(vectors, config).codes_of(vectors)
    assert len(np.unique(codes, axis=0)) > 4


def test_the_text_model_is_used_when_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("sentence_transformers")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    asked = []

    class SentenceTransformer:
        def __init__(self, model: str) -> None:
            if model == "absent":
                raise OSError("no such model")

        def encode(self, texts: list[str], normalize_embeddings: bool) -> np.ndarray:
            asked.extend(texts)
            return np.ones((len(texts), 7))

    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    items = (Item("a", "Red nail", ("Beauty", "Nails")), Item("b", "", ()))
    content, sentence, repeatable = content_embeddings(items, None, np.ones(2, dtype=bool), CONFIG)
    assert repeatable
    assert asked == ["Red nail. Beauty, Nails", ""]
    assert content.any(axis=1).tolist() == [True, False]
    assert sentence == "content: all-MiniLM-L6-v2, 7 dimensions"
    _, sentence, repeatable = content_embeddings(
        items, None, np.ones(2, dtype=bool), EmbeddingsConfig(text_model="absent")
    )
    assert not repeatable
    assert "TF-IDF" in sentence
    assert "the text model absent did not load (OSError)" in sentence


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_collaborative_part_holds_its_share(weight: float) -> None:
    rng = np.random.default_rng(1)
    content = rng.normal(size=(30, 12)).astype(np.float32)
    factors = rng.normal(size=(30, 5)).astype(np.float32)
    factors /= np.linalg.norm(factors, axis=1, keepdims=True)
    factors[-1] = 0  # never bought
    content[-2] = 0  # no text
    config = EmbeddingsConfig(content_dims=8, collaborative_weight=weight)
    vectors, projection = item_vectors(content, factors, factors.any(axis=1), config)
    assert projection.weight == 1 - weight
    assert vectors.shape == (30, 13)
    norms = np.square(vectors).reshape(30, 13)
    np.testing.assert_allclose(norms[:-2, :8].sum(1), 1 - weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norms[:-1, 8:].sum(1), weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norms[-1].sum(), 1 - weight, rtol=1e-5, atol=1e-7)  # content stays
    assert not vectors[-2, :8].any()


def test_one_part_alone_has_the_whole_norm() -> None:
    content = np.random.default_rng(1).normal(size=(30, 12)).astype(np.float32)
    seen = np.ones(30, dtype=bool)
    vectors, projection = item_vectors(content, None, seen, EmbeddingsConfig(content_dims=8))
    assert projection.weight == 1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    alone, projection = item_vectors(None, content, seen, CONFIG)
    assert projection is None
    np.testing.assert_array_equal(alone, content)
    with pytest.raises(ConfigError, match=r"content_dims or embeddings\.collaborative_dims"):
        item_vectors(None, None, seen, CONFIG)


def test_vectors_of_seen_items_do_not_depend_on_cold_items() -> None:
    rng = np.random.default_rng(2)
    content = rng.normal(size=(40, 12)).astype(np.float32)
    seen = np.arange(40) < 30
    config = EmbeddingsConfig(content_dims=6)
    before, _ = item_vectors(content, None, seen, config)
    content[~seen] = 100 * rng.normal(size=(10, 12))
    after, _ = item_vectors(content, None, seen, config)
    np.testing.assert_array_equal(before[seen], after[seen])
    assert (before[~seen] != after[~seen]).any()


def test_embed_joins_both_parts_and_repeats_bit_for_bit(two_groups: Interactions) -> None:
    content = np.random.default_rng(3).normal(size=(11, 6)).astype(np.float32)
    items = items_of(["t"] * 11)
    dataset = Dataset(leave_last_out(two_groups), items, content, ())
    vectors, projection, sentence, embeddings = embed(dataset, CONFIG)
    assert vectors.shape == (11, 4 + 3)
    np.testing.assert_array_equal(embeddings, content)
    assert vectors.dtype == np.float32
    assert "given embeddings" in sentence
    assert "3 factors of co-occurrence" in sentence
    np.testing.assert_array_equal(vectors, embed(dataset, CONFIG)[0])
    assert projection is not None
    np.testing.assert_array_equal(projection.vectors_of(content), vectors[:, :4])
    without = EmbeddingsConfig(content_dims=0, collaborative_dims=3)
    alone, projection, _, embeddings = embed(dataset, without)
    assert (alone.shape, embeddings.shape) == ((11, 3), (11, 0))
    assert projection is None


def test_content_is_projected_as_scikit_learn_does() -> None:
    content = np.random.default_rng(4).normal(1, 2, (30, 12)).astype(np.float32)
    seen = np.arange(30) < 25
    vectors, _ = item_vectors(content, None, seen, EmbeddingsConfig(content_dims=5))
    expected = PCA(5, svd_solver="full").fit(content[seen]).transform(content)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.usefixtures("without_text_model")
def test_titles_make_vectors_but_take_no_embeddings(two_groups: Interactions) -> None:
    """TF-IDF is not in the bundle, so its codebook cannot encode embeddings."""
    items = items_of([WORDS[row % 5] for row in range(11)])
    dataset = Dataset(leave_last_out(two_groups), items, None, ())
    vectors, projection, _, embeddings = embed(dataset, CONFIG)
    assert vectors.shape[1] > 3
    assert embeddings.shape == (11, 4)
    assert projection is None
