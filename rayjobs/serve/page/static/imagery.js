/** Which imagery lies under the map: that of one day, or of all. */

import { the } from "./dom.js";

/** @typedef {{ url: string, bounds: number[], datetime: string | null }} Picture */

/**
 * Show the pictures, and where there are several days a way to choose one.
 * @param {import("./map.js").GroundMap} map
 * @param {Picture[]} pictures
 * @returns {() => string} the day that is shown; empty for all
 */
export function imagery(map, pictures) {
  const chooser = the("imagery");
  const dayOf = (/** @type {Picture} */ picture) => picture.datetime?.slice(0, 10) ?? "";
  const days = [...new Set(pictures.map(dayOf).filter(Boolean))].sort();
  const show = () => map.showPictures(pictures.filter((picture) => !chooser.value || dayOf(picture) === chooser.value));
  if (days.length > 1) {
    chooser.append(...days.map((day) => new Option(day, day)));
    chooser.value = days.at(-1);
    chooser.addEventListener("change", show);
    the("imagery-field").hidden = false;
  }
  show();
  return () => chooser.value;
}
