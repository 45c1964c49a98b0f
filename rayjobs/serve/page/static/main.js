/** Puts the page together. */

import { drawing } from "./box.js";
import { changes } from "./changes.js";
import { notice, the } from "./dom.js";
import { examples } from "./examples.js";
import { exports } from "./exports.js";
import { filters } from "./filters.js";
import { gallery } from "./gallery.js";
import { fromHash, toHash } from "./hash.js";
import { heat } from "./heat.js";
import { hits } from "./hits.js";
import { images } from "./images.js";
import { imagery } from "./imagery.js";
import { keys } from "./keys.js";
import { GroundMap } from "./map.js";
import { marked } from "./marked.js";
import { outlined } from "./outlined.js";
import { tiles } from "./tiles.js";
import { searchFor, searching } from "./search.js";
import { get } from "./service.js";
import { EMPTY, SEARCH_KEYS, Store } from "./store.js";

const store = new Store({ ...EMPTY, ...fromHash(location.hash) });

start().catch((fault) => {
  the("about").textContent = "";
  store.update({ answer: { status: "error", features: [], problem: fault } });
  notice(fault.message);
});

async function start() {
  const info = await get("v1/info");
  describe(info);
  const map = info.bounds ? await onGround(info) : null;
  if (!map) await gallery(store);
  examples(store);
  images(store);
  filters(store, { dates: info.dates, view: map && (() => map.view) });
  hits(store, {
    onHover: (id) => map?.highlight(id ?? store.state.current),
    onHold: (id) => map?.highlight(id, { reveal: true }),
    onRandom: () => anyPlace(info),
  });
  exports(store);
  marked(store);
  keys(store);
  searching(store);
  keepInAddress();
}

/** @param {any} info */
function describe(info) {
  const days = info.dates?.map((/** @type {string} */ moment) => moment.slice(0, 10)) ?? [];
  const when = [...new Set(days)].join(" to ");
  the("about").textContent = [info.name, `${info.rows.toLocaleString("en")} tiles`, when].filter(Boolean).join(" · ");
  document.title = `rayjobs: ${info.name}`;
}

/**
 * Show the map, and what belongs to it.
 * @param {any} info
 */
async function onGround(info) {
  const map = new GroundMap(the("map"), {
    bounds: info.bounds,
    onPlace: choosePlace,
    onChoose: (id) => the("hits").querySelector(`[data-id="${id}"] .face`)?.focus(),
  });
  the("tools").hidden = false;
  outlined(store, map);
  drawing(store, map);
  heat(store, map);
  tiles(map);
  const { pictures } = await get("page/overview");
  dated = imagery(map, pictures);
  changes(map, { dates: [...new Set(pictures.map((/** @type {any} */ picture) => picture.datetime?.slice(0, 10)).filter(Boolean))] });
  return map;
}

/** The day of the imagery that the map shows; empty for any. */
let dated = () => "";

/**
 * Search for the tile that holds a place.
 * @param {number} lon
 * @param {number} lat
 * @param {boolean} add
 */
async function choosePlace(lon, lat, add) {
  try {
    const day = dated();
    const found = await get(`page/place?lon=${lon}&lat=${lat}${day ? `&datetime=${day}` : ""}`);
    searchFor(store, { kind: "tile", id: found.id }, { add });
  } catch (fault) {
    notice(fault.message);
  }
}

/** @param {any} info */
async function anyPlace(info) {
  try {
    const { features } = await get(`v1/tiles?limit=1&offset=${Math.floor(Math.random() * info.rows)}`);
    searchFor(store, { kind: "tile", id: features[0].id });
  } catch (fault) {
    notice(fault.message);
  }
}

/** Keep the search in the address, and take up what going back brings there. */
function keepInAddress() {
  store.watch([...SEARCH_KEYS, "heat"], (state) => {
    const hash = toHash(state);
    if (hash !== location.hash.slice(1)) history.pushState(null, "", hash ? `#${hash}` : location.pathname);
  });
  addEventListener("popstate", () => store.update(fromHash(location.hash)));
}
