// Elements from JavaScript. Text becomes text: nothing here, or in any other module, parses HTML.

/**
 * An element. props: `on` has listeners by event, `data` data attributes; true sets an attribute
 * without a value, null and false leave one out; all else is an attribute. Children that are null
 * are left out, and texts are texts.
 */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** An id that no other element of the page has. */
export function freshId(prefix) {
  freshId.count = (freshId.count ?? 0) + 1;
  return `${prefix}-${freshId.count}`;
}

/** Text that comes from data: its direction is its own, and it does not change its neighbours'. */
export function said(text, props = {}) {
  return el("bdi", props, text);
}

/** A span as wide as its share, 0 to 1. Styles are set on the object: the page allows no others. */
export function share(part, name) {
  const bar = el("span", { class: `share ${name}` });
  bar.style.width = `${(100 * Math.min(1, Math.max(0, part))).toFixed(2)}%`;
  return bar;
}

/** Run the newest call only: a call after it aborts it, and its answer is dropped. */
export function newest(work) {
  let own = null;
  return async (...given) => {
    own?.abort();
    const mine = (own = new AbortController());
    try {
      const answer = await work(mine.signal, ...given);
      return mine === own ? answer : undefined;
    } catch (error) {
      if (mine === own) throw error;
      return undefined;
    }
  };
}

/** Call `work` once, this long after the last of many calls. */
export function settled(work, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}

/** Call `work` at once, and once more this long after the last of more calls that come meanwhile. */
export function eager(work, milliseconds) {
  let timer = null;
  let isDue = false;
  return () => {
    if (timer === null) work();
    else isDue = true;
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = null;
      if (isDue) work();
      isDue = false;
    }, milliseconds);
  };
}
