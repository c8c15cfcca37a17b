"""URLs of the history store: what they mean, and that no error shows a password."""

from __future__ import annotations

import pytest

from service.store_url import Node, parse_store_url


@pytest.mark.parametrize(
    "text", ["redis://", "redis://h:6380/1?x=1", "rediss://u:p%40@h", "unix:///a/b@c?db=1"]
)
def test_one_server_is_passed_on_as_it_is(text: str) -> None:
    url = parse_store_url(text)
    assert (url.kind, url.text) == ("server", text)


def test_a_cluster_has_seeds() -> None:
    url = parse_store_url("rediss+cluster://u:p%2F@a:7000,b,[::1]:7002?ssl_cert_reqs=none")
    assert (url.kind, url.seeds) == (
        "cluster",
        (Node("a", 7000), Node("b", 6379), Node("::1", 7002)),
    )
    assert url.of_server(Node("c", 1)) == "rediss://u:p%2F@c:1/0?ssl_cert_reqs=none"
    assert url.of_server(url.seeds[2]).startswith("rediss://u:p%2F@[::1]:7002/0")


def test_sentinels_have_a_name_a_database_and_a_password_of_their_own() -> None:
    url = parse_store_url("redis+sentinel://:p@s1,s2:7000/shop/3?sentinel_password=q%40&a=b")
    assert (url.kind, url.service_name) == ("sentinel", "shop")
    assert url.seeds == (Node("s1", 26379), Node("s2", 7000))
    assert url.of_server(Node("h", 1)) == "redis://:p@h:1/3?a=b"
    assert url.of_sentinel(url.seeds[0]) == "redis://:q%40@s1:26379/0"
    plain = parse_store_url("redis+sentinel://u:p@s1/shop")
    assert plain.of_server(Node("h", 1)) == "redis://u:p@h:1/0?"
    assert plain.of_sentinel(plain.seeds[0]) == "redis://s1:26379/0"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hunter2", "must start with redis://"),
        ("unix+cluster://hunter2@h", "must start with redis://"),
        ("redis+ring://hunter2@h", "must start with redis://"),
        ("redis://:hunter2@h:port", "cannot be read"),
        ("redis://:hun/hunter2@h", "percent-encoded"),
        ("redis://:12/hunter2@h", "percent-encoded"),
        ("redis://:12#hunter2@h", "percent-encoded"),
        ("redis://:12?hunter2@h", "percent-encoded"),
        ("redis+cluster://:[hunter2@h", "percent-encoded"),
        ("redis+cluster://:hunter2@a,b:x", "cannot be read"),
        ("redis+cluster://:hunter2@a,b/1", "no databases"),
        ("redis+sentinel://:hunter2@a,b", "/<service-name>"),
        ("redis+sentinel://:hunter2@a,b/shop/x", "/<service-name>"),
    ],
)
def test_a_wrong_url_is_half_a_sentence_without_the_password(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        parse_store_url(text)
    assert "hun" not in str(caught.value)
    assert caught.value.__suppress_context__ or not caught.value.__context__


def test_a_url_does_not_show_its_password() -> None:
    for text in ("redis://:hunter2@h", "redis+sentinel://:hunter2@h/s?sentinel_password=hunter3"):
        assert "hunter" not in repr(parse_store_url(text))
