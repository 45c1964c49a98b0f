/** Where, when, how far apart and how many: the filters beside the map. */

import { the } from "./dom.js";

/** @typedef {import("./store.js").Store} Store */

const METRES = [0, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];

/** @param {number} metres */
const length = (metres) => (metres === 0 ? "any distance" : metres < 1000 ? `${metres} m` : `${metres / 1000} km`);

/**
 * @param {Store} store
 * @param {{ dates: string[] | null, view: (() => number[]) | null }} given  first and last moment of the index; what the map shows
 */
export function filters(store, { dates, view }) {
  if (dates) datesBetween(store, dates.map((moment) => moment.slice(0, 10)));
  if (view) placesWithin(store, view);
  const limit = the("limit");
  limit.addEventListener("change", () => store.update({ limit: Number(limit.value) }));
  store.watch(["limit"], (state) => {
    if (![...limit.options].some((option) => option.value === String(state.limit))) limit.add(new Option(String(state.limit)));
    limit.value = String(state.limit);
  });
  store.watch(["bbox", "from", "to", "spread"], (state) => {
    const said = [
      state.bbox && "within a box",
      (state.from || state.to) && [state.from, state.to].filter(Boolean).join(" to "),
      state.spread && `${length(state.spread)} apart`,
    ];
    the("filters-said").textContent = said.filter(Boolean).join(", ");
  });
}

/**
 * @param {Store} store
 * @param {string[]} ends  first and last day
 */
function datesBetween(store, [first, last]) {
  the("dates").hidden = false;
  for (const name of /** @type {const} */ (["from", "to"])) {
    const field = the(name);
    field.min = first;
    field.max = last;
    field.addEventListener("change", () => store.update({ [name]: field.value }));
    store.watch([name], (state) => (field.value = state[name]));
  }
}

/**
 * @param {Store} store
 * @param {() => number[]} view
 */
function placesWithin(store, view) {
  for (const id of ["area", "spread-field"]) the(id).hidden = false;
  the("area-view").addEventListener("click", () => store.update({ bbox: view() }));
  the("area-clear").addEventListener("click", () => store.update({ bbox: null }));
  store.watch(["bbox"], ({ bbox }) => {
    the("area-said").textContent = bbox ? "inside the box" : "everywhere";
    the("area-said").title = bbox ? bbox.map((degrees) => degrees.toFixed(4)).join(", ") : "";
    the("area-clear").hidden = !bbox;
  });
  const slider = the("spread");
  slider.max = String(METRES.length - 1);
  slider.addEventListener("input", () => store.update({ spread: METRES[Number(slider.value)] }));
  store.watch(["spread"], ({ spread }) => {
    const nearest = METRES.reduce((best, metres, index) => (Math.abs(metres - spread) < Math.abs(METRES[best] - spread) ? index : best), 0);
    slider.value = String(nearest);
    the("spread-said").textContent = length(spread);
    slider.setAttribute("aria-valuetext", length(spread));
  });
}
