// How an item came to its place: the answer of POST /explain as a story of calls, codes and scores.
import { el, said, share } from "./dom.js";

const PARTS = {
  network: ["the network", "log-probabilities of its codes"],
  neighbour_prior: ["the neighbour prior", "what others had after the items of this history"],
  repeat_bias: ["the repeat bias", "the history has it already"],
  boost: ["boosts", "of the request"],
  dense: ["the dense head", "how well its content fits"],
  normalisation: ["normalisation", "what codes without an item would have had"],
};
const MOST_TITLES = 3;

const percent = (part) => `${(100 * part).toFixed(part > 0 && part < 0.1 ? 1 : 0)} %`;
const number = (value) => value.toLocaleString("en");

/** Fill `root` with the explanation of `item`. answer: of POST /explain */
export function showExplanation(root, answer, item) {
  const [first, ...others] = answer.sentences;
  root.replaceChildren(
    el("p", { class: "big" }, said(first ?? "")),
    others.length ? el("ul", { class: "sentences" }, ...others.map((text) => el("li", {}, said(text)))) : "",
    ...answer.warnings.map((text) => el("p", { class: "notice" }, said(text))),
    ...(answer.because?.length ? because(answer.because) : []),
    ...(answer.score_parts ? parts(answer) : []),
    ...(answer.steps.length ? calls(answer) : []),
    ...(answer.codes.length ? codes(answer.codes) : []),
    el("p", { class: "hint" }, `Item ${item.item_id}, answered by ${answer.bundle}.`),
  );
}

function because(reasons) {
  return [
    el("h3", {}, "Because of"),
    el(
      "ul",
      { class: "reasons", role: "list" },
      ...reasons.map((one) => el("li", {}, title(one), el("span", { class: "bar small", "aria-hidden": "true" }, share(one.share, "denoise")), el("span", {}, percent(one.share)))),
    ),
  ];
}

function title(item) {
  return el("span", { class: "title one", dir: "auto", title: item.title.slice(0, 500) }, item.title || item.item_id);
}

function parts({ score_parts: found, score }) {
  const shown = Object.entries(found).filter(([name, value]) => name === "network" || Math.abs(value) >= 0.005);
  const most = Math.max(...shown.map(([, value]) => Math.abs(value)), 1e-9);
  const row = ([name, value]) => {
    const [words, why] = PARTS[name] ?? [name, ""];
    const bar = el("span", { class: "bar small", "aria-hidden": "true" }, share(Math.abs(value) / most, value < 0 ? "search" : "encode"));
    return el("tr", {}, el("th", { scope: "row" }, words, el("span", { class: "hint" }, ` ${why}`)), el("td", { class: "number" }, signed(value)), el("td", { class: "barred" }, bar));
  };
  const sum = score === null ? null : el("tr", {}, el("th", { scope: "row" }, "its score"), el("td", { class: "number" }, signed(score)), el("td", {}));
  return [el("h3", {}, "What the score is made of"), el("table", { class: "parts" }, el("tbody", {}, ...shown.map(row), sum))];
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

/** A row for each call: which positions it filled, how sure, and how many items were left. */
function calls({ steps, item }) {
  const filled = new Map();
  const rows = steps.map((step) => {
    const now = new Map(step.filled.map((one) => [one.position, one]));
    const cells = item.sid.map((_, position) => {
      if (now.has(position)) return fillCell(now.get(position));
      const known = filled.get(position);
      return known === undefined ? el("td", { class: "masked" }, el("span", { "aria-label": "masked" }, "•")) : el("td", { class: "known" }, known);
    });
    for (const one of step.filled) filled.set(one.position, one.code);
    const place = step.place === null ? "–" : `${number(step.place)} of ${number(step.candidates)}`;
    const lived = step.lived ? place : [place, " ", el("span", { class: "mark bad" }, "not kept")];
    return el("tr", {}, el("th", { scope: "row" }, step.kind === "refill" ? `${step.call}, again` : step.call), ...cells, el("td", { class: "number" }, `${number(step.survivors_before)} → ${number(step.survivors)}`), el("td", {}, ...[lived].flat()));
  });
  const heads = ["Call", ...item.sid.map((_, position) => `${position}`), "Items left", "Place"];
  const dead = steps.filter((step) => step.dead_beams.length);
  return [
    el("h3", {}, "Call by call"),
    el("p", { class: "hint" }, "Columns are positions of its semantic ID, counted from 0. A filled cell has the code, how probable it was, and its rank among the codes that were possible; settled: all items that were left have it."),
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Calls" }, el("table", { class: "calls" }, el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...rows))),
    dead.length
      ? el(
          "details",
          {},
          el("summary", {}, "What was not kept"),
          ...dead.map((step) => el("div", {}, el("h4", {}, `After call ${step.call}, ${number(step.kept)} of ${number(step.candidates)} were kept`), el("ul", { class: "dead", role: "list" }, ...step.dead_beams.map(deadBeam)))),
        )
      : "",
  ];
}

function fillCell(one) {
  const cell = el("td", { class: "filled" }, el("strong", {}, one.code), el("span", {}, one.settled ? "settled" : `${percent(one.probability)}, ${one.rank} of ${one.num_codes}`));
  cell.style.setProperty("--sure", one.probability.toFixed(3));
  return cell;
}

function deadBeam(beam) {
  const sid = beam.sid.map((code) => code ?? "•").join(" ");
  const score = beam.score === null ? "" : `, score ${beam.score.toFixed(2)}`;
  return el("li", {}, el("code", {}, sid), el("span", { class: "hint" }, ` place ${number(beam.place)}${score}, ${number(beam.survivors)} items, such as `), title(beam.example));
}

function codes(found) {
  const one = (code) =>
    el(
      "li",
      { class: "code" },
      el("h4", {}, `Position ${code.position}, code ${code.code}`),
      el("p", { class: "hint" }, `${number(code.num_items)} items`),
      code.categories.length ? el("p", { class: "tags" }, ...code.categories.slice(0, MOST_TITLES).map((kind) => el("span", { class: "tag" }, said(kind.category), ` ${percent(kind.share)} (${percent(kind.share_of_all)} of all)`))) : null,
      el("ul", { role: "list" }, ...code.items.slice(0, MOST_TITLES).map((item) => el("li", {}, title(item)))),
      code.history.length ? el("p", { class: "hint" }, "In the history too:") : null,
      code.history.length ? el("ul", { role: "list" }, ...code.history.slice(0, MOST_TITLES).map((item) => el("li", {}, title(item)))) : null,
    );
  return [el("h3", {}, "What its codes mean"), el("ul", { class: "codes", role: "list" }, ...found.map(one))];
}
