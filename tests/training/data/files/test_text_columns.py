"""`items.text_columns`: from a column of the file to the embedded text, the key and the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from training.config import EmbeddingsConfig, ItemsConfig
from training.data import load_dataset
from training.data.embeddings import embed
from training.data.files.item_files import read_items
from training.data.subsample import without_items
from training.errors import DataError
from training.pipeline import dataset_key

SHOP = [  # nothing but the brand says what belongs together
    {"item_id": f"i{row}", "title": f"Model {4700 + row}", "brand": brand, "about": about}
    for row, (brand, about) in enumerate(
        [
            ("copper kettle works", "Boils water."),
            ("copper kettle works", None),
            ("garden tools", "Digs, and rakes."),
            ("garden tools", ""),
            (None, "  "),
        ]
    )
]


def write(folder: Path, suffix: str = ".csv") -> Path:
    items = folder / f"items{suffix}"
    frame = pl.DataFrame(SHOP)
    frame.write_csv(items) if suffix == ".csv" else frame.write_parquet(items)
    log = [f"u{user},i{(user + place) % 5},{place}" for user in range(20) for place in range(4)]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,position", *log]))
    return items


def further_texts(path: Path, **config: object) -> list[str]:
    texts: list[str] = []
    read_items(path, ItemsConfig.model_validate(config), texts=texts)
    return texts


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("attributes", [{}, {"brand": "text"}])
def test_texts_are_joined_in_the_order_given(
    tmp_path: Path, suffix: str, attributes: dict[str, str]
) -> None:
    path = write(tmp_path, suffix)
    found = further_texts(path, text_columns=["brand", "about"], attributes=attributes)
    assert found == [
        "copper kettle works. Boils water.",
        "copper kettle works",
        "garden tools. Digs, and rakes.",
        "garden tools",
        "",
    ]
    assert (
        further_texts(path, text_columns=["about", "brand"])[0]
        == "Boils water.. copper kettle works"
    )
    assert further_texts(path) == [""] * 5


def test_lists_that_are_attributes_too_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    rows = {"item_id": ["a", "b"], "tags": [["red", "blue"], []]}
    pl.DataFrame(rows, schema_overrides={"tags": pl.List(pl.String)}).write_parquet(path)
    found = further_texts(path, text_columns=["tags"], attributes={"tags": "text"})
    assert found == ["red, blue", ""]
    with pytest.raises(DataError, match="tags must be text"):
        further_texts(path, text_columns=["tags"])


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(DataError, match=r"no column colour for .*text_columns; it has .*brand"):
        further_texts(path, text_columns=["colour", "brand"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"text_columns": ["title"]}, "title is read already"),
        ({"text_columns": ["brand", "Brand"]}, "brand is named more than once"),
        (
            {"text_columns": ["Brand"], "attributes": {"brand": "text"}},
            "spell Brand as in attributes",
        ),
        ({"text_columns": ["price"], "attributes": {"price": "number"}}, "price is a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ItemsConfig.model_validate(config)


def test_vectors_follow_the_further_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    write(tmp_path)
    config = EmbeddingsConfig(collaborative_dims=0)
    plain = load_dataset(tmp_path)
    told = load_dataset(tmp_path, items_config=ItemsConfig(text_columns=("brand", "about")))
    assert not plain.texts
    assert dataset_key(plain) != dataset_key(told)
    rows = [told.split.train.item_ids.index(f"i{number}") for number in range(5)]
    assert [told.texts[row] for row in rows][1:4:2] == ["copper kettle works", "garden tools"]

    def likeness(dataset: object) -> np.ndarray:
        vectors = embed(dataset, config).vectors[rows]  # type: ignore[arg-type]
        return vectors @ vectors.T  # type: ignore[no-any-return]

    same_brand = likeness(told)[[0, 2], [1, 3]]
    other_brand = likeness(told)[[0, 1], [2, 3]]
    assert same_brand.min() > other_brand.max()
    assert not np.allclose(likeness(plain), likeness(told))
    left = without_items(told, np.array([rows[2]], np.int32))
    assert len(left.texts) == 4
    assert dict(zip(left.split.train.item_ids, left.texts, strict=True))["i3"] == "garden tools"


def test_given_embeddings_win_and_a_line_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    np.save(tmp_path / "item_embeddings.npy", np.eye(5, dtype=np.float32))
    config = ItemsConfig(text_columns=("brand",))
    dataset = load_dataset(tmp_path, items_config=config)
    assert not dataset.texts
    assert dataset_key(dataset) == dataset_key(load_dataset(tmp_path))
    assert any("items.text_columns is not used" in warning for warning in dataset.warnings)
