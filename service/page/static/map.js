// The catalogue map: every item a point on a canvas, near items that are like it.
//
// All points are written into one array of pixels a frame, so thousands of them move smoothly. The
// service gives places and groups; titles are asked for when a point is chosen. Imports nothing.

const NONE = 65535; // a point without a group, or without a place
const LAST = 65534; // the far corner of the map
const NEAR_PX = 14; // from a point, to choose it
const MOST_ZOOM = 200;
const STEP_PX = 60; // an arrow key
const REST_MS = 120; // of a pointer, before a title is asked for
const MARGIN = 0.04;
// Told apart by most people, on light and on dark ground.
const GROUPS = ["#4c78d8", "#e0742f", "#3c9d5b", "#c94f8c", "#8a63c9", "#c9a227", "#2f9fae", "#d2504b", "#7d8b2f", "#a0674b", "#5fa8e8", "#e39ac0"];
const RANGES = ["#4b3f9e", "#3f67b0", "#2f8aa6", "#2fa488", "#5cb863", "#97c548", "#d0cb3c", "#f2d43a"];

/**
 * The view of the page. page: { ask, el, people, playground }. Answers null if the bundle has no
 * map; else a view, whose `refresh` is called when it is shown or the history is another one.
 */
export async function startMap(section, { ask, el, people, playground }) {
  let map;
  try {
    map = await showMap(section, { ask, el, onPick: (item) => people.add(item) });
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
  playground.watch((answer) =>
    map.update({
      history: people.history,
      recommendations: (answer.items ?? []).map((item) => item.item_id),
    }),
  );
  return { refresh: () => (map.draw(), playground.refresh()) };
}

/**
 * Fill `element` with the map of the active bundle.
 *
 * ask(method, path): resolves to { answer }; el: makes elements; onPick(item): what the button of a
 * chosen item does, none without it. history, recommendations: item ids. Throws as `ask` does.
 */
export async function showMap(element, { ask, el, onPick = null, history = [], recommendations = [] }) {
  const { answer } = await ask("GET", "/map");
  await styled();
  const map = new CatalogueMap(element, answer, { ask, el, onPick });
  map.update({ history, recommendations });
  await map.colourBy("position=0");
  return map;
}

function styled() {
  const href = new URL("./map.css", import.meta.url).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return null;
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = href;
  return new Promise((done) => {
    link.onload = link.onerror = done;
    document.head.append(link);
  });
}

function numbersOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, n) => view.getUint16(2 * n, true));
}

const tagOf = (answer) => `${answer.bundle} ${answer.items_tag}`;

/** A colour for each code: neighbouring numbers get hues that are far apart. */
function colourOfCode(code) {
  const hue = (code * 137.508) % 360;
  return `hsl(${hue.toFixed(1)} ${code % 2 ? 62 : 48}% ${[56, 46, 64][code % 3]}%)`;
}

/** What a pixel of an ImageData is: bytes of red, green, blue and alpha, in this machine's order. */
function pixelOf(colour) {
  const one = (pixelOf.canvas ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true }));
  one.clearRect(0, 0, 1, 1);
  one.fillStyle = colour;
  one.fillRect(0, 0, 1, 1);
  return new Uint32Array(one.getImageData(0, 0, 1, 1).data.buffer)[0];
}

/** A disc as offsets and weights of 0 to 256; its rim is soft. */
function discOf(radius) {
  const dots = [];
  const most = Math.ceil(radius);
  for (let y = -most; y <= most; y++) {
    for (let x = -most; x <= most; x++) {
      const weight = Math.round(256 * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y))));
      if (weight) dots.push([x, y, weight]);
    }
  }
  return dots;
}

class CatalogueMap {
  constructor(element, answer, { ask, el, onPick }) {
    Object.assign(this, { element, ask, el, onPick });
    this.last = {}; // what was marked
    this.take(answer);
    this.view = { x: 0.5, y: 0.5, zoom: 1 }; // the middle, in shares of the map
    this.frames = 0;
    this.build(answer);
  }

