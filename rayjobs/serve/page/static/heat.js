/** How alike the ground in view is to what is searched for, as colours over the map. */

import * as L from "./leaflet.js";
import { notice, similarity, the } from "./dom.js";
import { toBounds } from "./map.js";
import { examplesOf } from "./search.js";
import { post } from "./service.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./map.js").GroundMap} GroundMap */
/** @typedef {{ bounds: number[], columns: number, rows: number, cells: (number | null)[], least: number, greatest: number }} Heat */

/** Red, green, blue, opacity, from least to most alike: the unlike is veiled, the alike glows. Lightness grows all the way. */
const RAMP = [[10, 12, 30, 0.66], [66, 24, 98, 0.64], [168, 48, 92, 0.62], [243, 120, 48, 0.64], [255, 226, 120, 0.72]];
const GREATEST = 255;

/**
 * @param {Store} store
 * @param {GroundMap} map
 */
export function heat(store, map) {
  const button = the("heat");
  let under = new AbortController();
  /** @type {any} */
  let layer = null;

  const clear = () => {
    layer?.remove();
    layer = null;
    the("legend").hidden = true;
  };

  async function show() {
    under.abort();
    under = new AbortController();
    const { signal } = under;
    const { heat: wanted, positives, from, to } = store.state;
    if (!wanted || !positives.length) return clear();
    const datetime = from || to ? { datetime: `${from || ".."}/${to || ".."}` } : {};
    try {
      const answer = await post("page/heat", { ...examplesOf(store.state), ...datetime, bbox: map.view }, { signal });
      const found = /** @type {Heat} */ (await answer.json());
      clear();
      if (!found.cells.length) return;
      layer = L.imageOverlay(picture(found), toBounds(found.bounds), { pane: "heat", className: "heat" }).addTo(map.leaflet);
      legend(found);
    } catch (fault) {
      if (!signal.aborted) notice(`No similarity over the map: ${fault.message}`);
    }
  }

  button.addEventListener("click", () => store.update({ heat: !store.state.heat }));
  map.leaflet.on("moveend", () => store.state.heat && show());
  store.watch(["heat", "positives", "negatives", "from", "to"], (state) => {
    button.disabled = !state.positives.length;
    button.setAttribute("aria-pressed", String(state.heat && !button.disabled));
    show();
  });
}

/**
 * @param {Heat} found
 * @returns {string} address of a picture, one pixel for each cell
 */
function picture({ columns, rows, cells }) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(columns, rows);
  cells.forEach((cell, index) => cell !== null && image.data.set(colour(cell / GREATEST), 4 * index));
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

/**
 * @param {number} share  0 least, 1 most alike
 * @returns {number[]} red, green, blue, alpha to 255
 */
function colour(share) {
  const position = share * (RAMP.length - 1);
  const low = Math.min(Math.floor(position), RAMP.length - 2);
  const mixed = RAMP[low].map((value, channel) => value + (position - low) * (RAMP[low + 1][channel] - value));
  return [...mixed.slice(0, 3), 255 * mixed[3]];
}

/** @param {Heat} found */
function legend({ least, greatest }) {
  const canvas = the("legend-ramp");
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    const [red, green, blue] = colour(x / (canvas.width - 1));
    context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
  the("legend-least").textContent = similarity(least);
  the("legend-greatest").textContent = similarity(greatest);
  the("legend").hidden = false;
}
