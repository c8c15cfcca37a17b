// Whose history it is: a stored one of a user, or one that is built here and stored nowhere.
import { ask, isDots, itemOf, rememberItems } from "./api.js";
import { itemText } from "./answers.js";
import { el, freshId, newest, said, settled } from "./dom.js";

const SHOWN = 12; // items of a history, the newest, until all are asked for
const NOBODY = "visitor"; // names nobody: the request brings its history itself

/** The state that all views share. onChange is called when the history is another one. */
export class People {
  constructor(root, info, onChange) {
    this.onChange = onChange;
    this.eventType = info.limits.history_event_types[0] ?? null;
    this.negativeType = info.limits.negative_event_types[0] ?? null;
    this.userId = "";
    this.isStored = false;
    this.history = []; // oldest to newest
    this.target = null; // what came next, of a test user
    this.knowsHeldOut = info.bundle.knows_held_out;
    this.status = el("p", { class: "status", role: "status" });
    this.cards = el("div", { class: "history" });
    this.turn = 0; // raised by each action, so that an older one changes nothing after it
    this.show = newest((signal, userId, user) => this.read(signal, userId, user));
    this.isTyped = false; // since the last action: what is typed stays in its field
    const typed = () => void (this.isTyped = true);
    this.user = el("input", { id: "user", type: "text", autocomplete: "off", spellcheck: "false", placeholder: "any id", on: { input: typed } });
    root.replaceChildren(
      el(
        "form",
        { class: "bar-form", on: { submit: (event) => (event.preventDefault(), this.find(this.user.value.trim())) } },
        el("label", { for: "user" }, "User"),
        this.user,
        el("button", { type: "submit" }, "Show"),
        el("button", { type: "button", on: { click: () => this.random() } }, "A random test user"),
      ),
      new ItemSearch((item) => this.add(item)).root,
      this.status,
    );
  }

  /** What a request says of the history. */
  fields() {
    return this.isStored ? { user_id: this.userId } : { user_id: NOBODY, history: this.history };
  }

  /** The first test user of the bundle, so that there is something to see at once. */
  async begin() {
    await this.told(async (isNewest) => {
      const [user] = (await ask("GET", "/held-out-users?limit=1")).answer.users;
      if (!isNewest()) return;
      if (user) await this.show(user.user_id, user);
      else await this.byHand([]);
    });
  }

  async find(userId) {
    if (!userId) return this.user.focus();
    this.isTyped = false;
    return this.told(() => this.show(userId, null));
  }

  async random() {
    this.isTyped = false;
    await this.told(async (isNewest) => {
      const { num_users: many } = (await ask("GET", "/held-out-users?limit=1")).answer;
      if (!isNewest()) return;
      if (!many) {
        this.status.replaceChildren("This bundle has no test users. Find items, and build a history of them.");
        return;
      }
      const first = Math.floor(Math.random() * many);
      const [user] = (await ask("GET", `/held-out-users?first=${first}&limit=1`)).answer.users;
      if (!isNewest()) return;
      await this.show(user.user_id, user);
    });
  }

  /** Do `work(isNewest)`, and say how it fails, unless a later action has begun. */
  async told(work) {
    const turn = ++this.turn;
    const isNewest = () => turn === this.turn;
    try {
      await work(isNewest);
    } catch (error) {
      if (!isNewest()) return;
      this.name(this.userId); // whose history is still shown
      this.said(error.message);
    }
  }

  name(userId) {
    if (!this.isTyped) this.user.value = userId;
  }

  /** Read a stored history. A test user of whom nothing is stored brings the bundle's. */
  async read(signal, userId, user) {
    if (isDots(userId)) throw new Error(`No history can be read of the id ${userId}.`);
    const turn = this.turn;
    const { answer } = await ask("GET", `/users/${encodeURIComponent(userId)}/history`, { signal });
    if (signal.aborted || turn !== this.turn) return;
    this.name((this.userId = userId));
    this.isStored = answer.history.length > 0 || !user;
    this.history = this.isStored ? answer.history : user.history;
    this.target = user?.target ?? null;
    await this.changed();
  }

  async add(item) {
    rememberItems([item]);
    await this.byHand([...this.history, item.item_id]);
  }

  async byHand(history) {
    this.turn += 1;
    this.isStored = false;
    this.target = null;
    this.history = history;
    await this.changed();
  }

  /**
   * Post an event of an item that an answer has shown; then the history is read again.
   * shown: { userId, isStored, recommendationId, eventId } as the answer was drawn; nothing is done
   * when the history is another user's now.
   */
  async did(item, shown, eventType = this.eventType) {
    if (shown.isStored !== this.isStored || shown.userId !== this.userId) return;
    if (!this.isStored) {
      if (eventType === this.eventType) await this.byHand([...this.history, item.item_id]);
      return;
    }
    const event = { event_id: shown.eventId, user_id: shown.userId, item_id: item.item_id, event_type: eventType, recommendation_id: shown.recommendationId };
    await this.told(async (isNewest) => {
      const { answer } = await ask("POST", "/events", { body: { events: [event] } });
      if (!isNewest()) return;
      const [rejected] = answer.rejected;
      try {
        await this.show(shown.userId, null);
      } catch (error) {
        throw rejected ? error : new Error(`Stored: ${eventType}. But the history could not be read again: ${error.message}`);
      }
      if (!isNewest()) return;
      const counted = answer.attributed ? " It counts for this recommendation." : "";
      this.said(rejected ? rejected.message : ` Stored: ${eventType}.${counted}`);
    });
  }

