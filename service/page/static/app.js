// The page: asks what runs, makes the views, and shows the one that the address names.
//
// Reading order: `people` (whose history), `playground`, `controls` (settings), `answers`,
// `compare`, `operate` with `metrics`, `explain`, `map`; below them `api` and `dom`.
import { ask } from "./api.js";
import { Compare } from "./compare.js";
import { el, said } from "./dom.js";
import { showExplanation } from "./explain.js";
import { startMap } from "./map.js";
import { Operate } from "./operate.js";
import { People } from "./people.js";
import { Playground } from "./playground.js";

const VIEWS = ["playground", "compare", "map", "operate"];
const WITH_PEOPLE = new Set(["playground", "compare", "map"]);
const RETRY_MS = 1000;

const at = (id) => document.getElementById(id);

async function start() {
  let info;
  for (;;) {
    info = (await ask("GET", "/info")).answer;
    if (info.bundle) break;
    trouble("The service is starting.");
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
  trouble(null);
  describe(info.bundle);
  const views = {};
  const people = new People(at("people"), info, () => views[shown()]?.refresh?.());
  views.playground = new Playground(at("playground"), info, people, { why, isKeyed: info.needs_key });
  views.operate = new Operate(at("operate"), info, async () => {
    const now = (await ask("GET", "/info")).answer.bundle;
    if (`${now.name}@${now.version}` === `${info.bundle.name}@${info.bundle.version}`) return;
    location.reload(); // the settings that another bundle has may be others
  });
  views.compare = new Compare(at("compare"), info, people, views.operate);
  const turn = () => {
    for (const view of VIEWS) {
      const isShown = view === shown();
      at(view).hidden = !isShown;
      const link = document.querySelector(`nav a[href="#${view}"]`);
      if (isShown) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    at("people").hidden = !WITH_PEOPLE.has(shown());
    scrollTo(0, 0); // the browser has gone to the element that is called as the view
    if (shown() === "operate") views.operate.show();
    else views.operate.hide();
  };
  function shown() {
    const named = location.hash.slice(1);
    return VIEWS.includes(named) && (named !== "map" || views.map) ? named : "playground";
  }
  document.querySelector("a.skip").addEventListener("click", (event) => (event.preventDefault(), at("main").focus()));
  addEventListener("hashchange", () => (turn(), views[shown()]?.refresh?.()));
  turn();
  await people.begin();
  if (!info.bundle.has_map) return;
  views.map = await startMap(at("map"), { ask, el, people, playground: views.playground, info });
  if (!views.map) return;
  document.querySelector('nav a[href="#map"]').hidden = false;
  turn();
  if (shown() === "map") views.map.refresh();
}

function describe(bundle) {
  const sid = `each item ${bundle.num_subspaces} codes out of ${bundle.num_codes}`;
  at("bundle").replaceChildren(
    el("strong", {}, said(`${bundle.name}@${bundle.version}`)),
    ` ${bundle.num_items.toLocaleString("en")} items, family ${bundle.family}, ${sid}`,
  );
}

function trouble(text) {
  at("trouble").hidden = text === null;
  at("trouble").replaceChildren(text ?? "");
}

/** Ask how an item came to its place, and show it in the dialog. */
async function why(item, body) {
  const dialog = at("why");
  const head = el("h2", { id: "why-title", dir: "auto" }, item.title.slice(0, 200));
  const close = el("button", { type: "button", class: "icon", "aria-label": "Close", on: { click: () => dialog.close() } }, "×");
  const inside = el("div", { class: "explanation" }, el("p", { class: "hint" }, "Asking…"));
  dialog.replaceChildren(el("div", { class: "dialog-head" }, head, close), inside);
  dialog.showModal();
  try {
    const { answer } = await ask("POST", "/explain", { body: { ...body, item_id: item.item_id } });
    showExplanation(inside, answer, item);
  } catch (error) {
    inside.replaceChildren(el("p", { class: "notice bad" }, error.message));
  }
}

start().catch((error) => trouble(error.message));
