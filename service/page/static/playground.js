// The first view: settings, a history and what is recommended for it. It asks again as they change.
import { answerList, decodingText, itemsOf, noticesOf, timeOf } from "./answers.js";
import { ask, curlOf, rememberItems } from "./api.js";
import { Controls } from "./controls.js";
import { eager, el, newest } from "./dom.js";

const PAUSE_MS = 60; // while a control moves

export class Playground {
  /** why: shows how an item came to its place, or null; isKeyed: whether requests need a key. */
  constructor(root, info, people, { why = null, isKeyed = false } = {}) {
    Object.assign(this, { people, why, isKeyed });
    this.answer = null;
    this.body = null;
    this.controls = new Controls(info, eager(() => this.refresh(), PAUSE_MS));
    this.notices = el("div", { class: "notices", role: "status" });
    this.summary = el("div", { class: "summary" });
    this.list = el("div", { class: "list", "aria-busy": "false" });
    this.curl = el("code", {});
    this.copied = el("span", { role: "status", class: "hint" });
    this.settings = el("details", { class: "panel settings", open: matchMedia("(min-width: 70rem)").matches }, el("summary", {}, "Settings"), this.controls.root);
    root.replaceChildren(
      el("p", { class: "intro hint" }, "A network reads a history and generates the next item: it fills in the codes of which the item's semantic ID is made, several in a call. Move a setting, or ask Why?"),
      this.settings,
      el("div", { class: "panel" }, el("h2", {}, "History"), el("p", { class: "hint" }, "Newest first"), people.cards),
      el(
        "div",
        { class: "panel answer" },
        el("h2", {}, "Recommendations"),
        this.notices,
        this.summary,
        this.list,
        el(
          "details",
          { class: "request" },
          el("summary", {}, "This request as a command"),
          el("pre", { tabindex: "0", "aria-label": "Command" }, this.curl),
          el("button", { type: "button", on: { click: () => this.copy() } }, "Copy"),
          this.copied,
        ),
      ),
    );
    this.ask = newest((signal, body) => ask("POST", "/recommend", { body, signal }));
    this.listeners = [];
  }

  /** Call `listener(answer)` after every answer. */
  watch(listener) {
    this.listeners.push(listener);
  }

  async refresh() {
    const body = { ...this.people.fields(), ...this.controls.fields(), metadata: true };
    const { target, userId, isStored } = this.people;
    this.curl.replaceChildren(curlOf("/recommend", body, this.isKeyed));
    this.list.setAttribute("aria-busy", "true");
    try {
      const result = await this.ask(body);
      if (!result) return;
      this.controls.accept();
      this.draw(result, body, target, { userId, isStored });
    } catch (error) {
      const homeless = error.error ? this.controls.refuse(error.error) : [error.message];
      const texts = homeless.length ? homeless : [error.message];
      this.answer = this.body = null;
      this.summary.replaceChildren();
      this.list.replaceChildren(); // of another request: its buttons would act for this one
      this.notices.replaceChildren(...texts.map((text) => el("p", { class: "notice bad" }, text)));
    }
    this.list.setAttribute("aria-busy", "false");
  }

  draw({ answer, milliseconds }, body, target, whose) {
    this.answer = answer;
    this.body = body;
    const items = itemsOf(answer);
    rememberItems(items);
    this.controls.offer(items);
    this.notices.replaceChildren(...noticesOf(answer));
    this.summary.replaceChildren(timeOf(answer, milliseconds), el("p", { class: "hint decoding" }, decodingText(answer.decoding)));
    const missed = target && !items.some((item) => item.item_id === target);
    this.list.replaceChildren(
      answerList(answer, { target, actions: (item) => this.actions(item, answer, whose) }),
      ...(missed ? [el("p", { class: "hint" }, "What came next is not among them.")] : []),
    );
    for (const listener of this.listeners) listener(answer);
  }

  /** whose: { userId, isStored } of the history that was asked for. */
  actions(item, answer, whose) {
    const { people } = this;
    const named = item.title.slice(0, 80);
    const button = (text, does, work, kind = "quiet") =>
      el("button", { type: "button", class: kind, title: does, "aria-label": `${text} ${named}`, on: { click: work } }, text);
    const { eventType, negativeType } = people;
    const { isStored } = whose;
    const did = (type) => {
      const eventId = `page-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`; // one for each button: a double click is one event
      return () => people.did(item, { ...whose, recommendationId: answer.recommendation_id, eventId }, type);
    };
    return [
      this.why ? button("Why?", "How it came to its place", () => this.why(item, this.body)) : null,
      isStored && negativeType ? button("Not for me", `Posts the event ${negativeType}`, did(negativeType)) : null,
      isStored && eventType ? button("Choose", `Posts the event ${eventType}`, did(eventType), "") : null,
      isStored ? null : button("Choose", "Adds it to the history of this page", did(eventType), ""),
    ];
  }

  async copy() {
    const text = this.curl.textContent;
    try {
      await navigator.clipboard.writeText(text);
      this.copied.replaceChildren("Copied.");
    } catch {
      getSelection().selectAllChildren(this.curl);
      this.copied.replaceChildren("Selected: copy it with the keyboard.");
    }
  }
}
