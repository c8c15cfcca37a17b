// Two settings, two bundles, or two families for one history, side by side: what both found, what
// moved, and what each took.
//
// Clients do not choose bundles. With the administrator's key of the view Operate, each side names
// a bundle in memory and asks it as operators do: nobody is served, nothing is counted.
import { answerList, decodingText, itemsOf, noticesOf } from "./answers.js";
import { ask, rememberItems } from "./api.js";
import { Controls, papersSchedule } from "./controls.js";
import { eager, el, freshId, newest, said } from "./dom.js";

const PAUSE_MS = 60;

/** How many of the first `k` items two answers share, and where each item of both was and is. */
export function comparisonOf(first, second) {
  const places = [first, second].map((answer) => new Map(itemsOf(answer).map((item, n) => [item.item_id, n + 1])));
  const shared = [...places[0].keys()].filter((itemId) => places[1].has(itemId)).length;
  return { shared, k: Math.max(places[0].size, places[1].size), places };
}

const refOf = ({ name, version }) => `${name}@${version}`;

export class Compare {
  /** operate: has the administrator's key, once it was given, and the bundles in memory. */
  constructor(root, info, people, operate) {
    Object.assign(this, { info, people, operate });
    this.active = refOf(info.bundle);
    this.summary = el("div", { class: "panel verdict", role: "status" });
    this.bundles = el("p", { class: "hint" });
    this.sides = [new Side("A", this), new Side("B", this)];
    const how = info.bundle.autoregressive ? "Both begin with the bundle's own settings." : "A begins with the bundle's own settings, B with the schedule of the papers.";
    root.replaceChildren(
      el("div", { class: "intro" }, el("p", { class: "hint" }, `Both sides answer for the history above. ${how} Change either side under its settings.`), this.bundles),
      this.summary,
      ...this.sides.map((side) => side.root),
    );
    this.sides[1].controls.set(papersSchedule(info.bundle.num_subspaces));
    this.ask = newest((signal, bodies) => this.both(signal, bodies));
    this.soon = eager(() => this.refresh(), PAUSE_MS);
  }

  /** Offer what is in memory, once there is a key; say what to do if that is not enough. */
  offer() {
    const { key, residents } = this.operate;
    const refs = key ? residents.map((one) => one.bundle) : [];
    for (const side of this.sides) side.offer(refs);
    const operate = el("a", { href: "#operate" }, "Operate");
    if (refs.length > 1) this.bundles.replaceChildren("Each side can be another bundle, of another family too; it begins with its own settings. Compare places, not scores. Nobody is served by what is asked here with the key: nothing is remembered or counted.");
    else if (key) this.bundles.replaceChildren("To compare two bundles: only ", said(this.active), " is in memory. Load another one under ", operate, "; then choose it here.");
    else this.bundles.replaceChildren("To compare two bundles, or two families: give the administrator's key under ", operate, ", and load the second bundle there.");
  }

  async both(signal, bodies) {
    const { key } = this.operate;
    const results = [];
    for (const [n, body] of bodies.entries()) {
      const { controls, notices, ref } = this.sides[n];
      try {
        results.push(await ask("POST", key ? pathOf(ref, "recommend") : "/recommend", { body, signal, key }));
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
    this.offer();
    const { target } = this.people;
    const bodies = this.sides.map(({ controls }) => ({ ...this.people.fields(), ...controls.fields(), metadata: true }));
    for (const side of this.sides) side.describe();
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
      if (answer.bundle === this.active) rememberItems(itemsOf(answer));
      side.controls.offer(itemsOf(answer));
      side.notices.replaceChildren(...noticesOf(answer));
      side.line.replaceChildren(said(answer.bundle), `: ${decodingText(answer.decoding)}`);
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

/** One of both: a bundle, its settings, and its answer. */
class Side {
  constructor(name, compare) {
    Object.assign(this, { name, compare });
    const id = freshId("bundle");
    this.select = el("select", { id, on: { change: () => this.choose(this.select.value) } });
    this.choice = el("div", { class: "bar-form", hidden: true }, el("label", { for: id }, `Bundle of ${name}`), this.select);
    this.what = el("p", { class: "hint" });
    this.settings = el("details", {}, el("summary", {}, `Settings of ${name}`));
    [this.notices, this.line, this.list] = [el("div", { class: "notices" }), el("p", { class: "hint decoding" }), el("div", { class: "list" })];
    this.root = el("div", { class: "panel side" }, el("h2", {}, name), this.choice, this.what, this.settings, this.notices, this.line, this.list);
    this.facts = newest((signal, ref, key) => ask("GET", pathOf(ref, "info"), { signal, key }));
    this.take(compare.info.bundle);
  }

  /** Begin with a bundle's own settings: what it can follow depends on its family. */
  take(bundle) {
    this.bundle = bundle;
    this.ref = refOf(bundle);
    this.controls = new Controls({ bundle, limits: this.compare.info.limits }, () => this.compare.soon());
    this.settings.replaceChildren(this.settings.firstChild, this.controls.root);
  }

  /** The bundles to choose from; fewer than two are no choice. */
  offer(refs) {
    this.choice.hidden = refs.length < 2;
    const shown = [...this.select.options].map((option) => option.value);
    if (String(shown) !== String(refs)) this.select.replaceChildren(...refs.map((ref) => el("option", { value: ref }, ref)));
    if (this.ref !== this.compare.active && !refs.includes(this.ref)) this.take(this.compare.info.bundle); // it is gone
    this.select.value = this.ref;
  }

  async choose(ref) {
    try {
      const facts = await this.facts(ref, this.compare.operate.key);
      if (!facts) return; // another one was chosen meanwhile
      this.take(facts.answer);
      await this.compare.refresh();
    } catch (error) {
      this.select.value = this.ref;
      this.notices.replaceChildren(el("p", { class: "notice bad" }, error.message));
    }
  }

  /** What it is asked, in a line. */
  describe() {
    const { r_warm: warm, m_par: par, ...others } = this.controls.fields();
    const own = this.bundle.decoding;
    const schedule = { r_warm: warm ?? own.r_warm, m_par: par ?? own.m_par };
    const isPapers = !this.bundle.autoregressive && String(Object.values(schedule)) === String(Object.values(papersSchedule(this.controls.numPositions())));
    const named = { ...(warm !== undefined && { r_warm: warm }), ...(par !== undefined && { m_par: par }), ...others };
    const changes = Object.entries(named).map(([field, value]) => `${field} ${typeof value === "object" ? JSON.stringify(value) : value}`);
    const what = changes.length ? changes.join(", ") : "the bundle's own settings";
    this.what.replaceChildren(said(this.bundle.family), ", ", said(what), isPapers ? " (the schedule of the papers)" : "");
  }
}

function pathOf(ref, what) {
  return `/admin/bundles/${encodeURIComponent(ref)}/${what}`;
}

function moved(item, own, others, name) {
  const [here, there] = [own.get(item.item_id), others.get(item.item_id)];
  if (there === undefined) return el("span", { class: "mark new" }, `not in ${name}`);
  if (here === there) return null;
  const by = Math.abs(there - here);
  return el("span", { class: "mark" }, `${by} ${here < there ? "up" : "down"} from ${name}`);
}
