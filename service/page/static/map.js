// The catalogue map: not built yet. The view is there when `startMap` answers true.

/**
 * Fill the view. page: { ask, el, people, playground, info }; `playground.watch(listener)` tells of
 * every answer, `people.history` are the items of the history.
 */
export async function startMap(_section, _page) {
  return false;
}
