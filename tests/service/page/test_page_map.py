"""The map's module in a real browser, alone on a page: 20,000 points of a made-up catalogue."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened_page import PATIENCE_MS
from playwright.sync_api import Browser, ConsoleMessage, Page

STATIC = Path(__file__).resolve().parents[3] / "service" / "page" / "static"
NUM_ITEMS = 20_000
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>alert(1)</script> \u202eolleh"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>map</title>
<meta name="color-scheme" content="light dark">
<script type="module" src="/try.js"></script>
<body><section id="map"></section></body></html>"""
TRY = """
import { showMap, startMap } from "/map.js";
function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat());
  return made;
}
async function ask(method, path) {
  const answered = await fetch(`/api${path}`);
  if (!answered.ok) throw Object.assign(new Error("no map"), { status: answered.status });
  return { answer: await answered.json() };
}
window.picked = [];
window.map = await showMap(document.getElementById("map"), {
  ask, el, history: ["item-5", "gone"], recommendations: ["item-9"],
  onPick: (item) => window.picked.push(item.item_id),
});
const refusing = async () => { throw Object.assign(new Error("no map"), { status: 404 }); };
window.withoutMap = await startMap(null, { ask: refusing });
"""


def catalogue() -> tuple[np.ndarray, np.ndarray]:
    """Places in ten clouds, and the cloud of each; item 0 stands alone in a corner."""
    random = np.random.default_rng(4)
    cloud = random.integers(0, 10, NUM_ITEMS)
    middles = random.uniform(15_000, 50_000, (10, 2))
    places = np.clip(middles[cloud] + random.normal(0, 3_000, (NUM_ITEMS, 2)), 4_000, 61_000)
    places[0] = (65_534, 0)
    places[1] = (65_535, 65_535)  # no place
    return places.astype("<u2"), cloud.astype("<u2")


PLACES, CLOUD = catalogue()


def coded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def answer_to(path: str) -> Any:
    if path.startswith("/map/groups"):
        is_text = "attribute" in path
        names = [f"<b>cloud</b> {n}" for n in range(10)] if is_text else None
        groups = CLOUD if is_text else CLOUD * 7 % 256
        return {
            "bundle": "b@1",
            "items_tag": "t",
            "groups": coded(groups),
            "names": names,
            "ordered": False,
        }
    if path.startswith("/map"):
        return {
            "bundle": "b@1",
            "items_tag": "t",
            "num_items": NUM_ITEMS + 5,
            "item_ids": [f"item-{n}" for n in range(NUM_ITEMS)],
            "places": coded(PLACES),
            "positions": 4,
            "attributes": ["category"],
        }
    item_id = path.removeprefix("/items/")
    return {"item_id": item_id, "title": HOSTILE + item_id, "categories": [], "sid": [1, 2]}


