"""New items whose embeddings come from a server: real HTTP, to a server with the limits of TEI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from running_valkey import Server, running
from stores import with_store
from text_embedder import MAX_BATCH, TextEmbedder, embedding_of, text_embedder
from tiny_bundle import EMBEDDING_DIMS, edit_manifest, write_tiny_bundle

from service.batching.lanes import Engine
from service.bundles.bundle import Bundle
from service.bundles.items import Item, text_of
from service.errors import EmbedderUnavailable, EmbedderUnfit, InvalidRequest
from service.histories.redis_store import RedisHistoryStore
from service.http.error_map import status_and_body
from service.loading.embedder import Embedder, TextRefused
from service.loading.item_changes import ItemChanges
from service.loading.loaded_bundles import LoadedBundle, LoadedBundles
from service.schemas.items import ItemsRequest, ItemsResponse, NewItem
from service.telemetry.metrics import Metrics


def embedded(server: TextEmbedder, *texts: str, url: str | None = None) -> list[list[float]]:
    embedder = Embedder(SecretStr(url or server.url))
    return asyncio.run(asyncio.wait_for(embedder.embed(texts), 60)).embeddings


@pytest.mark.parametrize("fields", [{}, {"has_info": False}, {"max_batch": 5}])
def test_texts_are_sent_in_pieces_of_what_the_server_takes(fields: dict[str, Any]) -> None:
    texts = [f"title {n}" for n in range(100)]
    with text_embedder(**fields) as server:
        assert embedded(server, *texts) == [embedding_of(text) for text in texts]
        assert max(map(len, server.batches)) <= fields.get("max_batch", MAX_BATCH)
        assert [text for batch in server.batches for text in batch] == texts


def test_a_server_that_takes_less_than_it_was_asked_is_asked_in_halves() -> None:
    """A server without /info that accepts few texts."""
    texts = [f"title {n}" for n in range(40)]
    with text_embedder(has_info=False, max_batch=3) as server:
        assert embedded(server, *texts) == [embedding_of(text) for text in texts]


def test_a_slash_at_the_end_of_the_url_changes_nothing() -> None:
    with text_embedder() as server:
        for end in ("", "/", "//"):
            assert embedded(server, "a title", url=server.url + end) == [embedding_of("a title")]
        assert set(server.paths) == {"/info", "/embed"}


def test_the_text_that_is_not_taken_is_named() -> None:
    with text_embedder() as server, pytest.raises(TextRefused) as refused:
        embedded(server, "a", "b", "x" * 3000, "d")
    assert refused.value.place == 2


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"[[1e400]]", EmbedderUnfit),
        (200, b"[[1e39]]", EmbedderUnfit),
        (200, b"[[NaN]]", EmbedderUnfit),
        (200, b"[[Infinity]]", EmbedderUnfit),
        (200, b"[[" + b"9" * 400 + b"]]", EmbedderUnfit),
        (200, b"[[" + b"9" * 5000 + b"]]", EmbedderUnfit),
        (200, b"[" * 100_000, EmbedderUnfit),
        (200, b"[[1], [2]]", EmbedderUnfit),
        (200, b"[]", EmbedderUnfit),
        (200, b'[["1"]]', EmbedderUnfit),
        (200, b"[[true]]", EmbedderUnfit),
        (200, b"[[null]]", EmbedderUnfit),
        (200, b'{"embeddings": [[1]]}', EmbedderUnfit),
        (200, b"<html>", EmbedderUnfit),
        (200, b"", EmbedderUnfit),
        (204, b"", EmbedderUnfit),
        (301, b"", EmbedderUnfit),
        (400, b"{}", EmbedderUnfit),
        (401, b"{}", EmbedderUnfit),
        (404, b"{}", EmbedderUnfit),
        (408, b"{}", EmbedderUnavailable),
        (424, b"{}", EmbedderUnavailable),
        (429, b"{}", EmbedderUnavailable),
        (500, b"{}", EmbedderUnavailable),
        (503, b"{}", EmbedderUnavailable),
    ],
)
def test_what_is_no_embedding_is_an_error_that_says_whether_to_try_again(
    status: int, body: bytes, error: type[Exception]
) -> None:
    with text_embedder(answers=[(status, body)]) as server, pytest.raises(error) as raised:
        embedded(server, "a title")
    shown, answer = status_and_body(raised.value, "an id")
    expected = (503, True) if error is EmbedderUnavailable else (502, False)
    assert (shown, answer.error.retryable) == expected
    if status >= 300:
        assert str(status) in str(raised.value)


def test_a_server_that_is_not_there_is_worth_another_try() -> None:
    with text_embedder() as server:
        pass
    with pytest.raises(EmbedderUnavailable, match="ConnectError"):
        embedded(server, "a title")


def test_embeddings_of_several_lengths_are_refused() -> None:
    answers = [(200, b"[[1, 2]]"), (200, b"[[1]]")]
    with (
        text_embedder(max_batch=1, answers=answers) as server,
        pytest.raises(EmbedderUnfit, match="several lengths"),
    ):
        embedded(server, "a", "b")


# In a service


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    valkey = Server(tmp_path / "valkey", {"save": '""'})
    with running(valkey):
        yield valkey.url


def change(
    bundle: Path, url: str, embedder: str, request: ItemsRequest
) -> tuple[ItemsResponse, Bundle]:
    """The answer to a request, and the bundle after it."""
    found: list[tuple[ItemsResponse, Bundle]] = []

    async def use(store: RedisHistoryStore) -> None:
        def load(path: Path) -> LoadedBundle:
            loaded = Bundle.load(path)
            return LoadedBundle(loaded, Engine(loaded.decoder.decode), path)

        loaded_bundles = LoadedBundles(load, Metrics())
        await loaded_bundles.start(bundle)
        changes = ItemChanges(loaded_bundles, store, SecretStr(embedder))
        found.append((await changes.change(request), loaded_bundles.active.bundle))

    with_store(url, use)
    return found[0]


def new(*titles: str, **fields: Any) -> ItemsRequest:
    return ItemsRequest(
        add=[NewItem(item_id=f"new {n}", title=title, **fields) for n, title in enumerate(titles)]
    )


def test_an_item_without_an_embedding_is_embedded_as_training_does(
    tmp_path: Path, url: str
) -> None:
    path = write_tiny_bundle(tmp_path / "shop" / "1", name="shop")
    request = new(*(f"Title {n}" for n in range(40)), categories=["Books > Poetry", "Gifts"])
    with text_embedder() as server:
        answer, after = change(path, url, server.url, request)
    assert answer.added == 40
    texts = [text for batch in server.batches for text in batch]
    assert texts[7] == "Title 7. Books > Poetry, Gifts"
    assert texts[7] == text_of(Item("new 7", "Title 7", ("Books > Poetry", "Gifts")))
    [row] = after.catalogue.rows_of(["new 7"])
    known = after.catalogue.vectors[:-40]
    vectors, _ = after.codebook.vectors_of(np.array([embedding_of(texts[7])]), known)
    assert after.catalogue.codes[row].tolist() == after.codebook.codes_of(vectors)[0].tolist()


def test_texts_of_the_bundles_columns_are_embedded_and_others_refused(
    tmp_path: Path, url: str
) -> None:
    def attributes(row: int) -> dict[str, Any]:
        return {"brand": ("Acme", "Best")} if row else {}

    path = write_tiny_bundle(tmp_path / "shop" / "1", name="shop", attributes=attributes)
    columns = ["brand", "about"]
    edit_manifest(path, lambda m: m["content"].update(text_columns=columns))
    items = [
        {"title": "A", "attributes": {"brand": ["Acme", "Best"]}, "texts": {"about": " Boils. "}},
        {"title": "B", "texts": {"brand": "Cosy"}},
        {"title": "C"},
        {"title": "", "texts": {"about": "Digs"}},
    ]
    add = [NewItem(item_id=f"new {n}", **item) for n, item in enumerate(items)]  # type: ignore[arg-type]
    with text_embedder() as server:
        assert change(path, url, server.url, ItemsRequest(add=add))[0].added == 4
        assert server.batches == [["A. Acme, Best. Boils.", "B. Cosy", "C", "Digs"]]
        wrong = new("D", texts={"colour": "red"}, embedding=[0.5] * EMBEDDING_DIMS)
        with pytest.raises(InvalidRequest, match="embeds title, categories, brand, about") as found:
            change(path, url, server.url, wrong)
    assert found.value.param == "add.0.texts.colour"


@pytest.mark.parametrize(
    ("titles", "param"),
    [(("",), "add.0.title"), (("good", "  "), "add.1.title"), (("x", "y" * 900), None)],
)
def test_a_text_that_cannot_be_embedded_is_the_clients_fault(
    tmp_path: Path, url: str, titles: tuple[str, ...], param: str | None
) -> None:
    path = write_tiny_bundle(tmp_path / "shop" / "1", name="shop")
    with text_embedder() as server:
        if param is None:
            assert change(path, url, server.url, new(*titles))[0].added == 2
            return
        with pytest.raises(InvalidRequest, match="title") as refused:
            change(path, url, server.url, new(*titles))
    assert refused.value.param == param
    assert status_and_body(refused.value, "an id")[0] == 422
    assert not server.batches


def test_what_the_embedder_refuses_is_named(tmp_path: Path, url: str) -> None:
    path = write_tiny_bundle(tmp_path / "shop" / "1", name="shop")
    request = new("good", "long", categories=["c" * 400] * 6)
    with text_embedder() as server, pytest.raises(InvalidRequest) as refused:
        change(path, url, server.url, request)
    assert refused.value.param == "add.0.title"


def test_an_embedder_of_another_size_cannot_be_used(tmp_path: Path, url: str) -> None:
    path = write_tiny_bundle(tmp_path / "shop" / "1", name="shop")
    with (
        text_embedder(dims=7) as server,
        pytest.raises(EmbedderUnfit, match=f"have 7 numbers, this bundle's {EMBEDDING_DIMS}"),
    ):
        change(path, url, server.url, new("a title"))


@pytest.mark.parametrize(
    ("edit", "event"),
    [
        (lambda m: m["content"].update(text=None), "content_text_unknown"),
        (
            lambda m: m["content"].update(text="title. categories", model="org/other"),
            "embedder_of_another_model",
        ),
        (lambda m: m["content"].update(text="title. categories", model="org/A-Model"), None),
    ],
)
def test_a_missing_or_different_model_in_the_manifest_is_logged(
    tmp_path: Path,
    url: str,
    edit: Callable[[dict[str, Any]], None],
    event: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_tiny_bundle(tmp_path / "shop" / "1", name="shop")
    edit_manifest(path, edit)
    with text_embedder() as server:
        assert change(path, url, server.url, new("a title"))[0].added == 1
    said = capsys.readouterr().out
    for one in ("content_text_unknown", "embedder_of_another_model"):
        assert (one in said) == (one == event)
