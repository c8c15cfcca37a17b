// The settings of a request as a form: what the bundle allows, from /info, and nothing else.
//
// `fields()` has only what differs from the bundle's own, so a request stays as short as it can be.
import { el, freshId } from "./dom.js";

const RANKINGS = { rows: "by rows", path: "by path", best: "best" };
const ORDERS = {
  confidence: "confidence",
  entropy: "entropy",
  margin: "margin",
  left_to_right: "left to right",
  random: "by chance",
  raw_confidence: "raw confidence",
};
const RETRIEVALS = { generate: "beams", dense: "dense head", fused: "both" };

/** Positions that each call of a schedule fills. */
export function stepsOf(numPositions, rWarm, mPar) {
  const steps = [];
  for (let left = numPositions; left > 0; left -= steps.at(-1)) {
    steps.push(steps.length < rWarm ? 1 : Math.min(mPar, left));
  }
  return steps;
}

/** The schedule of the papers: half of the positions one by one, then two at a time. */
export function papersSchedule(numPositions) {
  return { r_warm: Math.ceil(numPositions / 2), m_par: Math.min(2, numPositions) };
}

/** One form. onChange is called after every change by a person. */
export class Controls {
  constructor(info, onChange) {
    this.bundle = info.bundle;
    this.limits = info.limits;
    this.onChange = onChange;
    this.rows = new Map(); // by field: { input, output, error, own: the value that is not sent }
    this.root = el("form", { class: "controls", on: { submit: (event) => event.preventDefault() } });
    this.root.append(...this.groups());
    this.reset();
  }

  groups() {
    const { bundle, limits } = this;
    const own = bundle.decoding;
    const numPositions = bundle.num_subspaces;
    const isFree = !bundle.autoregressive;
    return [
      this.group("Answer", [
        this.range("k", "Items (k)", 1, limits.max_k, 10),
        bundle.max_horizon > 1 ? this.range("horizon", "Next items together (horizon)", 1, bundle.max_horizon, 1) : null,
        this.check("exclude_seen", "Leave out what is in the history", true),
      ]),
      this.group("Search", [
        isFree ? null : el("p", { class: "hint" }, "This network fills codes from left to right, one a call."),
        isFree ? this.range("r_warm", "One-position calls (r_warm)", 0, numPositions, own.r_warm) : null,
        isFree ? this.range("m_par", "Positions a later call (m_par)", 1, numPositions, own.m_par) : null,
        ...(isFree ? this.schedule() : []),
        this.range("beam_width", "Beams (beam_width)", 1, limits.max_beam_width, own.beam_width),
        isFree ? this.choice("ranking", "Ranking of beams", RANKINGS, own.ranking) : null,
        isFree ? this.choice("order", "Order of positions", ORDERS, own.order) : null,
        isFree ? this.range("remask", "Codes filled again (remask)", 0, numPositions - 1, own.remask) : null,
        bundle.history_dropout > 0 ? this.range("guidance", "Guidance", 0, 10, own.guidance, "any") : null,
        bundle.dense ? this.choice("retrieval", "What finds items", RETRIEVALS, own.retrieval) : null,
      ]),
      this.group("Only items with", Object.entries(bundle.attributes).map(([name, type]) => this.filter(name, type))),
      el("button", { type: "button", class: "quiet", on: { click: () => (this.reset(), this.onChange()) } }, "Reset to the bundle's settings"),
    ];
  }

  group(title, rows) {
    return el("fieldset", {}, el("legend", {}, title), ...rows.filter(Boolean));
  }

