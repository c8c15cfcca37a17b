"""axe-core finds nothing wrong with any view, light on a desktop and dark on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from explained import EXPLAINED
from opened_page import ADMIN_KEY, PATIENCE_MS, Seen
from playwright.sync_api import Page, expect
from running_service import Service

expect.set_options(timeout=PATIENCE_MS)

DESKTOP: dict[str, Any] = {}
PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}
RUN = "() => axe.run(document, {resultTypes: ['violations']})"


def check(page: Page, axe: str, state: str) -> None:
    page.evaluate(axe)
    found = page.evaluate(RUN)["violations"]
    assert [
        (state, one["id"], node["html"][:200], node["failureSummary"])
        for one in found
        for node in one["nodes"]
    ] == []


@pytest.mark.parametrize("seen", [DESKTOP, PHONE], indirect=True, ids=["desktop", "dark phone"])
def test_axe_finds_nothing(seen: Seen, page_service: Service, axe: str) -> None:
    seen.expected.append("422")
    page_service.client.request("DELETE", "/users/axe/history")
    page_service.send("item-50", "item-51", user_id="axe")
    page = seen.open()
    if page.locator(".settings").get_attribute("open") is None:
        page.locator(".settings > summary").click()
    page.get_by_label("User").fill("axe")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".status")).to_contain_text("The stored history of axe")
    page.locator(".request > summary").click()
    page.locator('#playground [data-field="order"] select').select_option("raw_confidence")
    expect(page.locator("#playground .wrong:visible")).to_have_count(1)
    page.get_by_label("Add an item").fill("Title of")
    expect(page.get_by_role("listbox")).to_be_visible()
    check(page, axe, "playground")
    page.keyboard.press("Escape")
    page.locator('#playground [data-field="order"] select').select_option("confidence")
    page.route("**/explain", lambda route: route.fulfill(json=EXPLAINED))
    page.get_by_role("button", name="Why?").first.click()
    expect(page.locator("#why .codes")).to_be_visible()
    check(page, axe, "explanation")
    page.keyboard.press("Escape")
    page.goto(f"{seen.url}/#operate")
    page.get_by_label("Administrator's key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_role("button", name="Hide")).to_be_visible()
    expect(page.locator(".chart canvas")).to_have_count(4)
    check(page, axe, "operate")
    try:
        page.get_by_label("Bundle to load").fill("next@1")
        page.get_by_role("button", name="Load", exact=True).click()
        expect(page.locator("#operate table").first).to_contain_text("next@1")
        page.goto(f"{seen.url}/#compare")
        page.get_by_label("Bundle of B").select_option("next@1")
        page.locator("#compare summary").first.click()
        expect(page.locator("#compare .side").last.locator(".decoding")).to_contain_text("next@1")
        check(page, axe, "compare")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        page_service.client.post(
            "/admin/bundles/next@1/unload", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
        )
