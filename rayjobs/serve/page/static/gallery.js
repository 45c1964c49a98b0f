/** In place of the map, where images have no place: the images themselves, to choose one of. */

import { make, notice, the } from "./dom.js";
import { thumbnail } from "./pictures.js";
import { searchFor } from "./search.js";
import { get } from "./service.js";

/** @typedef {import("./store.js").Store} Store */

const STEP = 60;

/** @param {Store} store */
export async function gallery(store) {
  the("map").hidden = the("map-hint").hidden = true;
  the("gallery").hidden = false;
  let offset = 0;

  async function more() {
    try {
      const { features, index_version: version } = await get(`v1/tiles?limit=${STEP}&offset=${offset}`);
      offset += features.length;
      the("gallery-items").append(...features.map((/** @type {any} */ feature) => item(store, feature, version)));
      the("gallery-more").hidden = features.length < STEP;
    } catch (fault) {
      notice(fault.message);
    }
  }

  the("gallery-more").addEventListener("click", more);
  store.watch(["positives"], ({ positives }) => {
    const chosen = new Set(positives.map((example) => example.kind === "tile" && example.id));
    for (const button of the("gallery-items").querySelectorAll("button")) button.setAttribute("aria-pressed", String(chosen.has(button.dataset.id)));
  });
  await more();
}

/**
 * @param {Store} store
 * @param {import("./store.js").Feature} feature
 * @param {string} version  of the index
 */
function item(store, feature, version) {
  const name = [feature.properties.label, feature.properties.scene_id].filter(Boolean).join(", ");
  const choose = (/** @type {MouseEvent} */ event) => searchFor(store, { kind: "tile", id: feature.id }, { add: event.shiftKey });
  return make("li", {}, make("button", { type: "button", "data-id": feature.id, "aria-pressed": "false", "aria-label": `Search for ${name}`, title: name, onclick: choose }, thumbnail(feature.id, "", version)));
}
