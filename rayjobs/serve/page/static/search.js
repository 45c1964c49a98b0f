/** From what the page knows to a request, and from the answer back to what the page knows. */

import { notice } from "./dom.js";
import { post } from "./service.js";
import { SEARCH_KEYS } from "./store.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").State} State */
/** @typedef {import("./store.js").Example} Example */

const PAUSE_MS = 150; // of a slider on the move

/**
 * The body of a request to `/v1/search`.
 * @param {State} state
 */
export function requestOf(state) {
  return {
    ...examplesOf(state),
    limit: state.limit,
    ...(state.bbox ? { bbox: state.bbox } : {}),
    ...(state.from || state.to ? { datetime: `${state.from || ".."}/${state.to || ".."}` } : {}),
    ...(state.spread ? { spread_m: state.spread } : {}),
  };
}

/**
 * @param {State} state
 */
export function examplesOf(state) {
  const negatives = state.negatives.length ? { negatives: state.negatives.map(asAsked) } : {};
  return { positives: state.positives.map(asAsked), ...negatives };
}

/** @param {Example} example */
const asAsked = (example) =>
  example.kind === "tile" ? { tile_id: example.id } : { embedding: example.embedding, encoder_fingerprint: example.encoder };

/**
 * Search whenever what is searched for has changed; an answer that is overtaken is dropped.
 * @param {Store} store
 */
export function searching(store) {
  let under = new AbortController();
  let waiting = 0;

  async function search() {
    under.abort();
    under = new AbortController();
    const { signal } = under;
    try {
      const answer = await (await post("v1/search", requestOf(store.state), { signal })).json();
      store.update({ answer: { status: "done", ...answer }, current: answer.features[0]?.id ?? null });
    } catch (fault) {
      if (!signal.aborted) store.update({ answer: { status: "error", features: [], problem: fault } });
    }
  }

  store.watch(SEARCH_KEYS, (state) => {
    clearTimeout(waiting);
    under.abort();
    if (!state.positives.length) {
      store.update({ answer: { status: "idle", features: [] }, marks: new Map(), current: null });
      return;
    }
    store.update({ answer: { status: "loading", features: state.answer.features } });
    waiting = setTimeout(search, PAUSE_MS);
  });
}

/**
 * Search for one thing, and forget what was searched for before; or, to add, for it as well.
 * @param {Store} store
 * @param {Example} example
 * @param {{ add?: boolean }} [how]
 */
export function searchFor(store, example, { add = false } = {}) {
  const known = store.state.positives.some((other) => other.kind === "tile" && example.kind === "tile" && other.id === example.id);
  if (add && known) return notice("That place is among the examples already.");
  const { positives, negatives } = store.state;
  store.update({ positives: add ? [...positives, example] : [example], negatives: add ? negatives : [], marks: new Map() });
}

/**
 * Mark a hit as right (1) or wrong (-1); the same mark again takes it back.
 * @param {Store} store
 * @param {string} id
 * @param {1 | -1} sign
 */
export function mark(store, id, sign) {
  const marks = new Map(store.state.marks);
  if (marks.get(id) === sign) marks.delete(id);
  else marks.set(id, sign);
  store.update({ marks });
}

/**
 * Search again with the marked hits among the examples.
 * @param {Store} store
 */
export function searchAgain(store) {
  const { marks, positives, negatives } = store.state;
  const marked = (/** @type {1 | -1} */ sign) =>
    [...marks].filter(([, given]) => given === sign).map(([id]) => /** @type {Example} */ ({ kind: "tile", id }));
  store.update({ positives: [...positives, ...marked(1)], negatives: [...negatives, ...marked(-1)], marks: new Map() });
}
