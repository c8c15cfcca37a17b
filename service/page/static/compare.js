// Two settings for one history, side by side: what both found, what moved, and what each took.
import { answerList, decodingText, itemsOf, noticesOf } from "./answers.js";
import { ask, rememberItems } from "./api.js";
import { Controls } from "./controls.js";
import { el, newest, settled } from "./dom.js";

const PAUSE_MS = 60;

/** How many of the first `k` items two answers share, and where each item of both was and is. */
export function comparisonOf(first, second) {
  const places = [first, second].map((answer) => new Map(itemsOf(answer).map((item, n) => [item.item_id, n + 1])));
  const shared = [...places[0].keys()].filter((itemId) => places[1].has(itemId)).length;
  return { shared, k: Math.max(places[0].size, places[1].size), places };
}

export class Compare {
  constructor(root, info, people) {
    this.people = people;
    this.summary = el("div", { class: "panel verdict", role: "status" });
    this.sides = ["A", "B"].map((name) => this.side(name, info));
    root.replaceChildren(
      el("p", { class: "hint" }, "Both answer for the history above. A begins with the bundle's own settings, B with the papers' schedule."),
      this.summary,
      ...this.sides.map((side) => side.root),
    );
    const paper = { r_warm: Math.ceil(info.bundle.num_subspaces / 2), m_par: Math.min(2, info.bundle.num_subspaces) };
    this.sides[1].controls.set(paper);
    this.ask = newest((signal, bodies) => this.both(signal, bodies));
  }

  side(name, info) {
    const controls = new Controls(info, settled(() => this.refresh(), PAUSE_MS));
    const [notices, line, list] = [el("div", { class: "notices" }), el("p", { class: "hint decoding" }), el("div", { class: "list" })];
    const root = el("div", { class: "panel side" }, el("h2", {}, name), el("details", {}, el("summary", {}, `Settings of ${name}`), controls.root), notices, line, list);
    return { name, controls, notices, line, list, root };
  }

  async both(signal, bodies) {
    const results = [];
    for (const [n, body] of bodies.entries()) {
      const { controls, notices } = this.sides[n];
      try {
        results.push(await ask("POST", "/recommend", { body, signal }));
        if (signal.aborted) return null;
        controls.accept();
      } catch (error) {
        if (signal.aborted) throw error;
        const homeless = error.error ? controls.refuse(error.error) : [error.message];
        const texts = homeless.length ? homeless : [error.message];
        notices.replaceChildren(...texts.map((text) => el("p", { class: "notice bad" }, text)));
        results.push(null);
      }
    }
    return results;
  }

  async refresh() {
    const { target } = this.people;
    const bodies = this.sides.map(({ controls }) => ({ ...this.people.fields(), ...controls.fields(), metadata: true }));
    const results = await this.ask(bodies);
    if (!results) return;
    if (results.some((result) => !result)) {
      for (const { line, list } of this.sides) for (const old of [line, list]) old.replaceChildren();
      this.summary.replaceChildren(el("p", {}, "One of them was refused; what is said below tells why."));
      return;
    }
    const answers = results.map((result) => result.answer);
    const { shared, k, places } = comparisonOf(...answers);
    for (const [n, side] of this.sides.entries()) {
      const answer = answers[n];
      rememberItems(itemsOf(answer));
      side.controls.offer(itemsOf(answer));
      side.notices.replaceChildren(...noticesOf(answer));
      side.line.replaceChildren(decodingText(answer.decoding));
      side.list.replaceChildren(answerList(answer, { target, mark: (item) => moved(item, places[n], places[1 - n], this.sides[1 - n].name) }));
    }
    const rank = (n) => (places[n].has(target) ? `, what came next is number ${places[n].get(target)}` : target ? ", without what came next" : "");
    const calls = ({ decoding }) => (decoding?.nfe === 1 ? "1 call" : `${decoding?.nfe ?? 0} calls`);
    const fact = (n) => `${this.sides[n].name}: ${answers[n].timings_ms.total.toFixed(1)} ms, ${calls(answers[n])}${rank(n)}`;
    this.summary.replaceChildren(
      el("p", { class: "big" }, el("strong", {}, `${shared} of ${k}`), " items are in both"),
      el("p", { class: "hint" }, `overlap@${k} ${k ? (shared / k).toFixed(2) : "–"}`),
      el("p", {}, fact(0)),
      el("p", {}, fact(1)),
    );
  }
}

function moved(item, own, others, name) {
  const [here, there] = [own.get(item.item_id), others.get(item.item_id)];
  if (there === undefined) return el("span", { class: "mark new" }, `not in ${name}`);
  if (here === there) return null;
  const by = Math.abs(there - here);
  return el("span", { class: "mark" }, `${by} ${here < there ? "up" : "down"} from ${name}`);
}
