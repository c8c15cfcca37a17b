"""The page in a real browser: what people see, and what the service gets from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from explained import EXPLAINED
from opened_page import ADMIN_KEY, HOSTILE, KEY, PATIENCE_MS, Seen
from playwright.sync_api import Page, Request, Route, expect
from running_service import Service, wait_until

expect.set_options(timeout=PATIENCE_MS)

RECOMMENDED = "#playground .answer .card"
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}


def recommended(page: Page) -> list[str]:
    """The item ids that the page shows, best first, when nothing is on its way."""
    expect(page.locator("#playground .list")).to_have_attribute("aria-busy", "false")
    expect(page.locator(RECOMMENDED).first).to_be_visible()
    ids: list[str] = page.eval_on_selector_all(RECOMMENDED, "all => all.map(e => e.dataset.item)")
    return ids


def history(page: Page) -> list[str]:
    """The item ids of the history, oldest first."""
    ids: list[str] = page.eval_on_selector_all(
        ".history .card", "all => all.map(e => e.dataset.item)"
    )
    return ids[::-1]


def field(page: Page, name: str) -> Any:
    return page.locator(f'#playground [data-field="{name}"]')


def body_of(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.post_data or "{}")
    return body


def is_ask(request: Request) -> bool:
    return request.url.endswith("/recommend")


def show(page: Page, user_id: str) -> None:
    with page.expect_response(lambda answer: answer.url.endswith("/recommend")):
        page.get_by_label("User").fill(user_id)
        page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".status")).to_contain_text(user_id)


def test_the_first_screen_shows_a_history_and_what_it_leads_to(
    seen: Seen, page_service: Service
) -> None:
    page = seen.open()
    items = recommended(page)
    user = page_service.client.get("/held-out-users?limit=1").json()["users"][0]
    expect(page.locator(".history .card")).to_have_count(len(user["history"]))
    assert history(page) == user["history"]
    answer = page_service.recommend(user_id=user["user_id"], history=user["history"]).json()
    assert items == [item["item_id"] for item in answer["items"]]
    expect(page.locator("#bundle")).to_contain_text("tiny@1")
    for stage in ("history", "queue", "encode", "denoise", "search", "map"):
        expect(page.locator(".legend")).to_contain_text(stage)
    expect(page.locator("#playground .decoding")).to_contain_text("2 calls of the network")


def test_the_command_does_what_the_page_did(seen: Seen) -> None:
    page = seen.open()
    recommended(page)  # of the first history; a setting that moves before is asked of no history
    field(page, "k").locator("input").fill("4")
    expect(page.locator(RECOMMENDED)).to_have_count(4)
    command = page.locator(".request code").text_content() or ""
    assert KEY not in command
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "UNMASK_KEY": KEY, "no_proxy": "127.0.0.1"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert [item["item_id"] for item in json.loads(done.stdout)["items"]] == recommended(page)


SET = [
    ("k", "12", {"k": 12}),
    ("r_warm", "1", {"r_warm": 1}),
    ("m_par", "4", {"m_par": 4}),
    ("beam_width", "20", {"beam_width": 20}),
    ("ranking", "path", {"ranking": "path"}),
    ("order", "entropy", {"order": "entropy"}),
    ("remask", "1", {"remask": 1}),
    ("guidance", "0.5", {"guidance": 0.5}),
    ("retrieval", "fused", {"retrieval": "fused"}),
    ("exclude_seen", None, {"exclude_seen": False}),
    ("filter.category", "rare", {"filter": {"category": ["rare"]}}),
    ("filter.brand", "<b>Brand 1</b>", {"filter": {"brand": ["<b>Brand 1</b>"]}}),
    ("filter.price.gte", "150", {"filter": {"price": {"gte": 150}}}),
    ("filter.released.lte", "2024-11-01", {"filter": {"released": {"lte": "2024-11-01"}}}),
]


def test_every_control_is_asked_for_and_obeyed(seen: Seen) -> None:
    """Each alone: what differs from the bundle's own is sent, and nothing else."""
    page = seen.open()
    recommended(page)
    for name, value, asked in SET:
        control = field(page, name).locator("input, select")
        with page.expect_request(is_ask) as sent:
            if value is None:
                control.uncheck()
            elif control.evaluate("e => e.tagName") == "SELECT":
                control.select_option(value)
            else:
                control.fill(value)
        body = body_of(sent.value)
        extra = {k: v for k, v in body.items() if k not in ("user_id", "history", "metadata")}
        assert extra == asked, name
        recommended(page)
        expect(page.locator("#playground .wrong:visible")).to_have_count(0)
        with page.expect_request(is_ask):
            page.get_by_role("button", name="Reset").click()
        recommended(page)


