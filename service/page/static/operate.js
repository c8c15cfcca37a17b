// What operators look at: is it healthy, which bundles are in memory, live charts, hidden items.
//
// Facts and charts are open. What changes something needs an administrator's key, which is kept in
// a variable of this page only, and is gone when the page is left.
import { ask } from "./api.js";
import { el, said } from "./dom.js";
import { hitRatesOf, quantileBetween, samplesOf, sumOf } from "./metrics.js";

const EVERY_MS = 2000;
const POINTS = 150;
const DURATION = "unmask_recommend_duration_seconds";

export class Operate {
  /** onBundle: called when another bundle answers. */
  constructor(root, info, onBundle) {
    Object.assign(this, { info, onBundle, key: "", residents: [], timer: 0, turn: 0, before: null });
    this.health = el("p", { class: "big", role: "status" }, "…");
    this.facts = el("dl", { class: "facts" });
    this.bundles = el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Bundles in memory" });
    this.hits = el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Hit rates" });
    this.said = el("p", { class: "hint", role: "status" });
    this.changes = el("div", {});
    this.live = el("p", { class: "hint" }, "From /metrics of the process that answers this page, every two seconds.");
    this.hasMetrics = true;
    this.charts = [
      new Chart("Requests a second", [["requests", "--denoise"]], (now) => [now.rate(now.requests)]),
      new Chart("Milliseconds, p50 and p99", [["p50", "--denoise"], ["p99", "--search"]], (now) => [now.p50, now.p99]),
      new Chart("Degraded answers, %", [["degraded", "--search"]], (now) => [now.requests ? (100 * now.degraded) / now.requests : null]),
      new Chart("Events a second", [["events", "--encode"]], (now) => [now.rate(now.events)]),
    ];
    root.replaceChildren(
      el("div", { class: "panel" }, el("h2", {}, "Health"), this.health, this.facts),
      el(
        "div",
        { class: "panel wide" },
        el("h2", {}, "Live"),
        this.live,
        el("div", { class: "charts" }, ...this.charts.map((chart) => chart.root)),
      ),
      el("div", { class: "panel wide" }, el("h2", {}, "Bundles in memory"), this.bundles, this.keyForm(), this.said, this.changes),
      el("div", { class: "panel wide" }, el("h2", {}, "Hit rates"), this.hits),
    );
  }

  show() {
    clearTimeout(this.timer);
    this.tick();
  }