  said(text) {
    this.status.append(" ", said(text));
  }

  async changed() {
    const many = `${this.history.length} ${this.history.length === 1 ? "item" : "items"}`;
    const whose = this.isStored ? ["The stored history of ", said(this.userId), `, ${many}.`] : [`A history of this page, ${many}. It is stored nowhere.`];
    if (!this.isStored && this.target) whose.splice(0, 1, "The bundle's history of ", said(this.userId), `, ${many}. It is not in the store.`);
    this.status.replaceChildren(...whose);
    this.onChange();
    const { target, history } = this;
    await this.draw(SHOWN);
    if (target) await this.tell(target, history);
  }

  /** What came next, of a test user: recommendations can be held against it. */
  async tell(target, history) {
    const { title } = await itemOf(target);
    if (history !== this.history) return;
    const learnt = this.knowsHeldOut ? " This bundle has learnt it." : "";
    this.status.append(" A test user. What came next: ", said(title.slice(0, 200) || target), `.${learnt}`);
  }

  async draw(most) {
    const history = this.history;
    const newestFirst = history.map((itemId, place) => ({ itemId, place })).reverse();
    const items = await Promise.all(newestFirst.slice(0, most).map(({ itemId }) => itemOf(itemId)));
    if (history !== this.history) return;
    const cards = items.map((item, n) =>
      el(
        "li",
        { class: "card", data: { item: item.item_id } },
        el("div", { class: "what" }, itemText(item), item.unknown ? el("p", { class: "marks" }, el("span", { class: "mark" }, "not in this bundle")) : null),
        el(
          "button",
          { type: "button", class: "icon", "aria-label": `Take ${item.title.slice(0, 80)} out of the history`, on: { click: () => this.byHand(history.toSpliced(newestFirst[n].place, 1)) } },
          "×",
        ),
      ),
    );
    const more = history.length > items.length ? el("button", { type: "button", class: "quiet", on: { click: () => this.draw(Infinity) } }, `Show all ${history.length}`) : null;
    const nothing = history.length ? null : el("p", { class: "hint" }, "Nothing yet. Choose a recommended item, or find one above.");
    this.cards.replaceChildren(...[nothing, el("ol", { class: "cards", role: "list" }, ...cards), more].filter(Boolean));
  }
}

/** Finds items by words of their titles while somebody types: a combobox with a list. */
class ItemSearch {
  constructor(onChosen) {
    this.onChosen = onChosen;
    this.found = [];
    this.at = -1;
    this.list = el("ul", { class: "options", role: "listbox", id: freshId("found"), "aria-label": "Found items", hidden: true });
    this.input = el("input", {
      id: "find-item",
      type: "text",
      role: "combobox",
      autocomplete: "off",
      placeholder: "words of a title",
      "aria-expanded": "false",
      "aria-autocomplete": "list",
      "aria-controls": this.list.id,
    });
    const search = newest((signal, words) => ask("GET", `/items?limit=8&q=${encodeURIComponent(words)}`, { signal }));
    const isAwaited = (words) => !this.isClosed && document.activeElement === this.input && this.input.value.trim() === words;
    const type = settled(async () => {
      const words = this.input.value.trim();
      if (!words) return this.close();
      if (!isAwaited(words)) return;
      try {
        const result = await search(words);
        if (result && isAwaited(words)) this.open(result.answer.items);
      } catch (error) {
        if (isAwaited(words)) this.open([], error.message);
      }
    }, 120);
    this.input.addEventListener("input", () => ((this.isClosed = false), type()));
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => this.close());
    this.root = el("div", { class: "bar-form search" }, el("label", { for: "find-item" }, "Add an item"), this.input, this.list);
  }

  open(items, message = "No title has these words.") {
    this.found = items;
    this.at = items.length ? 0 : -1;
    const options = items.map((item, n) =>
      el("li", { role: "option", id: `${this.list.id}-${n}`, on: { pointerdown: (event) => (event.preventDefault(), this.choose(item)) } }, itemText(item)),
    );
    this.list.replaceChildren(...(options.length ? options : [el("li", { class: "hint", role: "option", "aria-disabled": "true" }, message)]));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.mark();
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  mark() {
    for (const [n, option] of [...this.list.children].entries()) {
      option.setAttribute("aria-selected", String(n === this.at));
      if (n === this.at) option.scrollIntoView({ block: "nearest" });
    }
    if (this.at >= 0) this.input.setAttribute("aria-activedescendant", `${this.list.id}-${this.at}`);
  }

  key(event) {
    if (event.key === "Escape") this.isClosed = true; // also for words that are still asked for
    if (this.list.hidden) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.found.length) {
      event.preventDefault();
      this.at = (this.at + step + this.found.length) % this.found.length;
      this.mark();
    } else if (event.key === "Enter" && this.at >= 0) {
      event.preventDefault();
      this.choose(this.found[this.at]);
    } else if (event.key === "Escape") this.close();
  }

  choose(item) {
    this.input.value = "";
    this.close();
    this.onChosen(item);
  }
}
