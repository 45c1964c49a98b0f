/** Places whose looks changed most between two dates. */

import { make, similarity, the } from "./dom.js";
import { thumbnail } from "./pictures.js";
import { post } from "./service.js";

/** @typedef {import("./map.js").GroundMap} GroundMap */

const LIMIT = 24;

/**
 * @param {GroundMap} map
 * @param {{ dates: string[] }} given  days of which there is imagery
 */
export function changes(map, { dates }) {
  if (dates.length < 2) return;
  const days = dates.toSorted();
  the("tabs").hidden = false;
  the("search").setAttribute("role", "tabpanel");
  the("search").setAttribute("aria-labelledby", "tab-search");
  tabs();
  choose(the("changes-before"), days, days[0]);
  choose(the("changes-after"), days, days[days.length - 1]);
  the("changes-find").addEventListener("click", () => find(map));
}

/**
 * @param {HTMLSelectElement} field
 * @param {string[]} days
 * @param {string} day
 */
function choose(field, days, day) {
  field.append(...days.map((value) => new Option(value, value)));
  field.value = day;
}

function tabs() {
  const both = [the("tab-search"), the("tab-changes")];
  const open = (/** @type {HTMLElement} */ tab) => {
    for (const other of both) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      the(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
    tab.focus();
  };
  both.forEach((tab, index) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => /^Arrow(Left|Right)$/.test(event.key) && open(both[1 - index]));
  });
}

/** @param {GroundMap} map */
async function find(map) {
  const said = the("changes-said");
  const list = the("changes-hits");
  list.replaceChildren();
  said.textContent = "Looking for changes …";
  try {
    const body = { from: the("changes-before").value, to: the("changes-after").value, limit: LIMIT };
    const { features, index_version: version } = await (await post("v1/changes", body)).json();
    said.textContent = features.length ? `${features.length} places, most changed first` : "No place was seen on both days.";
    list.replaceChildren(...features.map((/** @type {any} */ feature, /** @type {number} */ index) => pair(map, feature, index + 1, version)));
    const shown = features.map((/** @type {any} */ feature) => ({ feature, look: "hit", label: `change ${similarity(feature.properties.change)}` }));
    map.showOutlines(shown.reverse());
  } catch (fault) {
    said.textContent = fault.message;
  }
}

/**
 * @param {GroundMap} map
 * @param {any} feature
 * @param {number} rank
 * @param {string} version  of the index
 */
function pair(map, feature, rank, version) {
  const { change, from_tile_id: before, to_tile_id: after } = feature.properties;
  const show = () => map.highlight(feature.id, { reveal: true });
  return make(
    "li",
    {},
    make(
      "button",
      { type: "button", class: "pair", "aria-label": `Change ${rank}, ${similarity(change)}: show it on the map`, onclick: show, onfocus: show },
      thumbnail(before, "before", version),
      make("span", { "aria-hidden": "true" }, "→"),
      thumbnail(after, "after", version),
      make("b", {}, similarity(change)),
    ),
  );
}