  hide() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.before = null;
  }

  async tick() {
    const mine = (this.timer = setTimeout(() => {}, 0));
    if (!document.hidden) {
      try {
        await this.read();
      } catch (error) {
        this.health.replaceChildren(error.message);
      }
    }
    if (this.timer === mine) this.timer = setTimeout(() => this.tick(), EVERY_MS);
  }

  async read() {
    const turn = ++this.turn; // what a later reading has seen is not drawn over
    const ready = ask("GET", "/health/ready").catch((error) => {
      if (error.answer?.reasons) return error; // why it is not
      throw error;
    });
    const [{ answer: readiness }, { answer: models }, { answer: text }] = await Promise.all([ready, ask("GET", "/models"), this.metrics()]);
    if (turn !== this.turn) return;
    const isReady = readiness.reasons.length === 0;
    this.health.replaceChildren(el("span", { class: `mark ${isReady ? "good" : "bad"}` }, isReady ? "ready" : "not ready"), isReady ? " It answers." : ` ${readiness.reasons.join(", ")}`);
    this.drawBundles(models);
    this.drawFacts(text === null ? null : samplesOf(text));
    if (text !== null) this.drawMetrics(samplesOf(text));
  }

  /** What /metrics says; null where a gateway keeps it from browsers, which is asked once. */
  async metrics() {
    if (!this.hasMetrics) return { answer: null };
    try {
      return await ask("GET", "/metrics");
    } catch (error) {
      if (error.status !== 404) throw error;
      this.hasMetrics = false;
      this.live.replaceChildren("/metrics is not to be seen from here: ", said(error.message));
      return { answer: null };
    }
  }

  drawFacts(samples) {
    const facts = {
      Version: this.info.version,
      Histories: this.info.history_store,
      ...(samples && {
        "Being answered now": sumOf(samples, "unmask_inflight_requests"),
        "Turned away so far": sumOf(samples, "unmask_rejected_total"),
        "Answered so far": sumOf(samples, "unmask_recommendations_total"),
      }),
      "An answer is due in (SLO)": `${this.info.limits.slo_ms} ms`,
    };
    this.facts.replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  }

  drawMetrics(samples) {
    const at = Date.now() / 1000;
    if (this.before) {
      const { samples: before, at: then } = this.before;
      const by = (name, labels) => Math.max(0, sumOf(samples, name, labels) - sumOf(before, name, labels));
      const milliseconds = (quantile) => {
        const seconds = quantileBetween(before, samples, DURATION, quantile);
        return seconds === null ? null : 1000 * seconds;
      };
      const now = {
        rate: (count) => count / (at - then),
        requests: by("unmask_recommend_requests_total"),
        degraded: by("unmask_recommend_requests_total", { outcome: "degraded" }),
        events: by("unmask_events_total", { result: "accepted" }),
        p50: milliseconds(0.5),
        p99: milliseconds(0.99),
      };
      for (const chart of this.charts) chart.add(at, now);
    }
    this.before = { samples, at };
    const rates = hitRatesOf(samples);
    this.hits.replaceChildren(
      rates.length
        ? table(
            ["Bundle", "Variant", "Event", "Answers", "Hit rate"],
            rates.map((one) => [said(one.bundle), said(one.variant), said(one.eventType), one.answers, `${(100 * one.rate).toFixed(2)} ± ${(100 * one.error).toFixed(2)} %`]),
          )
        : el("p", { class: "hint" }, "No event has named an answer yet."),
    );
  }

  drawBundles(models) {
    this.residents = models.residents;
    const seen = JSON.stringify([models, Boolean(this.key)]);
    if (seen === this.drawn) return; // a button that somebody is about to press stays
    this.drawn = seen;
    const act = (text, path) => el("button", { type: "button", on: { click: () => this.act(path) } }, text);
    const rows = models.residents.map((one) => {
      const isUsed = one.roles.length > 0;
      const buttons = this.key
        ? [
            one.roles.includes("active") ? null : act("Activate", `bundles/${one.bundle}/activate`),
            one.roles.includes("previous") ? act("Roll back to it", "bundles/rollback") : null,
            isUsed && !one.roles.every((role) => role === "previous" || role === "candidate") ? null : act("Unload", `bundles/${one.bundle}/unload`),
          ]
        : [];
      const roles = one.shadow_fraction ? [...one.roles, `shadow ${one.shadow_fraction}`] : one.roles;
      return [said(one.bundle), said(one.family), roles.join(", "), one.num_items.toLocaleString("en"), el("span", { class: "buttons" }, ...buttons)];
    });
    this.bundles.replaceChildren(table(["Bundle", "Family", "Role", "Items", this.key ? "Do" : ""], rows));
  }

  keyForm() {
    const placeholder = "to load, compare and hide";
    const input = el("input", { id: "admin-key", type: "password", autocomplete: "off", placeholder });
    const submit = async (event) => {
      event.preventDefault();
      const key = input.value;
      input.value = "";
      this.key = (await this.drawChanges(key)) ? key : "";
      input.placeholder = this.key ? "given, until this page is left" : placeholder;
      if (!this.key) this.changes.replaceChildren(); // forms of a key that is no more
      this.show();
    };
    return el("form", { class: "bar-form", on: { submit } }, el("label", { for: "admin-key" }, "Administrator's key"), input, el("button", { type: "submit" }, "Use"));
  }

  async act(path, body, method = "POST") {
    this.said.replaceChildren("…");
    try {
      const { answer } = await ask(method, `/admin/${path}`, { body, key: this.key });
      if (await this.drawChanges()) this.said.replaceChildren("Done.");
      await this.read();
      await this.onBundle();
      return answer;
    } catch (error) {
      this.said.replaceChildren(said(error.message));
      return null;
    }
  }

  /** Forms that load a bundle and hide items, and the items that are hidden. */
  async drawChanges(key = this.key) {
    const changes = [];
    try {
      for (let after = 0; after !== null; ) {
        const { answer } = await ask("GET", `/admin/items?after=${after}`, { key }); // a page of them, which may be empty
        changes.push(...answer.changes);
        after = answer.next;
      }
    } catch (error) {
      this.said.replaceChildren(said(error.message));
      return false;
    }
    this.said.replaceChildren();
    const form = (id, label, placeholder, text, work) => {
      const input = el("input", { id, type: "text", autocomplete: "off", placeholder });
      const submit = (event) => (event.preventDefault(), input.value.trim() && work(input.value.trim()));
      return el("form", { class: "bar-form", on: { submit } }, el("label", { for: id }, label), input, el("button", { type: "submit" }, text));
    };
    const hidden = changes.filter((one) => one.change === "hidden" && one.in_effect);
    const unhide = (itemId) => el("button", { type: "button", on: { click: () => this.act("items", { unhide: [itemId] }) } }, "Show again");
    this.changes.replaceChildren(
      form("load-bundle", "Bundle to load", "name@version", "Load", (ref) => this.act(`bundles/${encodeURIComponent(ref)}/load`, {})),
      form("hide-item", "Item to hide", "its id", "Hide", (itemId) => this.act("items", { hide: [{ item_id: itemId }] })),
      hidden.length
        ? table(["Hidden item", "Until", ""], hidden.map((one) => [said(one.item_id), one.until ? new Date(1000 * one.until).toLocaleString("en") : "shown again", unhide(one.item_id)]))
        : el("p", { class: "hint" }, "No item is hidden."),
    );
    return true;
  }
}

