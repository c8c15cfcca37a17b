// The catalogue map: not built yet. The view is there when `startMap` answers with one.

/**
 * Fill the view. page: { ask, el, people, playground, info }; `playground.watch(listener)` tells of
 * every answer, `people.history` are the items of the history. Answers a view with a method
 * `refresh`, which is called when the view is shown or the history is another one; null for none.
 */
export async function startMap(_section, _page) {
  return null;
}