  row(name, label, input, own, output = null) {
    const id = (input.id = freshId("field"));
    const error = el("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
    input.setAttribute("aria-describedby", error.id);
    input.addEventListener("input", () => (this.shown(), this.onChange()));
    this.rows.set(name, { input, output, error, own });
    const first = input.type === "checkbox" ? [input, el("label", { for: id }, label)] : [el("label", { for: id }, label), output, input];
    return el("div", { class: `field ${input.type === "checkbox" ? "check" : ""}`, data: { field: name } }, ...first, error);
  }

  range(name, label, min, max, own, step = 1) {
    const input = el("input", { type: "range", min, max, step, value: own });
    return this.row(name, label, input, own, el("output", { class: "value" }));
  }

  choice(name, label, options, own) {
    const shown = Object.entries(options).map(([value, text]) => el("option", { value }, text));
    return this.row(name, label, el("select", {}, ...shown), own);
  }

  check(name, label, own) {
    return this.row(name, label, el("input", { type: "checkbox" }), own);
  }

  schedule() {
    this.steps = el("p", { class: "steps" });
    const take = () => (this.set(papersSchedule(this.numPositions())), this.onChange());
    return [this.steps, el("button", { type: "button", class: "quiet papers", on: { click: take } }, "The papers' schedule")];
  }

  filter(name, type) {
    if (type === "text") {
      const list = el("datalist", { id: freshId("values") });
      const input = el("input", { type: "text", list: list.id, autocomplete: "off", placeholder: "any; several with | between" });
      const row = this.row(`filter.${name}`, name, input, "");
      this.rows.get(`filter.${name}`).values = list;
      row.append(list);
      return row;
    }
    const bound = (which, words) => {
      const input = el("input", { type: type === "date" ? "date" : "number", step: type === "date" ? null : "any" });
      return this.row(`filter.${name}.${which}`, `${name}, ${words}`, input, "");
    };
    return el("div", { class: "pair" }, bound("gte", "from"), bound("lte", "to"));
  }

  /** Offer values of text attributes that items of the page have. */
  offer(items) {
    for (const [name, type] of Object.entries(this.bundle.attributes)) {
      if (type !== "text") continue;
      const { values } = this.rows.get(`filter.${name}`);
      const there = new Set([...values.options].map((option) => option.value));
      for (const item of items) {
        const own = name === "category" ? item.categories : item.attributes?.[name];
        for (const value of Array.isArray(own) ? own : []) {
          if (there.size >= 200 || there.has(value)) continue;
          there.add(value);
          values.append(el("option", { value }));
        }
      }
    }
  }

  reset() {
    for (const { input, own } of this.rows.values()) {
      if (input.type === "checkbox") input.checked = own;
      else input.value = own;
    }
    this.shown();
  }

  /** Set some fields, for instance to the schedule of a paper. */
  set(fields) {
    for (const [name, value] of Object.entries(fields)) {
      const row = this.rows.get(name);
      if (row) row.input.value = value;
    }
    this.shown();
  }

  /** Of the codes of all items that are asked for together. */
  numPositions() {
    return Number(this.value("horizon") ?? 1) * this.bundle.num_subspaces;
  }

  shown() {
    const numPositions = this.numPositions();
    for (const name of ["r_warm", "m_par"]) {
      const row = this.rows.get(name);
      if (row) row.input.max = numPositions;
    }
    for (const { input, output, own } of this.rows.values()) {
      const shown = input.step === "any" ? Number(input.value).toFixed(2) : input.value;
      if (output) output.value = String(input.value) === String(own) ? shown : `${shown} · was ${own}`;
    }
    if (this.steps && numPositions === this.bundle.num_subspaces) {
      const steps = stepsOf(numPositions, Number(this.value("r_warm")), Number(this.value("m_par")));
      const calls = steps.length === 1 ? "1 call fills all positions" : `${steps.length} calls fill ${steps.join(", ")} positions`;
      this.steps.replaceChildren(calls);
    } else this.steps?.replaceChildren();
  }

  value(name) {
    const row = this.rows.get(name);
    if (!row) return undefined;
    return row.input.type === "checkbox" ? row.input.checked : row.input.value;
  }

  /** The fields of a request that differ from what the bundle does by itself. */
  fields() {
    const fields = {};
    const filter = {};
    for (const [name, { input, own }] of this.rows) {
      const value = this.value(name);
      if (String(value) === String(own)) continue;
      if (!name.startsWith("filter.")) {
        fields[name] = input.type === "range" ? Number(value) : value;
        continue;
      }
      const [attribute, bound] = this.filterOf(name);
      if (!bound) filter[attribute] = value.split("|").map((one) => one.trim()).filter(Boolean);
      else (filter[attribute] ??= {})[bound] = input.type === "number" ? Number(value) : value;
    }
    for (const [name, values] of Object.entries(filter)) if (Array.isArray(values) && !values.length) delete filter[name];
    if (Object.keys(filter).length) fields.filter = filter;
    return fields;
  }

  filterOf(name) {
    const attribute = Object.keys(this.bundle.attributes).find((one) => [`filter.${one}`, `filter.${one}.gte`, `filter.${one}.lte`].includes(name));
    return [attribute, name.slice(`filter.${attribute}.`.length)];
  }

  /** Show each sentence of a refusal beside its control. Returns those that have none here. */
  refuse(error) {
    this.accept();
    const details = error.details.length ? error.details : [{ param: error.param, message: error.message }];
    const homeless = [];
    for (const { param, message } of details) {
      const names = [...this.rows.keys()];
      const name = names.find((one) => one === param) ?? names.filter((one) => param && (param.startsWith(one) || one.startsWith(param)))[0];
      const row = this.rows.get(name);
      if (!row) homeless.push(message);
      else {
        row.error.replaceChildren(message);
        row.error.hidden = false;
        row.input.setAttribute("aria-invalid", "true");
      }
    }
    return homeless;
  }

  accept() {
    for (const { input, error } of this.rows.values()) {
      error.hidden = true;
      error.replaceChildren();
      input.removeAttribute("aria-invalid");
    }
  }
}