function table(heads, rows) {
  const head = el("tr", {}, ...heads.map((text) => (text ? el("th", { scope: "col" }, text) : el("td", {}))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell))))));
}

/** A small chart of the last minutes. Its newest values are text too. */
class Chart {
  constructor(title, series, valuesOf) {
    Object.assign(this, { series, valuesOf, plot: null });
    this.data = [[], ...series.map(() => [])];
    this.latest = el("p", { class: "latest" }, "–");
    this.canvas = el("div", { class: "canvas", "aria-hidden": "true" });
    this.root = el("div", { class: "chart" }, el("h3", {}, title), this.latest, this.canvas);
  }

  add(at, now) {
    const values = this.valuesOf(now);
    this.data[0].push(at);
    values.forEach((value, n) => this.data[n + 1].push(value));
    if (this.data[0].length > POINTS) this.data.forEach((column) => column.shift());
    const text = (value) => (value === null ? "–" : value.toFixed(value < 10 ? 1 : 0));
    this.latest.replaceChildren(values.map(text).join(" / "));
    this.plot ??= this.made();
    this.plot.setSize({ width: this.canvas.clientWidth || 260, height: 110 });
    this.plot.setData(this.data);
  }

  made() {
    const colour = (name) => () => getComputedStyle(this.root).getPropertyValue(name);
    const grid = { stroke: colour("--line"), width: 1 };
    return new globalThis.uPlot(
      {
        width: 260,
        height: 110,
        legend: { show: false },
        cursor: { show: false },
        axes: [{ show: false }, { stroke: colour("--soft"), grid, ticks: { show: false }, size: 44 }],
        scales: { y: { range: (_plot, _low, high) => [0, Math.max(1, high * 1.1)] } },
        series: [{}, ...this.series.map(([label, name]) => ({ label, stroke: colour(name), width: 2, spanGaps: true, points: { show: false } }))],
      },
      this.data,
      this.canvas,
    );
  }
}
