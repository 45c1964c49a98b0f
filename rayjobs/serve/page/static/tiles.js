/** Faint outlines of the index's tiles, where the view is near enough to tell them apart. */

import { notice, the } from "./dom.js";
import { get } from "./service.js";

/** @typedef {import("./map.js").GroundMap} GroundMap */

const MOST = 500;

/** @param {GroundMap} map */
export function tiles(map) {
  const button = the("tiles");
  let under = new AbortController();
  const isOn = () => button.getAttribute("aria-pressed") === "true";

  async function show() {
    under.abort();
    under = new AbortController();
    const { signal } = under;
    if (!isOn()) return map.showTiles([]);
    try {
      const { features } = await get(`v1/tiles?bbox=${map.view.join(",")}&limit=${MOST}`, signal);
      map.showTiles(features.length < MOST ? features : []);
      if (features.length >= MOST) notice("There are too many tiles in view to outline them; zoom in.");
    } catch (fault) {
      if (!signal.aborted) notice(fault.message);
    }
  }

  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(!isOn()));
    show();
  });
  map.leaflet.on("moveend", () => isOn() && show());
}
