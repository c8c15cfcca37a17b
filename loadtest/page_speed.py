"""How fast is the page for somebody who uses it?

`python -m loadtest.page_speed` serves a bundle (or takes a running service, `--url`) and opens its
page in headless Chromium, driven by Playwright, anew in each turn. It measures inside the browser:
first paint, the first list of recommendations, how long after a key that moves a setting the new
list is on the screen, and how often the map is drawn while it is dragged. It prints median, minimum
and maximum of the turns; the last line is JSON. Knows the page by its elements only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from loadtest.clients import authorization, run_service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEMO = Path(__file__).resolve().parents[1] / "models_store" / "demo"
PATIENCE_MS = 60_000
PAUSE_MS = 200  # between moves: the page waits with moves that follow each other faster
MOVED = ("k", "beam_width", "r_warm", "m_par")  # settings, where the bundle's family has them
# What happens in the page, in milliseconds since it was asked for. A list counts when the frame
# that shows it has been made: a message that is posted from a frame comes after that frame.
WATCH = """
window.measured = { keys: [], lists: [], draws: [], requests: [] };
addEventListener("keydown", (event) => measured.keys.push(event.timeStamp), true);
const afterTheFrame = (work) => requestAnimationFrame(() => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = work;
  port2.postMessage(null);
});
new MutationObserver((changes) => {
  const isList = (node) => node.matches?.("#playground .list");
  if (changes.some((one) => one.addedNodes.length && isList(one.target)))
    afterTheFrame(() => measured.lists.push(performance.now()));
}).observe(document, { childList: true, subtree: true });
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (...given) {
  measured.draws.push(performance.now());
  return put.apply(this, given);
};
new PerformanceObserver((seen) => {
  for (const one of seen.getEntries())
    if (one.name.endsWith("/recommend")) measured.requests.push(one.responseEnd - one.startTime);
}).observe({ type: "resource", buffered: true });
"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
REFUSED = "#playground .notice.bad"


@dataclass(frozen=True)
class Turn:
    """What one opening of the page has shown.

    first_paint_ms, first_list_ms: since the page was asked for
    moves_ms: from a key to the new list on the screen; requests_ms: of POST /recommend within that
    draws: of the map while it was dragged; drag_s: how long that took; both 0 without a map
    """

    first_paint_ms: float
    first_list_ms: float
    moves_ms: tuple[float, ...]
    requests_ms: tuple[float, ...]
    draws: int
    drag_s: float

    @property
    def frames_a_second(self) -> float | None:
        """None without a map."""
        return self.draws / self.drag_s if self.drag_s else None


def turn_of(browser: Browser, url: str, *, moves: int, drags: int) -> Turn:
    """Open the page with nothing cached, and use it. Raises RuntimeError if it refuses."""
    context = browser.new_context(
        viewport={"width": 1300, "height": 900}, extra_http_headers=authorization()
    )
    try:
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.goto(url)
        first_list = _next_list(page, 0)
        first_paint = page.wait_for_function(PAINT).json_value()
        moved, requested = _moves(page, moves)
        draws, seconds = _drag(page, drags)
        return Turn(first_paint, first_list, moved, requested, draws, seconds)
    finally:
        context.close()


def _next_list(page: Page, seen: int) -> float:
    """When the list after the first `seen` ones was on the screen."""
    script = "([seen, refused]) => measured.lists.length > seen || document.querySelector(refused)"
    page.wait_for_function(script, arg=[seen, REFUSED])
    if page.locator(REFUSED).count():
        raise RuntimeError(f"the page says: {page.locator(REFUSED).first.inner_text()}")
    return float(page.evaluate("measured.lists.at(-1)"))