def test_a_refusal_is_a_sentence_beside_its_control(seen: Seen) -> None:
    seen.expected.append("422")
    page = seen.open()
    recommended(page)
    field(page, "order").locator("select").select_option("raw_confidence")
    wrong = field(page, "order").locator(".wrong")
    expect(wrong).to_contain_text("counts codes that no item has")
    expect(field(page, "order").locator("select")).to_have_attribute("aria-invalid", "true")
    field(page, "ranking").locator("select").select_option("path")
    expect(wrong).to_be_hidden()
    assert recommended(page)


def test_an_older_answer_never_replaces_a_newer_one(seen: Seen) -> None:
    page = seen.open()
    recommended(page)

    def hold(route: Route) -> None:
        if body_of(route.request).get("k") != 3:
            route.continue_()

    page.route("**/recommend", hold)
    with page.expect_request(lambda one: is_ask(one) and body_of(one).get("k") == 3):
        field(page, "k").locator("input").fill("3")
    with page.expect_event("requestfailed", lambda one: body_of(one).get("k") == 3):
        field(page, "k").locator("input").fill("5")
    expect(page.locator(RECOMMENDED)).to_have_count(5)
    expect(page.locator("#playground .notice.bad")).to_have_count(0)


def test_a_move_is_asked_for_at_once_and_many_moves_twice(seen: Seen) -> None:
    page = seen.open()
    recommended(page)
    asked: list[Any] = []
    page.on("request", lambda one: asked.append(body_of(one).get("k")) if is_ask(one) else None)
    field(page, "k").locator("input").evaluate(
        """(input) => {
          for (const value of [3, 4, 5, 6]) {
            input.value = value;
            input.dispatchEvent(new Event("input"));
          }
        }"""
    )
    expect(page.locator(RECOMMENDED)).to_have_count(6)
    assert asked == [3, 6]


def test_a_history_is_built_with_the_keyboard_alone(seen: Seen) -> None:
    page = seen.open()
    recommended(page)
    page.get_by_role("button", name="Show", exact=True).focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_label("Add an item")).to_be_focused()
    page.keyboard.type("item-42")
    expect(page.get_by_role("listbox").get_by_role("option")).to_have_count(1)
    with page.expect_request(is_ask) as sent:
        page.keyboard.press("Enter")
    assert body_of(sent.value)["history"][-1] == "item-42"
    expect(page.locator(".history .card").first).to_have_attribute("data-item", "item-42")
    assert recommended(page)
    page.keyboard.type("no such title")
    expect(page.get_by_role("listbox").get_by_role("option")).to_have_text(
        "No title has these words."
    )
    page.keyboard.press("Escape")
    expect(page.get_by_role("listbox")).to_be_hidden()
    with page.expect_request(is_ask) as sent:
        page.locator(".history .card").first.get_by_role("button").press("Enter")
    assert "item-42" not in body_of(sent.value)["history"]


def test_choosing_an_item_is_an_event_that_counts_for_its_answer(
    seen: Seen, page_service: Service
) -> None:
    page_service.send("item-40", "item-41", user_id="chooser")
    page = seen.open()
    recommended(page)
    show(page, "chooser")
    expect(page.locator(".history .card")).to_have_count(2)
    before = recommended(page)
    page.get_by_role("button", name=re.compile("^Choose")).first.click()
    expect(page.locator(".status")).to_contain_text("It counts for this recommendation.")
    expect(page.locator(".history .card")).to_have_count(3)
    assert history(page) == ["item-40", "item-41", before[0]]
    expect(page.locator(f'{RECOMMENDED}[data-item="{before[0]}"]')).to_have_count(0)
    stored = page_service.client.get("/users/chooser/history").json()
    assert stored["history"][-1] == before[0]

    refused = recommended(page)[0]
    page.get_by_role("button", name=re.compile("^Not for me")).first.click()
    expect(page.locator(".status")).to_contain_text("Stored: not_interested.")
    expect(page.locator(f'{RECOMMENDED}[data-item="{refused}"]')).to_have_count(0)
    assert page_service.client.get("/users/chooser/history").json()["refused"] == [refused]


