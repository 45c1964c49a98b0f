/** The map: pictures of the scenes, and over them hits, examples, tiles and the box. Needs nothing from any other server. */

import * as L from "./leaflet.js";
import { pictureAt } from "./pictures.js";

/** @typedef {import("./store.js").Feature} Feature */

/** Casing and line of each kind of outline: a line is seen on any ground if it has a dark edge. */
const LOOKS = {
  hit: { color: "#ffd75e", weight: 2 },
  example: { color: "#ffffff", weight: 3 },
  good: { color: "#5fe0b0", weight: 3 },
  bad: { color: "#ff8a5c", weight: 3, dashArray: "4 4" },
};
const CASING = { color: "#0b1015", opacity: 0.75, fill: false, interactive: false };

export class GroundMap {
  /**
   * @param {HTMLElement} element
   * @param {{ bounds: number[], onPlace: (lon: number, lat: number, add: boolean) => void, onChoose: (id: string) => void }} given
   */
  constructor(element, { bounds, onPlace, onChoose }) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.leaflet = L.map(element, {
      attributionControl: false, zoomSnap: 0.25, maxZoom: 19, zoomAnimation: !calm, fadeAnimation: !calm, boxZoom: false, doubleClickZoom: false,
    });
    L.control.scale({ imperial: false }).addTo(this.leaflet);
    this.leaflet.createPane("scenes").style.zIndex = "200";
    this.leaflet.createPane("heat").style.zIndex = "300"; // outlines lie above, at 400
    this.extent = toBounds(bounds);
    this.leaflet.fitBounds(this.extent, { padding: [12, 12] });
    this.onChoose = onChoose;
    this.outlines = L.layerGroup().addTo(this.leaflet);
    this.tiles = L.layerGroup().addTo(this.leaflet);
    this.pictures = L.layerGroup().addTo(this.leaflet);
    /** @type {Map<string, any>} */
    this.byId = new Map();
    this.#listen(element, onPlace);
  }

  /**
   * @param {HTMLElement} element
   * @param {(lon: number, lat: number, add: boolean) => void} onPlace
   */
  #listen(element, onPlace) {
    const place = (/** @type {any} */ latlng, /** @type {boolean} */ add) => {
      const { lng, lat } = latlng.wrap();
      onPlace(lng, lat, add);
    };
    this.leaflet.on("click", (/** @type {any} */ event) => place(event.latlng, event.originalEvent.shiftKey));
    let pressed = false;
    element.addEventListener("focus", () => element.classList.toggle("by-keyboard", !pressed)); // then its middle is shown
    element.addEventListener("pointerdown", () => (pressed = true), { capture: true });
    addEventListener("keydown", () => (pressed = false), { capture: true });
    element.addEventListener("keydown", (event) => {
      element.classList.add("by-keyboard");
      if (event.key === "Enter" && event.target === element) place(this.leaflet.getCenter(), event.shiftKey);
    });
    new ResizeObserver(() => this.leaflet.invalidateSize({ pan: false })).observe(element);
  }

  /** West, south, east, north of what is in view, degrees. */
  get view() {
    const bounds = this.leaflet.getBounds();
    const clamp = (/** @type {number} */ value, /** @type {number} */ most) => Math.max(-most, Math.min(most, value));
    return [clamp(bounds.getWest(), 180), clamp(bounds.getSouth(), 90), clamp(bounds.getEast(), 180), clamp(bounds.getNorth(), 90)];
  }

  /**
   * Show pictures of scenes, the first at the bottom.
   * @param {{ url: string, bounds: number[] }[]} overviews
   */
  async showPictures(overviews) {
    const addresses = await Promise.all(overviews.map(({ url }) => pictureAt(url)));
    this.pictures.clearLayers();
    overviews.forEach(({ bounds }, index) => {
      L.imageOverlay(addresses[index], toBounds(bounds), { className: "scene", pane: "scenes" }).addTo(this.pictures);
    });
  }

  /**
   * Show outlines in place of those before.
   * @param {{ feature: Feature, look: keyof typeof LOOKS, label: string }[]} shown  the last on top
   */
  showOutlines(shown) {
    this.outlines.clearLayers();
    this.byId.clear();
    for (const { feature, look, label } of shown.filter((entry) => entry.feature.geometry)) {
      const style = LOOKS[look];
      L.geoJSON(feature, { style: { ...CASING, weight: style.weight + 2.5 } }).addTo(this.outlines);
      const layer = L.geoJSON(feature, { style: { ...style, fillColor: style.color, fillOpacity: 0.08 } });
      layer.bindTooltip(label, { direction: "top", sticky: true });
      layer.on("click", (/** @type {any} */ event) => {
        L.DomEvent.stopPropagation(event);
        this.onChoose(feature.id);
      });
      this.byId.set(feature.id, layer.addTo(this.outlines));
    }
  }

  /**
   * Let one outline stand out.
   * @param {string | null} id
   * @param {{ reveal?: boolean }} [how]  `reveal` brings it into view
   */
  highlight(id, { reveal = false } = {}) {
    for (const [other, layer] of this.byId) layer.setStyle({ fillOpacity: other === id ? 0.45 : 0.08 });
    const layer = id === null ? undefined : this.byId.get(id);
    if (!layer) return;
    layer.bringToFront();
    if (reveal && !this.leaflet.getBounds().contains(layer.getBounds())) this.leaflet.panTo(layer.getBounds().getCenter());
  }

  /**
   * Show faint outlines of tiles.
   * @param {Feature[]} features
   */
  showTiles(features) {
    this.tiles.clearLayers();
    const style = { color: "#ffffff", weight: 0.8, opacity: 0.55, fill: false, interactive: false };
    L.geoJSON(features, { style, renderer: L.canvas() }).addTo(this.tiles);
  }
}

/** @param {number[]} box  west, south, east, north; west greater than east crosses the antimeridian */
export function toBounds([west, south, east, north]) {
  return L.latLngBounds([south, west], [north, east < west ? east + 360 : east]);
}
