/** What the map outlines of a search: the examples, the hits, and the marks on them. */

import { similarity, the } from "./dom.js";
import { get } from "./service.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").Feature} Feature */
/** @typedef {import("./map.js").GroundMap} GroundMap */

/**
 * @param {Store} store
 * @param {GroundMap} map
 */
export function outlined(store, map) {
  /** @type {Map<string, Feature>} */
  const known = new Map(); // examples by tile id

  const show = () => {
    const { answer, marks, positives, negatives } = store.state;
    const look = (/** @type {string} */ id) => (marks.get(id) === 1 ? "good" : marks.get(id) === -1 ? "bad" : "hit");
    const hits = answer.features.map((feature, index) => ({
      feature, look: look(feature.id), label: `hit ${index + 1}, similarity ${similarity(feature.properties.score)}`,
    }));
    const given = [...labelled(known, positives, "example", "like this"), ...labelled(known, negatives, "bad", "unlike this")];
    map.showOutlines(/** @type {any[]} */ ([...hits.reverse(), ...given])); // the best hit above the others
    map.highlight(store.state.current);
  };

  store.watch(["answer", "marks"], show);
  store.watch(["current"], ({ current }) => map.highlight(current));
  store.watch(["positives", "negatives"], async ({ positives, negatives }) => {
    the("map-hint").classList.toggle("known", positives.length > 0);
    const unknown = [...positives, ...negatives].filter((example) => example.kind === "tile" && !known.has(example.id));
    await Promise.allSettled(unknown.map(async ({ id }) => known.set(id, await get(`v1/tiles/${id}`))));
    if (unknown.length) show();
  });
}

/**
 * @param {Map<string, Feature>} known
 * @param {import("./store.js").Example[]} examples
 * @param {string} look
 * @param {string} label
 */
function labelled(known, examples, look, label) {
  const features = examples.map((example) => example.kind === "tile" && known.get(example.id));
  return features.filter(Boolean).map((feature) => ({ feature, look, label }));
}
