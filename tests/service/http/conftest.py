"""What the tests over HTTP share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_valkey import Server, running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey that may be stopped."""
    valkey = Server(tmp_path_factory.mktemp("valkey"), {"save": '""'})
    with running(valkey):
        yield valkey
