"""Random small worlds: catalogues with collisions and dead ends, priors, jobs to decode in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.codebook import ContentProjection
from service.decoding.catalogue.codebook_kinds import ProductCodebook
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.job import Job, Order, Ranking, Retrieval
from service.decoding.schedule import Schedule

# What a test runs with: an order, or one of the others, drawn.
OTHER_ORDERS: tuple[Order, ...] = ("entropy", "margin", "left_to_right")
ORDERS_OF_ROWS: tuple[tuple[Order, ...], ...] = (("confidence",), OTHER_ORDERS)
ORDERS_OF_CODES: tuple[tuple[Order, ...], ...] = (*ORDERS_OF_ROWS, ("raw_confidence",))
RANKINGS_AND_ORDERS: list[tuple[Ranking, tuple[Order, ...]]] = [
    *(("rows", orders) for orders in ORDERS_OF_ROWS),
    *(("best", orders) for orders in ORDERS_OF_CODES),
    *(("path", orders) for orders in ORDERS_OF_CODES),
]


def catalogue_of(
    codes: Sequence[Sequence[int]] | NDArray[np.uint16],
    num_codes: int,
    vectors: NDArray[np.float16] | None = None,
) -> Catalogue:
    """A catalogue with these codes by row; all items equally popular."""
    sids = np.asarray(codes, dtype=np.uint16)
    item_ids = tuple(f"item-{row:04d}" for row in range(len(sids)))
    if vectors is None:
        vectors = np.empty((len(sids), 0), np.float16)
    return Catalogue(item_ids, sids, num_codes, np.zeros(len(sids), dtype=np.int64), vectors)


def of_rows(catalogue: Catalogue, rows: Sequence[int]) -> Catalogue:
    """A catalogue of these rows of another one, made from scratch."""
    return Catalogue(
        tuple(catalogue.item_ids[row] for row in rows),
        catalogue.codes[list(rows)],
        catalogue.num_codes,
        catalogue.popularity[list(rows)],
        catalogue.vectors[list(rows)],
    )


def assert_same_catalogue(found: Catalogue, expected: Catalogue) -> None:
    assert list(found.item_ids) == list(expected.item_ids)
    assert found.num_codes == expected.num_codes
    assert found.rows_of(expected.item_ids).tolist() == list(range(expected.num_items))
    for name in ("codes", "popularity", "vectors"):
        array, other = getattr(found, name), getattr(expected, name)
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


def codebook_of(
    *, num_subspaces: int, num_codes: int, vector_dims: int, embedding_dims: int, seed: int = 0
) -> ProductCodebook:
    """A random codebook; vectors are padded to whole subspaces, half of them are content."""
    random = np.random.default_rng(seed)
    d_sub = -(-vector_dims // num_subspaces)
    rotation = np.linalg.qr(random.normal(size=(num_subspaces * d_sub, vector_dims)))[0].T
    mean, components = random.normal(size=embedding_dims), (-(-vector_dims // 2), embedding_dims)
    return ProductCodebook(
        rotation.astype(np.float32),
        random.normal(0, 0.3, (num_subspaces, num_codes, d_sub)).astype(np.float32),
        content=ContentProjection(
            mean.astype(np.float32), random.normal(size=components).astype(np.float32), weight=0.6
        ),
    )


def job_of(
    *,
    schedule: Schedule,
    history: Sequence[int] = (),
    k: int = 10,
    beam_width: int = 10,
    excluded: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
    finish_rows: int = 0,
    ranking: Ranking = "rows",
    order: Order = "confidence",
    retrieval: Retrieval = "generate",
) -> Job:
    return Job(
        history=np.array(history, dtype=np.int32),
        k=k,
        schedule=schedule,
        beam_width=beam_width,
        excluded=np.array(excluded, dtype=np.int32),
        allowed=None if allowed is None else np.array(allowed, dtype=np.int32),
        finish_rows=finish_rows,
        ranking=ranking,
        order=order,
        retrieval=retrieval,
    )


@st.composite
def catalogues(draw: st.DrawFn, max_items: int = 30) -> Catalogue:
    num_codes = draw(st.integers(1, 6))
    # Each number of positions is compiled for itself, which takes seconds: so not every one.
    shape = (draw(st.integers(1, max_items)), draw(st.sampled_from([1, 2, 4])))
    elements = st.integers(0, num_codes - 1)
    codes = draw(arrays(np.uint16, shape, elements=elements))
    vectors = arrays(
        np.float16, (shape[0], draw(st.integers(0, 2))), elements=st.integers(-2, 2).map(float)
    )
    return catalogue_of(codes, num_codes, draw(vectors))


@st.composite
def priors(draw: st.DrawFn, catalogue: Catalogue) -> NeighbourPrior:
    """Any rows as neighbours; a row may have the same neighbour twice, or itself."""
    shape = (catalogue.num_items, draw(st.integers(0, 4)))
    rows = st.integers(0, catalogue.num_items - 1)
    return NeighbourPrior(
        draw(arrays(np.int32, shape, elements=rows)),
        draw(arrays(np.float16, shape, elements=st.integers(0, 3).map(float))),
        history_length=draw(st.integers(1, 6)),
        decay=draw(st.sampled_from([0.5, 0.7, 1.0])),
        scale=draw(st.sampled_from([0.3, 1.0, 4.0])),
        weight=draw(st.sampled_from([0.0, 0.5, 2.0])),
    )


@st.composite
def schedules(draw: st.DrawFn, num_subspaces: int) -> Schedule:
    """Any order of any step sizes, not only those that r_warm and m_par can express."""
    steps = []
    while left := num_subspaces - sum(steps):
        steps.append(draw(st.integers(1, left)))
    return Schedule(tuple(steps))


def filters(catalogue: Catalogue) -> st.SearchStrategy[list[int]]:
    """Ascending rows; small and large shares of the catalogue are equally likely."""
    each = st.lists(st.booleans(), min_size=catalogue.num_items, max_size=catalogue.num_items)
    return each.map(lambda kept: np.flatnonzero(kept).tolist())


def boosts(catalogue: Catalogue) -> st.SearchStrategy[dict[str, NDArray[Any]]]:
    """Fields of a job: boosts of no row, of a few, or of many."""
    rows = st.integers(0, catalogue.num_items - 1)
    weights = st.integers(-20, 20).map(lambda quarters: quarters / 4)
    return st.dictionaries(rows, weights, max_size=catalogue.num_items).map(
        lambda by_row: {
            "boosted": np.array(sorted(by_row), np.int32),
            "boosts": np.array([by_row[row] for row in sorted(by_row)], np.float32),
        }
    )


@st.composite
def jobs(
    draw: st.DrawFn,
    catalogue: Catalogue,
    *,
    schedule: Schedule | None = None,
    max_width: int = 12,
    filtered: bool = False,
    may_finish: bool = False,
) -> Job:
    """filtered: the answer may have to come from any set of rows, even none or all of them

    may_finish: the search may end early, once few rows survive
    """
    rows = st.integers(0, catalogue.num_items - 1)
    return job_of(
        schedule=schedule or draw(schedules(catalogue.num_subspaces)),
        history=draw(st.lists(rows, max_size=8)),
        k=draw(st.integers(1, 12)),
        beam_width=draw(st.integers(1, max_width)),
        excluded=draw(st.lists(rows, max_size=catalogue.num_items)),
        allowed=draw(st.none() | filters(catalogue)) if filtered else None,
        finish_rows=draw(st.sampled_from([0, 3, 10])) if may_finish else 0,
    )
