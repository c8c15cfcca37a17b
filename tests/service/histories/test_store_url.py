"""URLs of the history store: what they mean, and that no error shows a password."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import ConnectionPool

from service.histories.store_url import Node, parse_store_url


@pytest.mark.parametrize(
    "text",
    [
        "redis://",
        "redis://h:6380/1",
        "redis://h/?db=1",
        "redis://[::1]:1/0/",
        "rediss://u:p%40@h?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///a/b@c?db=1",
        "unix://u:p@/a/b?password=q",
    ],
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
    url = parse_store_url("redis+sentinel://:p@s1,s2:7000/shop/3?sentinel_password=q%40")
    assert (url.kind, url.service_name) == ("sentinel", "shop")
    assert url.seeds == (Node("s1", 26379), Node("s2", 7000))
    assert url.of_server(Node("h", 1)) == "redis://:p@h:1/3?"
    assert url.of_sentinel(url.seeds[0]) == "redis://:q%40@s1:26379/0?"
    plain = parse_store_url("redis+sentinel://u:p@s1/shop")
    assert plain.of_server(Node("h", 1)) == "redis://u:p@h:1/0?"
    secure = parse_store_url("rediss+sentinel://s1/a%20shop?ssl_cert_reqs=none")
    assert secure.of_sentinel(Node("h", 1)) == "rediss://h:1/0?ssl_cert_reqs=none"
    assert secure.service_name == "a shop"
    assert plain.of_sentinel(plain.seeds[0]) == "redis://s1:26379/0?"


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
        ("redis+sentinel://:hunter2@a,b/shop/1/2", "/<service-name>"),
        ("redis://:hunter2@a,b/0", "names several hosts: redis[+]cluster:// is for"),
        ("rediss://:hunter2@a:1,b:2", "names several hosts"),
        ("redis://:hunter2@a/histories", "the number of a database, as in redis://host:6379/0"),
        ("redis://:hunter2@a/0/1", "the number of a database"),
        ("redis://:hunter2@a/-1", "the number of a database"),
        ("redis://:hunter2@a/99999999999", "the number of a database"),
        ("redis://:hunter2@a/\u0663", "the number of a database"),
        ("redis://:hunter2@a?db=hunter", "its option db must be the number"),
        ("redis://:hunter2@a/1?db=2", "names a database twice"),
        ("redis://:hunter2@a?db=1&db=2", "its option db is given twice"),
        ("redis://:hunter2@a?db=", "its option db has no value"),
        ("redis://:hunter2@a?db", "its option db has no value"),
        ("redis://:hunter2@a?db=1&&", "name=value with & between"),
        ("redis://:hunter2@a?colour=red", "its option colour is not known; there are db, pass"),
        ("redis://:hunter2@a?hunter%202=red", "one of its options is not known"),
        ("redis://:hunter2@a?decode_responses=no", "option decode_responses is not known"),
        ("redis://:hunter2@a?socket_timeout=9", "belongs into UNMASK_REDIS_TIMEOUT_MS"),
        ("redis://:hunter2@a?max_connections=9", "belongs into UNMASK_REDIS_POOL_SIZE"),
        ("redis://:hunter2@a?sentinel_password=b", "option sentinel_password is not known"),
        ("redis+cluster://:hunter2@a,b?db=1", "its option db is not known"),
        ("redis://:hunter2@a?ssl_cert_reqs=none", "is for TLS: it must start with rediss"),
        ("rediss://:hunter2@a?ssl_cert_reqs=maybe", "must be required or optional or none"),
        ("rediss://:hunter2@a?ssl_check_hostname=hunter", "must be true or false"),
        ("rediss://:hunter2@a?ssl_ca_certs=/hunter", "must be a file of certificates"),
        (f"rediss://:hunter2@a?ssl_ca_certs={__file__}", "must be a file of certificates"),
        (f"rediss://:hunter2@a?ssl_certfile={__file__}", "must be files of a certificate and"),
        (f"rediss://:hunter2@a?ssl_keyfile={__file__}", "ssl_keyfile needs ssl_certfile"),
        ("redis://:hunter2@a/0#b", "a # ends it too early"),
        ("redis://:hunter2@a/0\n", "a line break"),
        ("redis://:hunter2 @a", "a space"),
        ("redis://:hunter2@a:0", "cannot be read"),
        ("redis+cluster://:hunter2@a,,b", "a host is missing"),
        ("redis+cluster://:hunter2@a,", "a host is missing"),
        ("unix://hunter2/valkey.sock", "three slashes"),
        ("unix://", "three slashes"),
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


def mostly(*usual: str) -> st.SearchStrategy[str]:
    return st.sampled_from(usual) | st.text("aZ0:/?#[]@!$&',;=%.-_ \\\t\u2100\udcff", max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(
        mostly("redis", "rediss", "unix", "redis+cluster", "rediss+sentinel"),
        mostly("://", "://:p@", "://u:p%2F@"),
        mostly("h", "h:1", "h1,h2:2", "[::1]:7", "h:x", ""),
        mostly("", "/", "/0", "/15", "/name", "/name/2", "/tmp/a.sock"),
        mostly("", "?db=1", "?db=x", "?ssl_cert_reqs=none", "?sentinel_password=q", "?a=b"),
        mostly("", "&password=q", "&db=2", "&", "&socket_timeout=1"),
    )
)
def test_a_url_is_refused_or_can_be_used(parts: tuple[str, ...]) -> None:
    """An accepted URL is accepted completely: the client knows all of it and ignores nothing."""
    text = "".join(parts)
    try:
        url = parse_store_url(text)
    except ValueError:
        return
    texts = [text]
    if url.kind != "server":
        texts = [url.of_server(node) for node in url.seeds]
        texts += [url.of_sentinel(node) for node in url.seeds]
    for one in texts:
        connection = ConnectionPool.from_url(one).make_connection()
        if url.kind == "server" and parts[0] != "unix" and parts[3] in ("/0", "/15"):
            assert connection.db == int(parts[3][1:])