def test_buttons_of_an_older_answer_do_nothing_for_another_user(
    seen: Seen, page_service: Service
) -> None:
    page_service.send("item-40", user_id="older")
    page_service.send("item-41", user_id="newer")
    page = seen.open()
    recommended(page)
    show(page, "older")
    recommended(page)
    page.route("**/recommend", lambda route: None)  # never answered
    page.get_by_label("User").fill("newer")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".status")).to_contain_text("newer")
    page.get_by_role("button", name=re.compile("^Choose")).first.click()
    for user_id, item_id in (("older", "item-40"), ("newer", "item-41")):
        stored = page_service.client.get(f"/users/{user_id}/history").json()
        assert stored["history"] == [item_id]
    assert not [url for url in seen.asked if url.endswith("/events")]


def test_a_refusal_leaves_no_older_answer(seen: Seen) -> None:
    seen.expected.append("422")
    page = seen.open()
    recommended(page)
    field(page, "order").locator("select").select_option("raw_confidence")
    expect(page.locator("#playground .notice.bad")).to_have_count(1)
    expect(page.locator(RECOMMENDED)).to_have_count(0)


def test_an_older_action_never_replaces_a_newer_one(seen: Seen) -> None:
    page = seen.open()
    recommended(page)
    held: list[Route] = []
    page.route("**/held-out-users*", lambda route: held.append(route))
    with page.expect_request("**/held-out-users*"):
        page.get_by_role("button", name="A random test user").click()
    show(page, "somebody later")
    with page.expect_response("**/held-out-users*"):
        held[0].continue_()
    expect(page.locator(".status")).to_contain_text("somebody later")
    assert len(held) == 1  # it was not gone on with


def test_a_name_that_is_being_typed_stays(seen: Seen) -> None:
    page = seen.page
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        held.append(route)

    page.route("**/users/*/history", hold_the_first)
    with page.expect_request("**/users/*/history"):
        seen.open()
    page.get_by_label("User", exact=True).fill("somebody new")
    held[0].continue_()
    expect(page.locator(".status")).to_contain_text("history of")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".status")).to_contain_text("The stored history of somebody new")


def test_somebody_new_gets_popular_items_and_is_told_so(seen: Seen) -> None:
    page = seen.open()
    recommended(page)
    show(page, "nobody knows me")
    expect(page.locator("#playground .notices")).to_contain_text("These are popular items")
    expect(page.locator("div.history")).to_contain_text("Nothing yet")
    page.get_by_label("User").fill("..")  # no address can have it
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".status")).to_contain_text("No history can be read of the id ..")
    page.evaluate("scrollTo(0, 300)")
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("#compare .side .card").first).to_be_visible()
    assert page.evaluate("scrollY") == 0  # a view begins at its top
    page.get_by_role("link", name="Playground").click()
    page.evaluate("(scrollTo(0, 0), void (location.hash = '#compare'))")
    expect(page.locator("#compare .side .card").first).to_be_visible()
    page.evaluate(TWO_FRAMES)
    assert page.evaluate("scrollY") == 0  # also when nothing was scrolled before


def test_a_random_test_user_is_shown(seen: Seen, page_service: Service) -> None:
    page = seen.open()
    recommended(page)
    with page.expect_request(is_ask) as sent:
        page.get_by_role("button", name="A random test user").click()
    users = page_service.client.get("/held-out-users?limit=100").json()["users"]
    [user] = [one for one in users if one["history"] == body_of(sent.value)["history"]]
    assert body_of(sent.value)["user_id"] == "visitor"
    expect(page.locator(".status")).to_contain_text(user["user_id"])
    expect(page.locator("#playground .answer")).to_contain_text(re.compile("came next", re.I))
    title = page_service.client.get(f"/items/{user['target']}").json()["title"]
    expect(page.locator(".status")).to_contain_text(f"What came next: {title}")


def test_the_schedule_of_the_papers_is_a_button(seen: Seen) -> None:
    page = seen.open()
    recommended(page)
    with page.expect_request(is_ask) as sent:
        page.get_by_role("button", name="The papers' schedule").click()
    assert body_of(sent.value)["r_warm"] == 2  # of 4 positions; m_par 2 is the bundle's own
    expect(page.locator("#playground .decoding")).to_contain_text("3 calls of the network")