def _moves(page: Page, moves: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Move settings one step away from their own value and back, one after the other."""
    page.evaluate("measured.requests.length = 0")
    fields = [page.locator(f'#playground [data-field="{name}"] input') for name in MOVED]
    sliders = [field for field in fields if field.count()]
    there, back = "ArrowRight", "ArrowLeft"
    found = []
    for move in range(moves):
        slider = sliders[move // 2 % len(sliders)]
        slider.focus()
        if move % 2 == 0:
            is_full = slider.evaluate("one => one.value === one.max")
            there, back = ("ArrowLeft", "ArrowRight") if is_full else ("ArrowRight", "ArrowLeft")
        seen = page.evaluate("measured.lists.length")
        page.keyboard.press(back if move % 2 else there)
        shown = _next_list(page, seen)
        found.append(shown - page.evaluate("measured.keys.at(-1)"))
        page.wait_for_function("(count) => measured.requests.length >= count", arg=move + 1)
        page.wait_for_timeout(PAUSE_MS)
    return tuple(found), tuple(page.evaluate("measured.requests"))


def _drag(page: Page, drags: int) -> tuple[int, float]:
    """Drag the whole map to and fro; how often it was drawn, and in how many seconds."""
    link = page.locator('nav a[href="#map"]')
    if not link.is_visible():
        return 0, 0.0
    link.click()
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    page.wait_for_function("() => measured.draws.length > 0")
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate("measured.draws.length = 0")
    for drag in range(drags):
        page.mouse.move(x + (120 if drag % 2 == 0 else -120), y + 60, steps=30)
    page.mouse.up()
    draws, milliseconds = page.evaluate(
        "[measured.draws.length, measured.draws.at(-1) - measured.draws[0]]"
    )
    return draws - 1, milliseconds / 1000


@contextlib.contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """A headless Chromium without a GPU. Raises RuntimeError without Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise RuntimeError("this needs Playwright: python -m pip install playwright") from None
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def facts_of(url: str) -> tuple[str, int]:
    """Name and version of the active bundle, and its number of items. Raises RuntimeError."""
    try:
        answer = httpx.get(f"{url}/info", timeout=60, trust_env=False)
        bundle = answer.raise_for_status().json()["bundle"]
    except httpx.HTTPError as error:
        raise RuntimeError(f"{url} does not answer as a service does: {error}") from None
    if bundle is None:
        raise RuntimeError("the service is starting; try again when /health/ready answers 200")
    return f"{bundle['name']}@{bundle['version']}", bundle["num_items"]


def row(name: str, unit: str, values: Sequence[float]) -> str:
    """A line of the table: median, minimum and maximum of the turns."""
    shown = (statistics.median(values), min(values), max(values))
    return f"{name:<44}" + "".join(f"{value:>9.1f}" for value in shown) + f"  {unit}"


def report(bundle: str, num_items: int, turns: Sequence[Turn]) -> dict[str, Any]:
    """Print a table; returns what the line of JSON has."""
    print(f"\n{f'{bundle}, {num_items:,} items':<44}{'median':>9}{'min':>9}{'max':>9}")
    print(row("first paint", "ms", [one.first_paint_ms for one in turns]))
    print(row("first list of recommendations", "ms", [one.first_list_ms for one in turns]))
    medians = [statistics.median(one.moves_ms) for one in turns]
    print(row("a setting moves until the new list, p50", "ms", medians))
    of_requests = [statistics.median(one.requests_ms) for one in turns if one.requests_ms]
    if of_requests:
        print(row("  of it the request, as the browser sees it", "ms", of_requests))
    frames = [one.frames_a_second for one in turns if one.frames_a_second is not None]
    if frames:
        print(row("the map is drawn while it is dragged", "a second", frames))
    else:
        print("the bundle has no map")
    own: list[dict[str, Any]] = [
        {**asdict(one), "frames_a_second": one.frames_a_second} for one in turns
    ]
    return {"bundle": bundle, "items": num_items, "turns": own}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    served = parser.add_mutually_exclusive_group()
    served.add_argument("--bundle", type=Path, help="to serve; default: the demo's")
    served.add_argument("--url", help="of a service that runs already")
    for name, default, what in (
        ("--turns", 5, "how often the page is opened"),
        ("--moves", 24, "of settings, in each turn"),
        ("--drags", 4, "of the map, in each turn"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="its program")
    asked = parser.parse_args(arguments)
    if min(asked.turns, asked.moves, asked.drags) < 1:
        parser.error("--turns, --moves and --drags are at least 1")
    try:
        with contextlib.ExitStack() as stack:
            if not asked.chromium:
                raise RuntimeError("this needs Chromium: install it, or name it with --chromium")
            url = asked.url
            if url is None:
                bundle = asked.bundle or sorted(DEMO.iterdir())[-1]
                url = stack.enter_context(run_service(bundle)).url
            url = url.rstrip("/")
            ref, num_items = facts_of(url)
            browser = stack.enter_context(chromium(asked.chromium))
            turns = [
                turn_of(browser, url, moves=asked.moves, drags=asked.drags)
                for _ in range(asked.turns)
            ]
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report(ref, num_items, turns)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
