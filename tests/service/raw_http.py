"""HTTP byte by byte, for requests that no client would send, and answers that none would show."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable

from running_service import Service

ERROR_FIELDS = {"code", "message", "param", "retryable", "request_id", "details"}
Answer = tuple[int, dict[str, str], bytes]


def connection(service: Service) -> socket.socket:
    address = ("127.0.0.1", service.client.base_url.port or 0)
    connected = socket.create_connection(address, timeout=300)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def answers(received: bytes) -> Iterable[Answer]:
    """Status, headers and body of every answer; fails on half an answer."""
    while received:
        top, separator, received = received.partition(b"\r\n\r\n")
        assert separator, top
        status, *lines = top.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        assert len(received) >= length, "half an answer"
        yield int(status.split()[1]), headers, received[:length]
        received = received[length:]


def exchange(service: Service, *parts: bytes) -> bytes:
    """All bytes until the service closes the connection, which it must do."""
    with connection(service) as client:
        received = b""
        try:
            for part in parts:
                client.sendall(part)
            while some := client.recv(1 << 16):
                received += some
        except (ConnectionResetError, BrokenPipeError):
            pass  # it does not have to read what it refuses
        return received


def error_code(answer: Answer) -> str:
    """The code of the one error body. Checks that the answer has it as documented."""
    status, headers, body = answer
    assert status >= 400
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert set(error) == ERROR_FIELDS
    assert error["request_id"] == headers["x-request-id"]
    assert error["message"]
    code: str = error["code"]
    return code