def test_several_items_at_once(seen: Seen) -> None:
    page = seen.open()
    recommended(page)
    field(page, "horizon").locator("input").fill("2")
    expect(page.locator("#playground .sequence").first.locator(":scope > li")).to_have_count(2)
    expect(field(page, "r_warm").locator("input")).to_have_attribute("max", "8")  # of two SIDs
    with page.expect_request(is_ask) as sent:
        page.get_by_role("button", name="The papers' schedule").click()
    assert body_of(sent.value)["r_warm"] == 4


def overlap(page: Page, answers: Sequence[httpx.Response]) -> None:
    """Wait until the page says how many items these two answers share."""
    first, second = ([item["item_id"] for item in one.json()["items"]] for one in answers)
    shared = len({*first} & {*second})
    expect(page.locator(".verdict")).to_contain_text(f"{shared} of 10 items are in both")
    only = page.locator("#compare .side").first.get_by_text("not in B", exact=True)
    expect(only).to_have_count(10 - shared)


def test_two_settings_side_by_side(seen: Seen, page_service: Service) -> None:
    page = seen.open("/#compare")
    expect(page.locator("#compare .side .card")).to_have_count(20)
    user = page_service.client.get("/held-out-users?limit=1").json()["users"][0]
    asked = {"user_id": user["user_id"], "history": user["history"]}
    for side, calls, told in (
        (page.locator("#compare .side").first, "2 calls of the network", "the bundle's own"),
        (page.locator("#compare .side").last, "3 calls of the network", "schedule of the papers"),
    ):
        expect(side.locator(".decoding")).to_contain_text(calls)
        expect(side).to_contain_text(told)
    overlap(page, [page_service.recommend(**asked, **more) for more in ({}, {"r_warm": 2})])
    page.locator("#compare summary").last.click()
    ranking = page.locator('#compare [data-field="ranking"] select').last
    ranking.select_option("path")
    expect(page.locator("#compare .side").last.locator(".decoding")).to_contain_text("by path")
    by_path = {"r_warm": 2, "ranking": "path"}
    overlap(page, [page_service.recommend(**asked, **more) for more in ({}, by_path)])


def test_two_families_side_by_side(seen: Seen, page_service: Service) -> None:
    """With an administrator's key a side may be another bundle, with that one's own settings."""
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    page = seen.open("/#compare")
    second = page.locator("#compare .side").last
    expect(page.locator("#compare .intro")).to_contain_text("give the administrator's key")
    try:
        page.locator("#compare .intro").get_by_role("link", name="Operate").click()
        page.get_by_label("Administrator's key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#operate")).to_contain_text("No item is hidden.")
        page.get_by_role("link", name="Compare").click()
        expect(page.locator("#compare .intro")).to_contain_text("only tiny@1 is in memory")
        expect(page.get_by_label("Bundle of B")).to_be_hidden()
        page.locator("#compare .intro").get_by_role("link", name="Operate").click()
        page.get_by_label("Bundle to load").fill("next@1")
        page.get_by_role("button", name="Load", exact=True).click()
        expect(page.locator("#operate table").first).to_contain_text("next@1")
        expect(page.get_by_text("Done.", exact=True)).to_be_visible()
        page.get_by_role("link", name="Compare").click()
        page.get_by_label("Bundle of B").select_option("next@1")
        expect(second.locator(".decoding")).to_contain_text("next@1: 4 calls of the network")
        second.locator("summary").click()
        expect(second.locator('[data-field="k"]')).to_be_visible()
        expect(second.locator('[data-field="r_warm"]')).to_have_count(0)
        expect(page.locator('#compare .side [data-field="r_warm"]')).to_have_count(1)
        user = page_service.client.get("/held-out-users?limit=1").json()["users"][0]
        asked = {"user_id": user["user_id"], "history": user["history"]}
        url = "/admin/bundles/next@1/recommend"
        of_next = page_service.client.post(url, json=asked, headers=admin)
        overlap(page, [page_service.recommend(**asked), of_next])

        seen.expected.append("409")  # somebody else has unloaded it
        page_service.client.post("/admin/bundles/next@1/unload", headers=admin)
        second.locator('[data-field="beam_width"] input').fill("20")
        expect(second.locator(".notice.bad")).to_contain_text("next@1 is not in memory")
    finally:
        page_service.client.post("/admin/bundles/next@1/unload", headers=admin)