class Handler(SimpleHTTPRequestHandler):
    extensions_map = {".js": "text/javascript", ".css": "text/css"}  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(PAGE, "text/html")
        elif self.path == "/try.js":
            self.answer(TRY, "text/javascript")
        elif self.path.startswith("/api/"):
            self.answer(json.dumps(answer_to(self.path.removeprefix("/api"))), "application/json")
        elif self.path == "/favicon.ico":
            self.answer("", "image/x-icon")
        else:
            super().do_GET()

    def answer(self, text: str, media_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(STATIC)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The map, drawn once. Nothing may be complained of."""
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    context = browser.new_context(
        color_scheme=getattr(request, "param", "light"), viewport={"width": 1100, "height": 800}
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    page.wait_for_function("() => window.withoutMap === null && window.map.frames > 0")
    yield page
    title = page.title()
    context.close()
    ours = "Canvas2D: Multiple readback"  # of `pixels`
    assert [one for one in complaints if not one.startswith(ours)] == []
    assert title == "map"


def settled(page: Page) -> None:
    """Until the next frame is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(page: Page) -> np.ndarray:
    """(height, width, 4)"""
    text, width = page.evaluate(
        """() => {
          const { canvas, context } = window.map;
          const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
          let text = "";
          for (let n = 0; n < data.length; n += 8192)
            text += String.fromCharCode(...data.subarray(n, n + 8192));
          return [btoa(text), canvas.width];
        }"""
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, width, 4)


def spot(page: Page, item_id: str) -> tuple[float, float]:
    """Where an item is in the window."""
    x, y = page.evaluate("(item_id) => window.map.at(item_id)", item_id)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    return box["x"] + x, box["y"] + y


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_every_point_is_drawn_in_its_colour_and_colours_change(page: Page) -> None:
    page.evaluate("window.map.update({})")
    settled(page)
    drawn = pixels(page)
    ground = drawn[2, 2]
    colours = page.evaluate("Array.from(window.map.pixels)")
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (ground[:3].max() < 80) == is_dark
    spots = page.evaluate("window.map.itemIds.map((itemId) => window.map.at(itemId))")
    assert spots[1] is None
    del spots[1]
    x, y = np.array(spots).round().astype(int).T
    assert (drawn[y, x] != ground).any(axis=1).all()
    expected = np.delete(np.array(colours, "<u4").view(np.uint8).reshape(-1, 4), 1, axis=0)
    seen = np.count_nonzero((drawn[y, x] == expected).all(axis=1))
    assert seen > NUM_ITEMS * 0.3  # others lie below these
    assert (drawn[y[0] + 60, x[0] - 30] == ground).all()  # item 0 stands alone

    page.get_by_label("Colour by").select_option("attribute=category")
    page.wait_for_function("() => window.map.names !== null")
    settled(page)
    assert (pixels(page) != drawn).any()
    assert page.locator(".map-legend li").count() == 10
    assert page.locator(".map-legend li").first.inner_text().startswith("<b>cloud</b> 0")
    assert len(set(page.evaluate("Array.from(window.map.pixels)"))) == 10


def test_a_point_is_chosen_where_it_is_and_titles_are_text(page: Page) -> None:
    page.mouse.move(*spot(page, "item-0"))
    tip = page.locator(".map-tip")
    tip.wait_for(state="visible")
    assert tip.inner_text().startswith("<img src=x")
    page.mouse.click(*spot(page, "item-0"))
    chosen = page.locator(".map-chosen")
    chosen.get_by_text("item-0").wait_for()
    assert HOSTILE[:40] in chosen.inner_text()
    assert "Semantic ID 1 2" in chosen.inner_text()
    chosen.get_by_role("button", name="Add to the history").click()
    assert page.evaluate("window.picked") == ["item-0"]
    assert page.locator("img, .map-chosen script").count() == 0

    page.mouse.click(*spot(page, "item-5"))  # marked: it wins against all that lie around it
    chosen.get_by_text("item-5").wait_for()
    x, y = spot(page, "item-0")
    page.mouse.click(x - 60, y + 60)  # empty
    chosen.get_by_text("None.").wait_for()


def test_a_point_at_the_edge_is_cut_off_and_not_left_out(page: Page) -> None:
    page.evaluate("window.map.update({})")
    inside = page.evaluate("[window.map.canvas.width - 1, window.map.canvas.width, 200]")
    for x, y in ((inside[0], inside[2]), (inside[1], inside[2])):  # the last pixel; just beyond
        page.evaluate(
            """([x, y]) => {
              const { map } = window;
              map.view.x = 1 - (x - map.width / 2) / map.scale;
              map.view.y = 0 - (y - map.height / 2) / map.scale;
              map.draw();
            }""",
            [x, y],
        )
        settled(page)
        drawn = pixels(page)
        own = np.array([page.evaluate("window.map.pixels[0]")], "<u4").view(np.uint8)
        ground = drawn[-1, -1]
        assert (drawn[y, -1] != ground).any()
        if x < drawn.shape[1]:
            assert (drawn[y, -1] == own).all()
        assert (drawn[y + 20, 0] == ground).all()  # what is cut off does not go on elsewhere
        assert (drawn[y + 1, 0] == ground).all()


def test_a_hidden_item_keeps_its_place_and_is_said_to_be_hidden(page: Page) -> None:
    def chosen_is(is_hidden: bool) -> None:
        page.unroute("**/api/items/**")
        page.route(
            "**/api/items/**",
            lambda route: route.fulfill(
                json={**answer_to("/items/item-0"), "hidden": is_hidden},
                headers={"Content-Security-Policy": CSP},
            ),
        )
        page.mouse.click(*spot(page, "item-0"))
        page.locator(".map-chosen").get_by_text("Semantic ID 1 2").wait_for()
        told = page.locator(".map-chosen").get_by_text("It is hidden")
        page.wait_for_function(
            "(count) => document.querySelectorAll('.map-chosen .notice').length === count",
            arg=int(is_hidden),
        )
        assert told.count() == int(is_hidden)

    chosen_is(True)
    chosen_is(False)  # asked for anew


def test_history_and_recommendations_are_marked(page: Page) -> None:
    assert page.evaluate("window.map.marks") == [[5, "history"], [9, "recommended"]]
    marked = pixels(page)
    page.evaluate("window.map.update({ history: ['item-0'] })")
    settled(page)
    changed = (pixels(page) != marked).any(axis=2)
    for item_id in ("item-0", "item-5", "item-9"):
        x, y = page.evaluate("(item_id) => window.map.at(item_id).map(Math.round)", item_id)
        assert changed[max(0, y - 12) : y + 12, max(0, x - 12) : x + 12].any()


def test_it_is_moved_by_drag_wheel_and_keys(page: Page) -> None:
    before = spot(page, "item-7")
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 340, box["y"] + 280, steps=4)
    page.mouse.up()
    assert spot(page, "item-7") == pytest.approx((before[0] + 40, before[1] - 20), abs=0.5)
    assert "None yet" in page.locator(".map-chosen").inner_text()  # a drag chooses nothing

    page.mouse.move(*spot(page, "item-7"))
    there = spot(page, "item-7")
    page.mouse.wheel(0, -300)
    page.wait_for_function("() => window.map.view.zoom > 1.2")
    assert spot(page, "item-7") == pytest.approx(there, abs=1)  # what is below stays there

    canvas.focus()
    for key, (dx, dy) in {"ArrowRight": (-60, 0), "ArrowUp": (0, 60)}.items():
        there = spot(page, "item-7")
        page.keyboard.press(key)
        assert spot(page, "item-7") == pytest.approx((there[0] + dx, there[1] + dy), abs=0.5)
    zoom = page.evaluate("window.map.view.zoom")
    page.keyboard.press("+")
    assert page.evaluate("window.map.view.zoom") > zoom
    page.keyboard.press("Enter")
    page.locator(".map-chosen").get_by_text("item-").wait_for()
    page.keyboard.press("0")
    assert spot(page, "item-7") == pytest.approx(before, abs=0.5)
    assert canvas.get_attribute("aria-label") == "Map of 20,000 items"
    assert "20,000 most popular of 20,005" in page.locator("#map-keys").inner_text()


def test_the_map_is_made_anew_when_its_items_are_others(page: Page) -> None:
    def other(answer: Any) -> Any:
        few = {"items_tag": "u", "item_ids": ["item-9", "item-5", "item-2"], "num_items": 3}
        known = {name: value for name, value in few.items() if name in answer}
        if "groups" in answer:
            return answer | known | {"groups": coded(CLOUD[:3])}
        return answer | known | {"places": coded(PLACES[2:5])}

    page.route(
        "**/api/map**",
        lambda route: route.fulfill(
            json=other(answer_to(route.request.url.partition("/api")[2])),
            headers={"Content-Security-Policy": CSP},
        ),
    )
    page.evaluate("() => window.map.colourBy('position=1')")
    shown = page.evaluate("() => [window.map.itemIds, window.map.marks, window.map.groups.length]")
    assert shown == [["item-9", "item-5", "item-2"], [[1, "history"], [0, "recommended"]], 3]
    assert page.get_by_text("All 3 items.").count() == 1
    assert page.get_by_label("Colour by").input_value() == "position=1"
