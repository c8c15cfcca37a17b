// Answers of POST /recommend as elements: items, notices, how they were decoded, where time went.
import { el, said, share } from "./dom.js";

const STAGES = {
  history: "history",
  queue: "queue",
  encode: "encode",
  denoise: "denoise",
  search: "search",
  map: "map",
  other: "the rest",
};
const REASONS = {
  history_unavailable: "the history store does not answer",
  history_unknown: "nothing is known of this user",
  schedule_reduced: "a faster setting was taken to be in time",
  decode_failed: "decoding failed",
  deadline: "decoding was late",
};

/** Title, categories and attributes of an item. */
export function itemText(item) {
  const facts = (item.categories ?? []).map((one) => said(one, { class: "tag" }));
  for (const [name, value] of Object.entries(item.attributes ?? {})) {
    const text = Array.isArray(value) ? value.join(", ") : String(value);
    facts.push(el("span", { class: "tag" }, said(name), ": ", said(text)));
  }
  return el(
    "div",
    { class: "item-text" },
    el("p", { class: "title", dir: "auto", title: item.title.slice(0, 500) }, item.title || item.item_id),
    facts.length ? el("p", { class: "tags" }, ...facts) : null,
  );
}

/** A score and how long it is beside the best one of its answer. */
export function scoreText(score, best) {
  if (score === null) return el("p", { class: "score" }, "no score");
  const bar = el("span", { class: "bar small", "aria-hidden": "true" }, share(Math.exp(score - best), "denoise"));
  return el("p", { class: "score" }, bar, el("span", { title: "log-probability" }, score.toFixed(2)));
}

/** All items of an answer, best first; those of sequences, too. */
export function itemsOf(answer) {
  return answer.sequences ? answer.sequences.flatMap((one) => one.items) : answer.items;
}

/**
 * The list of an answer.
 * actions: makes buttons for an item; mark: a word for an item, or null; target: what came next
 */
export function answerList(answer, { actions = () => [], mark = () => null, target = null } = {}) {
  const rows = answer.sequences ?? answer.items;
  const best = Math.max(...rows.map((row) => row.score).filter((score) => score !== null));
  const came = (item) => (item.item_id === target ? el("span", { class: "mark good" }, "came next") : null);
  const one = (item) => [itemText(item), el("p", { class: "marks" }, came(item), mark(item))];
  return el(
    "ol",
    { class: "cards", role: "list" },
    ...rows.map((row) =>
      el(
        "li",
        { class: "card", data: { item: row.item_id ?? "" } },
        el("span", { class: "rank", "aria-label": `rank ${row.rank}` }, row.rank),
        answer.sequences
          ? el("ol", { class: "sequence", role: "list" }, ...row.items.map((item) => el("li", {}, ...one(item))))
          : el("div", { class: "what" }, ...one(row)),
        scoreText(row.score, best),
        el("div", { class: "actions" }, ...(answer.sequences ? [] : actions(row))),
      ),
    ),
  );
}

/** Everything that the answer says of itself and a person should know. */
export function noticesOf(answer) {
  const texts = [];
  if (answer.served_by === "popular") texts.push("These are popular items, the same for everybody.");
  for (const reason of answer.degraded_reasons) texts.push(`Degraded: ${REASONS[reason] ?? reason}.`);
  if (answer.history.unknown_items) texts.push(`${answer.history.unknown_items} items of the history are not in this bundle.`);
  if (answer.experiment) texts.push(`Experiment ${answer.experiment.name}, variant ${answer.experiment.variant}.`);
  texts.push(...answer.warnings);
  return texts.map((text) => el("p", { class: "notice" }, said(text)));
}

/** How it was decoded, in a line. */
export function decodingText(decoding) {
  if (!decoding) return "not decoded";
  const calls = `${decoding.nfe} ${decoding.nfe === 1 ? "call" : "calls"} of the network`;
  if (decoding.retrieval === "dense") return "the dense head, without a search";
  const fills = decoding.schedule.length ? ` (positions filled by each: ${decoding.schedule.join(", ")})` : "";
  return `${calls}${fills}, ${decoding.beam_width} beams, ranked by ${decoding.ranking}, order ${decoding.order}`;
}

/** Where the time went, as one bar and as words. */
export function timeOf(answer, milliseconds) {
  const { total, ...stages } = answer.timings_ms;
  const known = Object.values(stages).reduce((sum, ms) => sum + ms, 0);
  const parts = Object.entries({ ...stages, other: Math.max(0, total - known) });
  return el(
    "div",
    { class: "time" },
    el("p", {}, el("strong", {}, `${total.toFixed(1)} ms`), ` in the service, ${milliseconds.toFixed(0)} ms seen from here`),
    el("div", { class: "bar", "aria-hidden": "true" }, ...parts.map(([name, ms]) => share(total ? ms / total : 0, name))),
    el(
      "ul",
      { class: "legend", role: "list" },
      ...parts.map(([name, ms]) => el("li", {}, el("span", { class: `dot ${name}`, "aria-hidden": "true" }), `${STAGES[name] ?? name} ${ms.toFixed(1)}`)),
    ),
  );
}
