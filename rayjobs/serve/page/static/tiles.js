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
      const { features, candidates } = await get(`v1/tiles?bbox=${map.view.join(",")}&limit=${MOST}`, signal);
      map.showTiles(candidates > MOST ? [] : features);
      if (candidates > MOST) notice(`There are ${candidates.toLocaleString("en")} tiles in view, too many to outline; zoom in.`);
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
