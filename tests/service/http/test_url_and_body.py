"""Bodies that are longer than allowed are refused by what they announce, before they are sent."""

from __future__ import annotations

import pytest
from raw_http import answers, connection, error_code
from running_service import Service

from service.http.error_map import MAX_BODY_BYTES


def head(path: str, length: int, *lines: str) -> bytes:
    own = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json")
    return "\r\n".join([*own, f"Content-Length: {length}", *lines, "\r\n"]).encode()


@pytest.mark.parametrize("path", ["/recommend", "/events", "/items/item-1/similar"])
def test_who_asks_before_sending_is_refused_and_sends_nothing(served: Service, path: str) -> None:
    with connection(served) as client:
        client.sendall(head(path, MAX_BODY_BYTES + 1, "Expect: 100-continue"))
        [refusal] = answers(client.recv(1 << 16))
    assert refusal[0] == 413
    assert error_code(refusal) == "body_too_large"


def test_who_asks_before_sending_as_much_as_allowed_may(served: Service) -> None:
    with connection(served) as client:
        client.sendall(head("/recommend", MAX_BODY_BYTES, "Expect: 100-continue"))
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        client.sendall(b'{"user_id": "x"}'.ljust(MAX_BODY_BYTES))
        [answer] = answers(client.recv(1 << 16))
    assert answer[0] == 200


def test_a_body_that_is_sent_all_the_same_does_not_become_the_next_request(
    served: Service,
) -> None:
    with connection(served) as client:
        client.sendall(head("/recommend", MAX_BODY_BYTES + 1))
        [refusal] = answers(client.recv(1 << 16))
        client.sendall(b"GET /health/live HTTP/1.1\r\n\r\n".ljust(MAX_BODY_BYTES + 1))
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        [answer] = answers(client.recv(1 << 16))
    assert error_code(refusal) == "body_too_large"
    assert error_code(answer) == "route_not_found"
