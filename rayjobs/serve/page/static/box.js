/** A box drawn on the map, to search within. */

import * as L from "./leaflet.js";
import { the } from "./dom.js";
import { toBounds } from "./map.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./map.js").GroundMap} GroundMap */

const STYLE = { color: "#ffffff", weight: 2, dashArray: "6 5", fillColor: "#ffffff", fillOpacity: 0.06, interactive: false };
const SMALLEST_PX = 6;

/**
 * @param {Store} store
 * @param {GroundMap} map
 */
export function drawing(store, map) {
  const { leaflet } = map;
  const button = the("draw");
  /** @type {any} */
  let shown = null;
  /** @type {any} */
  let start = null;

  const show = (/** @type {any} */ bounds) => {
    shown?.remove();
    shown = bounds ? L.rectangle(bounds, STYLE).addTo(leaflet) : null;
  };
  const isOn = () => button.getAttribute("aria-pressed") === "true";
  const turn = (/** @type {boolean} */ on) => {
    button.setAttribute("aria-pressed", String(on));
    leaflet.getContainer().classList.toggle("drawing", on);
    leaflet.dragging[on ? "disable" : "enable"]();
    start = null;
  };

  const container = leaflet.getContainer();
  const at = (/** @type {PointerEvent} */ event) => leaflet.mouseEventToLatLng(event);
  container.addEventListener("pointerdown", (event) => {
    if (!isOn() || event.button !== 0) return;
    start = at(event);
    container.setPointerCapture(event.pointerId);
  });
  container.addEventListener("pointermove", (event) => start && show(L.latLngBounds(start, at(event))));
  container.addEventListener("pointerup", (event) => {
    if (!start) return;
    const bounds = L.latLngBounds(start, at(event));
    const drawn = leaflet.latLngToContainerPoint(start).distanceTo(leaflet.latLngToContainerPoint(at(event))) > SMALLEST_PX;
    turn(false);
    if (drawn) store.update({ bbox: [bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()] });
    else show(store.state.bbox && toBounds(store.state.bbox));
  });
  container.addEventListener("click", (event) => isOn() && event.stopPropagation(), { capture: true });
  container.addEventListener("keydown", (event) => event.key === "Escape" && turn(false));

  button.addEventListener("click", () => turn(!isOn()));
  store.watch(["bbox"], ({ bbox }) => show(bbox && toBounds(bbox)));
}
