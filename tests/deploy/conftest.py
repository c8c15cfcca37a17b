"""What the monitoring tests need: the programs of Debian's package `prometheus`."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def prometheus_package() -> None:
    """Tests are skipped with the reason without it; CI installs it and allows no skip."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        pytest.skip("install prometheus, which brings promtool (Debian: the package prometheus)")
