"""One headless Chromium and one service with keys, for all tests of the page.

The bundle has everything that the page shows: attributes of each type, a dense head, training
without histories, two items at once; and titles of the worst kind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opened_page import ADMIN_KEY, ALONE, HOSTILE, KEY, Seen, new_context
from playwright.sync_api import Browser, sync_playwright
from running_service import Service, service_process
from tiny_bundle import DENSE, write_tiny_bundle

from service.bundles.bundle import DecodingDefaults


def attributes_of(row: int) -> dict[str, Any]:
    """One of each type."""
    day = f"2024-{row % 12 + 1:02}-01"
    return {"brand": (f"<b>Brand {row % 3}</b>",), "price": float(row), "released": day}


@pytest.fixture(scope="session")
def page_service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """tiny@1; in the store also tiny@2, with other neighbours, and next@1, of another family.

    Clients need a key. The default of tiny is not the schedule of the papers.
    """
    folder = tmp_path_factory.mktemp("page")
    for version, offset in (("1", 0), ("2", 3)):
        write_tiny_bundle(
            folder / "bundles" / "tiny" / version,
            version=version,
            offset=offset,
            titles=HOSTILE,
            attributes=attributes_of,
            dense=DENSE,
            history_dropout=0.1,
            max_horizon=2,
            decoding=DecodingDefaults(r_warm=0, m_par=2, beam_width=10),
        )
    write_tiny_bundle(folder / "bundles" / "next" / "1", name="next", autoregressive=True)
    with service_process(
        folder / "service",
        bundles_dir=folder / "bundles",
        bundle="tiny@1",
        redis_url=redis_url,
        api_keys=KEY,
        admin_keys=ADMIN_KEY,
    ) as service:
        service.client.headers["Authorization"] = f"Bearer {KEY}"
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one file: as long as it is there, an event loop runs, and others cannot begin one."""
    if (program := shutil.which("chromium")) is None:
        pytest.skip("install chromium to try the page in it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ALONE))
        yield browser
        browser.close()


@pytest.fixture
def seen(browser: Browser, page_service: Service, request: pytest.FixtureRequest) -> Iterator[Seen]:
    """A fresh page of somebody who knows the key. `indirect` parameters are its context's."""
    options = getattr(request, "param", {})
    context = new_context(browser, **options)
    url = str(page_service.client.base_url).rstrip("/")
    seen = Seen(context.new_page(), url)
    seen.page.on("console", seen.hear)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda asked: seen.asked.append(asked.url))
    yield seen
    context.close()
    unexpected = [one for one in seen.complaints if not any(part in one for part in seen.expected)]
    assert unexpected == []
    assert [one for one in seen.asked if not one.startswith((url, "data:"))] == []


@pytest.fixture(scope="session")
def axe() -> str:
    return (Path(__file__).parent / "axe" / "axe.min.js").read_text()
