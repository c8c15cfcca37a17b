"""Item vectors: the content of items joined with collaborative factors of the interactions.

Everything is fitted on items with training interactions and then applied to all items. An item
without any gets the collaborative part of the items that it is like. So a new item gets its vector
in the same way as a cold one. `embed` runs on one thread, because the last bits of a sum depend on
the number of threads: the same input and seed give the same output. Knows nothing of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from service.bundles import Item, text_of
from service.decoding import ContentProjection
from service.decoding.catalogue import most_alike, vectors_like
from training.config import EmbeddingsConfig
from training.data.interactions import Dataset
from training.data.splits import Interactions
from training.errors import ConfigError, DataError

SVD_POWER_ITERATIONS = 7
MAX_TERMS = 50_000
MOST_PAIRED = 1000  # newest interactions of a user; the number of pairs grows with the square


class ItemVectors(NamedTuple):
    """Vectors of all items.

    vectors: (num_items, d) float32, the content part first
    content: the projection from an embedding to the content part; None if there is no content, or
             if a new item's embedding could not be compared with it
    source:  a sentence that says what the vectors hold
    embeddings: (num_items, embedding_dims) float32, the content before its projection, zeros for
             an item without content; no columns if there is no content
    """

    vectors: NDArray[np.float32]
    content: ContentProjection | None
    source: str
    embeddings: NDArray[np.float32]


class Content(NamedTuple):
    """Content embeddings: what the items are about.

    embeddings: (num_items, d) float32, zeros for an item without content; None if no item with
                training interactions has content
    source:     a sentence that says where they come from
    repeatable: whether new items can be embedded in the same way after training
    """

    embeddings: NDArray[np.float32] | None
    source: str
    repeatable: bool


def embed(dataset: Dataset, config: EmbeddingsConfig) -> ItemVectors:
    """Vectors of all items.

    Without content they are the collaborative factors alone. Raises DataError if there is no
    content and `config.collaborative_dims` is 0.
    """
    seen = dataset.split.train.popularity() > 0
    content, factors, said = Content(None, "", False), None, []
    with threadpool_limits(1):
        if config.content_dims:
            content = content_embeddings(
                dataset.items, dataset.embeddings, seen, config, dataset.texts
            )
            if content.embeddings is None and not config.collaborative_dims:
                raise DataError(
                    f"there is {content.source}; give --items with titles, or --embeddings, or "
                    "set embeddings.collaborative_dims above 0"
                )
            said.append(content.source)
        if config.collaborative_dims:
            factors = collaborative_factors(dataset.split.train, config)
            said.append(
                f"collaborative: {factors.shape[1]} factors of co-occurrence and transitions, "
                f"{config.collaborative_weight:.0%} of the squared norm"
            )
        vectors, projection = item_vectors(content.embeddings, factors, seen, config)
    embeddings = content.embeddings
    if embeddings is None:
        embeddings = np.empty((len(vectors), 0), np.float32)
    projection = projection if content.repeatable else None
    return ItemVectors(vectors, projection, "; ".join(said), embeddings)


def content_embeddings(
    items: Sequence[Item],
    embeddings: NDArray[np.float32] | None,
    seen: NDArray[np.bool_],
    config: EmbeddingsConfig,
    further: Sequence[str] = (),
) -> Content:
    """Content embeddings of all items, from the first of these that is there.

    1. The given embeddings, (num_items, d).
    2. sentence-transformers with `config.text_model`, if it is installed and loads.
    3. TF-IDF and a truncated SVD, fitted on the items that `seen`, (num_items,) bool, marks.
    An item without text gets zeros. further: `Dataset.texts`
    """
    if embeddings is not None:
        source = f"content: the given embeddings, {embeddings.shape[1]} dimensions"
        return Content(embeddings, source, True)
    further = further or [""] * len(items)
    texts = [text_of(item, more) for item, more in zip(items, further, strict=True)]
    has_text = np.array([bool(text) for text in texts])
    if not (has_text & seen).any():
        because = "no item with training interactions has a title, categories or further text"
        return Content(None, f"no content, because {because}", False)
    found, reason = _encode_texts(texts, config.text_model)
    if found is not None:
        found[~has_text] = 0
        return Content(found, f"content: {config.text_model}, {found.shape[1]} dimensions", True)
    found = _tfidf_svd(texts, has_text & seen, config)
    if found is None:
        return Content(None, "no content, because titles and categories hold no words", False)
    source = f"content: TF-IDF and SVD, {found.shape[1]} dimensions, because {reason}"
    return Content(found, source, False)


def item_affinities(
    train: Interactions, *, window: int, transition_weight: float
) -> sparse.csr_array:
    """How strongly item i suggests item j, (num_items, num_items) sparse float32, zero diagonal.

        affinity[i, j] = (users with both + transition_weight * transitions) / sqrt(pop_i * pop_j)

    users with both: see `users_with_both`
    transitions: each time j follows i at a distance of d <= window positions adds 1 / d.
    Row i looks forward in time. Items without a training interaction have empty rows.
    """
    weights = [transition_weight / distance for distance in range(1, window + 1)]
    affinity = with_followers(users_with_both(train), train, weights)
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(train.popularity(), 1)).astype(np.float32))
    affinity = sparse.csr_array(scale @ affinity @ scale)
    affinity.setdiag(0)
    affinity.eliminate_zeros()
    affinity.sort_indices()
    return affinity


def with_followers(
    counts: sparse.csr_array, train: Interactions, weights: Sequence[float]
) -> sparse.csr_array:
    """`counts` and, each time item j follows item i d positions later, weights[d - 1] at (i, j).

    That is for interactions that count alike. Else it is times the weight of j's interaction, as
    its event type has it: what led to a purchase says more than what led to a view.
    counts: (num_items, num_items) sparse float32, which may be empty
    """
    users, rows = train.users_of_interactions(), train.rows
    for distance, weight in enumerate(weights, 1):
        same_user = users[:-distance] == users[distance:]
        pairs = rows[:-distance][same_user], rows[distance:][same_user]
        added = np.full(len(pairs[0]), weight, np.float32)
        if train.weights is not None:
            added *= train.weights[distance:][same_user]
        counts = counts + sparse.csr_array((added, pairs), shape=counts.shape)
    return sparse.csr_array(counts)


def users_with_both(train: Interactions) -> sparse.csr_array:
    """Number of users who had both item i and item j, (num_items, num_items) sparse float32.

    The diagonal is the number of users who had item i. Only the newest MOST_PAIRED interactions of
    each user count. A user who had an item twice counts once.
    """
    stops = np.repeat(train.indptr[1:], train.lengths())
    newest = stops - np.arange(train.num_interactions) <= MOST_PAIRED
    users, rows = train.users_of_interactions()[newest], train.rows[newest]
    had = sparse.csr_array(
        (np.ones(len(rows), np.float32), (users, rows)), shape=(train.num_users, train.num_items)
    )
    had.data[:] = 1
    return sparse.csr_array(had.T @ had)


def collaborative_factors(train: Interactions, config: EmbeddingsConfig) -> NDArray[np.float32]:
    """Factors of the symmetric item affinities, (num_items, collaborative_dims) float32.

    The rows of U sqrt(S) of the truncated SVD U S V^T, L2-normalised. Items without an affinity get
    zeros. There are fewer columns only if there are fewer items.
    """
    affinity = item_affinities(
        train, window=config.window, transition_weight=config.transition_weight
    )
    left, singular, _ = randomized_svd(
        (affinity + affinity.T) / 2,
        n_components=min(config.collaborative_dims, train.num_items),
        n_iter=SVD_POWER_ITERATIONS,
        random_state=config.seed,
    )
    factors = left * np.sqrt(singular)
    factors[np.diff(affinity.indptr) + np.diff(affinity.tocsc().indptr) == 0] = 0
    return normalised(factors)


def item_vectors(
    content: NDArray[np.float32] | None,
    factors: NDArray[np.float32] | None,
    seen: NDArray[np.bool_],
    config: EmbeddingsConfig,
) -> tuple[NDArray[np.float32], ContentProjection | None]:
    """Join content and collaborative factors into (num_items, d) float32.

    Content is centred, reduced to `config.content_dims` by PCA and L2-normalised. Mean and PCA are
    fitted on the items that `seen` marks. The projection that does this is returned as well. Of an
    item with both parts, the collaborative part has `config.collaborative_weight` of the squared
    norm. An item without one of the parts has zeros there, except that content fills in the
    collaborative part of the items that `seen` does not mark.
    Raises ConfigError if both parts are missing, DataError if no item with training interactions
    has content.
    """
    weight = config.collaborative_weight
    if content is None:
        if factors is None:
            raise ConfigError(
                "set embeddings.content_dims or embeddings.collaborative_dims above 0"
            )
        return factors, None
    fitted = content[content.any(axis=1) & seen]
    if not len(fitted):
        raise DataError("no item with training interactions has a content embedding")
    pca = PCA(min(config.content_dims, *fitted.shape), svd_solver="full").fit(fitted)
    mean, components = pca.mean_.astype(np.float32), pca.components_.astype(np.float32)
    projection = ContentProjection(mean, components, 1.0 if factors is None else 1 - weight)
    parts = projection.vectors_of(content)
    if factors is None:
        return parts, projection
    vectors = np.concatenate((parts, (factors * np.sqrt(weight)).astype(np.float32)), axis=1)
    known = vectors[seen].astype(np.float16)  # as the bundle keeps them
    alike = most_alike(parts[~seen], known[:, : parts.shape[1]])
    norm = np.sqrt(1 - projection.weight)
    vectors[~seen] = vectors_like(parts[~seen], alike, known, norm)
    return vectors, projection


def _encode_texts(texts: list[str], model: str) -> tuple[NDArray[np.float32] | None, str]:
    """Encode with sentence-transformers; or None and the reason as the end of a sentence."""
    if find_spec("sentence_transformers") is None:
        return None, (
            "no embeddings were given and sentence-transformers is not installed "
            "(pip install 'unmask[text]', or in a checkout -e '.[text]')"
        )
    from sentence_transformers import SentenceTransformer  # an extra; slow to import

    try:
        encoder = SentenceTransformer(model)
    except Exception as error:  # offline, unknown name, broken cache: there is no common base class
        return None, f"the text model {model} did not load ({type(error).__name__})"
    return encoder.encode(texts, normalize_embeddings=True).astype(np.float32), ""


def _tfidf_svd(
    texts: list[str], fitted: NDArray[np.bool_], config: EmbeddingsConfig
) -> NDArray[np.float32] | None:
    """Vectors of all texts; None if the texts to fit on hold no words."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=MAX_TERMS)
    try:
        vectorizer.fit([text for text, fit in zip(texts, fitted, strict=True) if fit])
    except ValueError:  # only single letters or punctuation
        return None
    terms = vectorizer.transform(texts)
    _, _, axes = randomized_svd(
        terms[fitted],
        n_components=min(config.content_dims, terms.shape[1], int(fitted.sum())),
        n_iter=SVD_POWER_ITERATIONS,
        random_state=config.seed,
    )
    return normalised(terms @ axes.T)


def normalised(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Each row divided by its L2 norm; a row of zeros stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return directions.astype(np.float32, copy=False)
