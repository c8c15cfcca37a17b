"""A bundle that several processes share is the same, and what one changes is its own."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs
from tiny_bundle import EMBEDDING_DIMS, NUM_ITEMS, write_tiny_bundle

from service.bundles import Bundle, Item
from service.bundles.shared_parts import HashedRows, ItemIds
from service.decoding import Job, Schedule

NAMES = {"item-0": "Größe 42", "item-1": "日本"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny_bundle(
        tmp_path / "bundle", names=NAMES, attributes=lambda row: {"price": float(row)}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def test_it_has_the_same_parts(path: Path, folder: Path) -> None:
    own = Bundle.load(path)
    first, second = (Bundle.load(path, shared=folder) for _ in range(2))
    for bundle in (first, second):
        assert list(bundle.items) == list(own.items)
        assert bundle.items[-3:] == own.items[-3:]
        assert list(bundle.catalogue.item_ids) == list(own.catalogue.item_ids)
        for name in ("codes", "popularity", "vectors"):
            mine, others = getattr(bundle.catalogue, name), getattr(own.catalogue, name)
            assert (mine.dtype, mine.flags.c_contiguous) == (others.dtype, True)
            np.testing.assert_array_equal(mine, others)
        asked = ["item-7", "nobody", *NAMES.values(), "item-0"]
        rows = own.catalogue.rows_of(asked)
        np.testing.assert_array_equal(bundle.catalogue.rows_of(asked), rows)


def test_it_decodes_the_same(path: Path, folder: Path) -> None:
    found = []
    for bundle in (Bundle.load(path), Bundle.load(path, shared=folder)):
        history = bundle.catalogue.rows_of(["item-5", "item-9"])
        jobs = [Job(history, 20, schedule, 20) for schedule in (Schedule((1, 3)), Schedule((4,)))]
        found += [
            (one.rows.tolist(), one.scores.tolist()) for one in bundle.decoder.decode(jobs)[0]
        ]
    assert found[:2] == found[2:]


def test_what_one_changes_the_others_do_not_see(path: Path, folder: Path) -> None:
    first, second = (Bundle.load(path, shared=folder) for _ in range(2))
    embeddings = np.ones((1, EMBEDDING_DIMS), np.float32)
    grown = first.with_items([Item("fresh", "Fresh", ())], embeddings)
    other = second.with_items([Item("other", "Other", ())], -embeddings)
    own = Bundle.load(path).with_items([Item("fresh", "Fresh", ())], embeddings)
    assert (len(first.items), len(grown.items), len(second.items)) == (
        NUM_ITEMS,
        NUM_ITEMS + 1,
        NUM_ITEMS,
    )
    assert grown.items[-1].item_id == "fresh"
    assert other.items[-1].item_id == other.catalogue.item_ids[-1] == "other"
    assert list(grown.catalogue.rows_of(["fresh", "other"])) == [NUM_ITEMS]
    for name in ("codes", "popularity", "vectors"):
        np.testing.assert_array_equal(getattr(grown.catalogue, name), getattr(own.catalogue, name))
    less = grown.without_items(["item-7"])
    assert list(less.items) == list(own.without_items(["item-7"]).items)
    assert list(first.items) == list(Bundle.load(path).items)


def test_the_files_go_with_the_bundle(path: Path, folder: Path) -> None:
    bundle = Bundle.load(path, shared=folder)
    grown = bundle.without_items(["item-7"])
    del bundle
    gc.collect()
    assert list(folder.iterdir())
    del grown
    gc.collect()
    assert not list(folder.iterdir())


def test_without_space_each_has_its_own(path: Path, tmp_path: Path) -> None:
    with capture_logs() as logged:
        bundle = Bundle.load(path, shared=tmp_path / "not there")
    assert {line["event"] for line in logged} == {"memory_not_shared"}
    assert list(bundle.items) == list(Bundle.load(path).items)


def test_rows_are_found_also_when_hashes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{n:x}" for n in range(300)]
    monkeypatch.setattr("service.bundles.shared_parts.hash", lambda text: len(text), raising=False)
    rows = HashedRows(ItemIds(texts))
    assert [rows[text] for text in texts] == list(range(300))
    assert rows.get("fff") is None
    assert (len(rows), list(rows)) == (300, texts)