def test_operators_swap_bundles_and_hide_items(seen: Seen, page_service: Service) -> None:
    seen.expected.append("401")  # of the wrong key
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    for change in ("remove", "undo"):  # so the first page of changes is empty, and not the last
        changed = page_service.client.post("/admin/items", json={change: ["item-8"]}, headers=admin)
        assert changed.status_code == 200
    page = seen.open("/#operate")
    try:
        expect(page.locator("#operate")).to_contain_text("ready")
        expect(page.locator("#operate table").first).to_contain_text("tiny@1")
        expect(page.get_by_role("button", name="Load", exact=True)).to_have_count(0)
        for key, told in (
            ("not-the-key", "send an administrator's key"),
            (ADMIN_KEY, "No item is"),
            ("not-the-key", "send an administrator's key"),
            (ADMIN_KEY, "No item is"),
        ):
            page.get_by_label("Administrator's key").fill(key)
            page.get_by_role("button", name="Use").click()
            expect(page.locator("#operate")).to_contain_text(told)
            forms = page.get_by_role("button", name="Load", exact=True)
            expect(forms).to_have_count(1 if key == ADMIN_KEY else 0)
            given = "given" if key == ADMIN_KEY else "to load"
            field_of_key = page.get_by_label("Administrator's key")
            expect(field_of_key).to_have_attribute("placeholder", re.compile(given))
        page.get_by_label("Item to hide").fill("item-9")
        page.get_by_role("button", name="Hide").click()
        page.get_by_role("button", name="Show again").click()
        expect(page.locator("#operate")).to_contain_text("No item is hidden.")
        page.get_by_label("Bundle to load").fill("tiny@2")
        page.get_by_role("button", name="Load", exact=True).click()
        page.get_by_role("button", name="Activate").click()
        expect(page.locator("#bundle")).to_contain_text("tiny@2")
        forms = page.get_by_role("button", name="Load", exact=True)
        expect(forms).to_have_count(0)  # the key is forgotten
        page.get_by_label("Administrator's key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Use").click()
        page.get_by_role("button", name="Roll back to it").click()
        expect(page.locator("#bundle")).to_contain_text("tiny@1")
        assert page_service.roles()["tiny@1"] == ["active"]
    finally:  # other tests ask the same service, whatever has failed here
        page_service.client.post("/admin/items", json={"unhide": ["item-9"]}, headers=admin)
        if page_service.roles()["tiny@1"] != ["active"]:
            page_service.client.post("/admin/bundles/tiny@1/activate", headers=admin)
        page_service.client.post("/admin/bundles/tiny@2/unload", headers=admin)
        assert page_service.roles() == {"tiny@1": ["active"]}


def test_an_older_reading_is_not_drawn_over_a_newer_one(seen: Seen) -> None:
    page = seen.page
    held: list[Route] = []

    def answer_the_second(route: Route) -> None:
        held.append(route)
        if len(held) == 2:
            route.continue_()

    page.route("**/models", answer_the_second)
    with page.expect_request("**/models"):
        seen.open("/#operate")
    page.get_by_label("Administrator's key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#operate table").first).to_contain_text("tiny@1")
    with page.expect_response("**/models") as older:
        held[0].fulfill(json={"residents": []})
    older.value.finished()
    page.evaluate(TWO_FRAMES)
    expect(page.locator("#operate table").first).to_contain_text("tiny@1")


def test_a_service_that_is_not_ready_says_why(seen: Seen) -> None:
    seen.expected.append("503")
    page = seen.page
    body = {"status": "not_ready", "reasons": ["draining"]}
    page.route("**/health/ready", lambda route: route.fulfill(status=503, json=body))
    seen.open("/#operate")
    expect(page.locator("#operate .mark.bad")).to_have_text("not ready")
    expect(page.locator("#operate .big")).to_contain_text("draining")


def test_live_charts_show_what_happens(seen: Seen, page_service: Service) -> None:
    page = seen.open("/#operate")
    requests = page.locator(".chart", has_text="Requests a second").locator(".latest")
    expect(requests).to_have_text("0.0")  # since the reading before

    def is_seen() -> bool:  # it is shown until the next reading only
        page_service.recommend(user_id="x", history=["item-1"])
        return requests.text_content() != "0.0"

    wait_until(is_seen)
    expect(page.locator(".chart canvas")).to_have_count(4)


def test_behind_a_gateway_that_keeps_metrics_the_rest_is_shown(seen: Seen) -> None:
    seen.expected.append("404")
    page = seen.page
    error = {"code": "route_not_found", "message": "not through the gateway: ask a replica"}
    page.route("**/metrics", lambda route: route.fulfill(status=404, json={"error": error}))
    seen.open("/#operate")
    expect(page.locator("#operate")).to_contain_text("not through the gateway")
    expect(page.locator("#operate")).to_contain_text("tiny@1")
    expect(page.locator("#operate .mark.good")).to_have_text("ready")