  /** The points are those of this answer of GET /map. */
  take(answer) {
    this.tag = tagOf(answer);
    this.itemIds = answer.item_ids;
    this.places = numbersOf(answer.places);
    this.pointOf = new Map(this.itemIds.map((itemId, point) => [itemId, point]));
    this.groups = new Uint16Array(this.itemIds.length).fill(NONE);
    this.pixels = null; // of every point, for the colours of now
    this.names = null;
    this.items = new Map();
    this.marks = [];
    this.chosen = null;
    clearTimeout(this.resting);
    this.resting = null;
  }

  build(answer) {
    const { el, element } = this;
    const options = [
      ...Array.from({ length: answer.positions }, (_, n) => [`position=${n}`, `Code of position ${n}`]),
      ...answer.attributes.map((name) => [`attribute=${encodeURIComponent(name)}`, name]),
    ];
    this.select = el(
      "select",
      { id: "map-colour", on: { change: () => this.colourBy(this.select.value) } },
      ...options.map(([value, name]) => el("option", { value }, name)),
    );
    const button = (label, name, work) => el("button", { type: "button", "aria-label": label, on: { click: work } }, name);
    this.canvas = el("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": `Map of ${this.itemIds.length.toLocaleString("en")} items`,
      "aria-describedby": "map-keys",
    });
    this.tip = el("div", { class: "map-tip", hidden: true });
    this.legend = el("ul", { class: "map-legend", role: "list" });
    this.card = el("div", { class: "map-chosen", role: "status" });
    const shown = this.itemIds.length.toLocaleString("en");
    const rest = answer.num_items > this.itemIds.length ? `The ${shown} most popular of ${answer.num_items.toLocaleString("en")} items.` : `All ${shown} items.`;
    element.classList.add("map-view");
    element.replaceChildren(
      el(
        "div",
        { class: "panel map-panel" },
        el(
          "div",
          { class: "map-bar" },
          el("label", { for: "map-colour" }, "Colour by"),
          this.select,
          el("span", { class: "map-zoom" }, button("Zoom in", "+", () => this.zoom(1.6)), button("Zoom out", "−", () => this.zoom(1 / 1.6)), button("Show the whole map", "Whole map", () => this.whole())),
        ),
        el("div", { class: "map-frame" }, this.canvas, this.tip),
        el("p", { class: "hint", id: "map-keys" }, `${rest} Items that are alike are near each other. Drag, or arrow keys, to move; wheel, + and − to zoom; click, or Enter for the middle, to choose; 0 for the whole map.`),
      ),
      el(
        "div",
        { class: "panel map-side" },
        el("ul", { class: "map-marks", role: "list" }, el("li", {}, el("span", { class: "map-ring history" }), "History"), el("li", {}, el("span", { class: "map-ring recommended" }), "Recommended")),
        el("h2", {}, "Colours"),
        this.legend,
        el("h2", {}, "Chosen item"),
        this.card,
      ),
    );
    this.card.replaceChildren(el("p", { class: "hint" }, "None yet."));
    this.listen();
  }

  listen() {
    const { canvas } = this;
    const down = new Map(); // pointers that press, by id
    let moved = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (!down.size) moved = 0;
      down.set(event.pointerId, at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      const before = down.get(event.pointerId);
      if (!before) {
        this.hover(x, y);
        return;
      }
      const [dx, dy] = [x - before[0], y - before[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      if (down.size === 2) {
        const other = [...down].find(([id]) => id !== event.pointerId)[1];
        const spread = (one) => Math.max(20, Math.hypot(one[0] - other[0], one[1] - other[1]));
        this.zoom(spread([x, y]) / spread(before), (x + other[0]) / 2, (y + other[1]) / 2);
      } else this.pan(-dx, -dy);
      down.set(event.pointerId, [x, y]);
    });
    const up = (event) => {
      const wasDown = down.delete(event.pointerId);
      if (event.type === "pointerup" && wasDown && moved < 5) this.choose(this.nearest(...at(event)));
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const lines = event.deltaMode === 1 ? 16 : 1;
        this.zoom(Math.exp(-event.deltaY * lines * 0.0016), ...at(event));
      },
      { passive: false },
    );
    const keys = {
      ArrowLeft: () => this.pan(-STEP_PX, 0),
      ArrowRight: () => this.pan(STEP_PX, 0),
      ArrowUp: () => this.pan(0, -STEP_PX),
      ArrowDown: () => this.pan(0, STEP_PX),
      "+": () => this.zoom(1.3),
      "=": () => this.zoom(1.3),
      "-": () => this.zoom(1 / 1.3),
      0: () => this.whole(),
      Enter: () => this.choose(this.nearest(this.width / 2, this.height / 2, Infinity)),
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    canvas.addEventListener("focus", () => this.draw());
    canvas.addEventListener("blur", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  get width() {
    return this.canvas.clientWidth;
  }

  get height() {
    return this.canvas.clientHeight;
  }

  /** Pixels of the page that the whole map is wide, at this zoom. */
  get scale() {
    return Math.min(this.width, this.height) * (1 - 2 * MARGIN) * this.view.zoom;
  }

  /** Where a point is on the canvas, in pixels of the page; null if it has no place. */
  at(itemId) {
    const point = this.pointOf.get(itemId);
    return point === undefined || !this.hasPlace(point) ? null : this.spot(point);
  }

  hasPlace(point) {
    return this.places[2 * point] !== NONE || this.places[2 * point + 1] !== NONE;
  }

  spot(point) {
    const { view, scale } = this;
    return [
      this.width / 2 + (this.places[2 * point] / LAST - view.x) * scale,
      this.height / 2 + (this.places[2 * point + 1] / LAST - view.y) * scale,
    ];
  }

  /** The point that is nearest to a spot, a marked one if there is one; null if none is near. */
  nearest(x, y, within = NEAR_PX) {
    for (const points of [this.marks.map(([point]) => point), this.itemIds.keys()]) {
      let [best, least] = [null, within * within];
      for (const point of points) {
        if (!this.hasPlace(point)) continue;
        const [px, py] = this.spot(point);
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) [best, least] = [point, distance];
      }
      if (best !== null && (points instanceof Array ? least < 64 : true)) return best;
    }
    return null;
  }

  pan(dx, dy) {
    const inside = (share) => Math.min(1, Math.max(0, share));
    this.view.x = inside(this.view.x + dx / this.scale);
    this.view.y = inside(this.view.y + dy / this.scale);
    this.draw();
  }

  /** Zoom; what is at (x, y) stays there. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.scale;
    this.view.zoom = Math.min(MOST_ZOOM, Math.max(0.5, this.view.zoom * factor));
    const change = 1 / before - 1 / this.scale;
    this.pan((x - this.width / 2) * change * this.scale, (y - this.height / 2) * change * this.scale);
  }

  whole() {
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.draw();
  }

  /** Mark the items of a history and those that are recommended for it. */
  update(marked) {
    const { history = [], recommendations = [] } = (this.last = marked);
    const found = (itemIds) => itemIds.map((itemId) => this.pointOf.get(itemId)).filter((point) => point !== undefined && this.hasPlace(point));
    this.marks = [
      ...found(history).map((point) => [point, "history"]),
      ...found(recommendations).map((point) => [point, "recommended"]),
    ];
    this.draw();
  }

  /** Colour by what a query of GET /map/groups names, such as `position=2`. */
  async colourBy(query) {
    this.asked = query;
    try {
      await this.coloured(query);
    } catch (error) {
      if (this.asked === query) this.legend.replaceChildren(this.el("li", { class: "notice bad" }, error.message));
    }
  }

  async coloured(query) {
    const groups = () => this.ask("GET", `/map/groups?${query}`);
    let { answer } = await groups();
    if (this.asked !== query) return; // another one was asked for meanwhile
    if (tagOf(answer) !== this.tag) {
      // The bundle, or its items, are others now.
      const { answer: map } = await this.ask("GET", "/map");
      if (this.asked !== query) return;
      this.take(map);
      this.build(map);
      this.update(this.last);
      ({ answer } = await groups());
      if (this.asked !== query) return;
      if (tagOf(answer) !== this.tag) throw new Error("The items are changing. Choose the colour again.");
    }
    this.select.value = query;
    this.groups = numbersOf(answer.groups);
    this.names = answer.names;
    this.isOrdered = answer.ordered;
    this.paint();
    this.explain();
  }

  colourOf(group) {
    if (group === NONE) return this.none;
    if (!this.names) return colourOfCode(group);
    if (this.isOrdered) return RANGES[Math.round((group * (RANGES.length - 1)) / Math.max(1, this.names.length - 1))];
    return GROUPS[group % GROUPS.length];
  }

  /** The colours of all points, and of everything else, as the page is now. */
  paint() {
    const style = getComputedStyle(this.canvas);
    this.none = style.getPropertyValue("--map-none").trim() || "#9aa0ae";
    this.ground = style.backgroundColor;
    const known = new Map();
    this.pixels = Uint32Array.from(this.groups, (group) => {
      if (!known.has(group)) known.set(group, pixelOf(this.colourOf(group)));
      return known.get(group);
    });
    this.draw();
  }

  explain() {
    const { el } = this;
    const row = (group, name, count) => {
      const swatch = el("span", { class: "map-swatch" });
      swatch.style.background = this.colourOf(group);
      return el("li", {}, swatch, el("bdi", { class: "map-name", title: name.slice(0, 300) }, name), el("span", { class: "hint" }, count.toLocaleString("en")));
    };
    const counts = new Map();
    for (const group of this.groups) counts.set(group, (counts.get(group) ?? 0) + 1);
    const rows = [];
    if (this.names) this.names.forEach((name, group) => rows.push(row(group, short(name), counts.get(group) ?? 0)));
    else {
      const largest = [...counts].filter(([group]) => group !== NONE).sort((one, two) => two[1] - one[1]);
      for (const [code, count] of largest.slice(0, 12)) rows.push(row(code, `code ${code}`, count));
      if (largest.length > 12) rows.push(el("li", { class: "hint" }, `and ${largest.length - 12} other codes`));
    }
    if (counts.has(NONE)) rows.push(row(NONE, this.names && !this.isOrdered ? "all others" : "none", counts.get(NONE)));
    this.legend.replaceChildren(...rows);
  }

  hover(x, y) {
    clearTimeout(this.resting);
    this.resting = null;
    const point = x === null ? null : this.nearest(x, y);
    this.canvas.classList.toggle("over", point !== null);
    if (point === null) {
      this.tip.hidden = true;
      return;
    }
    const resting = (this.resting = setTimeout(async () => {
      const item = await this.itemOf(point);
      if (this.resting !== resting) return; // the pointer has gone on
      const [px, py] = this.spot(point);
      this.tip.replaceChildren(this.el("bdi", {}, item.title.slice(0, 200) || item.item_id));
      this.tip.style.left = `${Math.min(Math.max(px, 90), this.width - 90)}px`;
      this.tip.style.top = `${py}px`;
      this.tip.classList.toggle("below", py < 80);
      this.tip.hidden = false;
    }, REST_MS));
  }

  async itemOf(point) {
    const itemId = this.itemIds[point];
    if (!this.items.has(itemId)) {
      try {
        this.items.set(itemId, (await this.ask("GET", `/items/${encodeURIComponent(itemId)}`)).answer);
      } catch (error) {
        return { item_id: itemId, title: error.message, categories: [], sid: [] };
      }
    }
    return this.items.get(itemId);
  }

  /** Choose a point, or none: its item is told, and marked. */
  async choose(point) {
    const { el } = this;
    this.chosen = point;
    this.draw();
    if (point === null) {
      this.card.replaceChildren(el("p", { class: "hint" }, "None."));
      return;
    }
    this.items.delete(this.itemIds[point]); // it may be hidden, or not, since it was asked for
    const item = await this.itemOf(point);
    if (this.chosen !== point) return;
    this.card.replaceChildren(
      el("p", { class: "title" }, el("bdi", {}, item.title.slice(0, 1000) || item.item_id)),
      ...item.categories.slice(0, 3).map((category) => el("p", { class: "hint" }, el("bdi", {}, category))),
      el("p", { class: "hint" }, `Semantic ID ${item.sid.join(" ")}`),
      ...(item.hidden ? [el("p", { class: "notice" }, "It is hidden: it is not recommended now.")] : []),
      ...(this.onPick && item.sid.length ? [el("button", { type: "button", on: { click: () => this.onPick(item) } }, "Add to the history")] : []),
    );
  }

  /** Draw in the next frame. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.width && this.height && this.pixels) this.render();
    });
  }

  render() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height || !this.image) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.context = this.canvas.getContext("2d");
      this.image = this.context.createImageData(width, height);
      this.buffer = new Uint32Array(this.image.data.buffer);
    }
    const { buffer, places, pixels } = this;
    buffer.fill(pixelOf(this.ground));
    const density = Math.sqrt((width * height) / Math.max(1, this.itemIds.length));
    const radius = ratio * Math.min(5, Math.max(1.1, (density / ratio) * 0.22) * Math.sqrt(Math.sqrt(this.view.zoom)));
    const disc = discOf(radius);
    const offsets = Int32Array.from(disc, ([x, y]) => y * width + x);
    const weights = Int32Array.from(disc, ([, , weight]) => weight);
    const isOutside = (x, y) => x < 0 || y < 0 || x >= width || y >= height;
    const rim = Math.ceil(radius);
    const scale = (this.scale * ratio) / LAST;
    const left = width / 2 - this.view.x * this.scale * ratio;
    const top = height / 2 - this.view.y * this.scale * ratio;
    for (let point = pixels.length - 1; point >= 0; point--) { // the most popular ones on top
      const x = Math.round(left + places[2 * point] * scale);
      const y = Math.round(top + places[2 * point + 1] * scale);
      const isCut = x < rim || y < rim || x >= width - rim || y >= height - rim;
      if (isCut && (x < -rim || y < -rim || x >= width + rim || y >= height + rim)) continue;
      if (places[2 * point] === NONE && places[2 * point + 1] === NONE) continue;
      const middle = y * width + x;
      const colour = pixels[point];
      const even = colour & 0xff00ff; // red and blue
      const odd = (colour >>> 8) & 0xff;
      for (let dot = 0; dot < offsets.length; dot++) {
        if (isCut && isOutside(x + disc[dot][0], y + disc[dot][1])) continue;
        const weight = weights[dot];
        const pixel = middle + offsets[dot];
        if (weight === 256) {
          buffer[pixel] = colour;
          continue;
        }
        const under = buffer[pixel];
        const rest = 256 - weight;
        const mixed = (((even * weight + (under & 0xff00ff) * rest) >>> 8) & 0xff00ff) | ((odd * weight + ((under >>> 8) & 0xff) * rest) & 0xff00);
        buffer[pixel] = (0xff000000 | mixed) >>> 0;
      }
    }
    this.context.putImageData(this.image, 0, 0);
    this.mark(ratio, radius);
    this.frames += 1;
  }

  /** Rings around history, recommendations and the chosen item, and the middle for the keyboard. */
  mark(ratio, radius) {
    const { context } = this;
    const style = getComputedStyle(this.canvas);
    const colours = { history: style.getPropertyValue("--map-history"), recommended: style.getPropertyValue("--map-recommended"), chosen: style.color };
    const ring = ([x, y], kind, more) => {
      for (const [line, colour] of [[5, this.ground], [2.5, colours[kind]]]) {
        context.beginPath();
        context.arc(x * ratio, y * ratio, radius + more * ratio, 0, 2 * Math.PI);
        context.lineWidth = line * ratio;
        context.strokeStyle = colour;
        context.stroke();
      }
    };
    for (const [point, kind] of this.marks) ring(this.spot(point), kind, kind === "history" ? 3.5 : 5.5);
    if (this.chosen !== null) ring(this.spot(this.chosen), "chosen", 8.5);
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) {
      const [x, y, arm] = [this.canvas.width / 2, this.canvas.height / 2, 7 * ratio];
      context.lineWidth = 1.5 * ratio;
      context.strokeStyle = style.color;
      context.beginPath();
      context.moveTo(x - arm, y);
      context.lineTo(x + arm, y);
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
      context.stroke();
    }
  }
}

/** The end of a path of categories, which tells more than its beginning. */
function short(name) {
  const parts = name.split(" > ");
  return parts.length > 2 ? `… > ${parts.slice(-2).join(" > ")}` : name;
}