@pytest.mark.parametrize("seen", [{}, PHONE], indirect=True, ids=["desktop", "phone"])
def test_hostile_titles_are_only_text(seen: Seen, page_service: Service) -> None:
    assert seen.page.viewport_size
    user_id = f"hostile-{seen.page.viewport_size['width']}"
    page_service.send(*HOSTILE, user_id=user_id)
    page = seen.open()
    recommended(page)
    show(page, user_id)
    expect(page.locator(".history .card")).to_have_count(len(HOSTILE))
    shown = dict(
        page.eval_on_selector_all(
            ".history .card",
            "all => all.map(e => [e.dataset.item, e.querySelector('p').innerText])",
        )
    )
    assert shown["item-0"] == HOSTILE["item-0"]
    assert page.title() == "Unmask"
    for item_id, words in (("item-4", "{{7*7}} ${7*7}"), ("item-6", "item-6")):
        expect(page.locator(f'.history [data-item="{item_id}"] .title')).to_contain_text(words)
    assert page.locator("main img, main script, main b, #why img").count() == 0
    for view in ("playground", "compare"):
        page.goto(f"{seen.url}/#{view}")
        expect(page.locator(f"#{view} .list .card").first).to_be_visible()
        widths = "[document.documentElement.scrollWidth, innerWidth]"
        scrolled, inner = page.evaluate(widths)
        assert scrolled <= inner, view
        tall = (
            f"Math.max(...[...document.querySelectorAll('#{view} .card')].map(e => e.offsetHeight))"
        )
        assert page.evaluate(tall) < 260, view


def test_why_an_item_is_recommended(seen: Seen) -> None:
    page = seen.open()
    first = recommended(page)[0]
    page.route("**/explain", lambda route: route.fulfill(json=EXPLAINED))
    with page.expect_request("**/explain") as sent:
        page.get_by_role("button", name="Why?").first.click()
    body = body_of(sent.value)
    assert (body["item_id"], body["history"]) == (first, history(page))
    dialog = page.get_by_role("dialog")
    for words in (
        "Because of <u>Title</u> 1 and <u>Title</u> 2.",
        "the neighbour prior",
        "+1.25",
        "1,200 \u2192 31",
        "2 of 90",
        "Position 3, code 3",
        "<b>Kitchen</b> 60 % (2.0 % of all)",
    ):
        expect(dialog).to_contain_text(words)
    rows = dialog.locator(".calls tbody tr")
    expect(rows.first.locator("td.filled")).to_have_count(2)
    expect(rows.first.locator("td.masked")).to_have_count(2)
    expect(rows.last.locator("td.known")).to_have_text(["4", "8"])
    dialog.get_by_text("What was not kept").click()
    expect(dialog).to_contain_text("4 7 \u2022 \u2022")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_a_service_that_does_not_answer_is_said_to(seen: Seen) -> None:
    seen.expected.append("ERR_FAILED")
    page = seen.open()
    recommended(page)
    page.route("**/recommend", lambda route: route.abort())
    field(page, "k").locator("input").fill("3")
    expect(page.locator("#playground .notices")).to_have_text("The service does not answer.")
    page.unroute("**/recommend")
    field(page, "k").locator("input").fill("4")
    expect(page.locator(RECOMMENDED)).to_have_count(4)
    expect(page.locator("#playground .notices")).to_have_text("")


def test_the_documentation_needs_no_other_host(seen: Seen) -> None:
    page = seen.open("/docs")
    expect(page.locator(".opblock", has_text="/recommend/batch")).to_be_visible()
    assert {url.removeprefix(seen.url) for url in seen.asked if not url.startswith("data:")} == {
        "/docs",
        "/docs/docs.js",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/openapi.json",
    }


@pytest.mark.parametrize(
    "seen", [{"http_credentials": {"username": "x", "password": "wrong"}}], indirect=True
)
def test_without_the_key_there_is_no_page(seen: Seen) -> None:
    seen.expected += ["401", "favicon.ico"]  # a browser asks for the latter by itself
    answer = seen.page.goto(f"{seen.url}/")
    assert answer is not None
    assert answer.status == 401
    assert "Unmask" not in seen.page.title()
