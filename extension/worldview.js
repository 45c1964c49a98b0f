/**
 * Addresses of NASA Worldview: what the open page shows, read from its address alone, and addresses that show another place.
 *
 * The parameters are those that Worldview documents (nasa-gibs/worldview, doc/url_parameters.md): `p` projection, `v` the view's box,
 * `t` date, `l` layers with what is said of each in brackets; while two states are compared (`ca=false`) `t1` and `l1` are those in view.
 */

export const WORLDVIEW = "https://worldview.earthdata.nasa.gov";

/** NASA's own service for pictures of a view. */
export const SNAPSHOTS =
  "https://wvs.earthdata.nasa.gov/api/v1/snapshot?REQUEST=GetSnapshot&TIME={day}&BBOX={south},{west},{north},{east}" +
  "&CRS=EPSG:4326&LAYERS={layers}&WRAP=day&FORMAT=image/jpeg&WIDTH={width}&HEIGHT={height}";

const DAY = /^[12]\d{3}-\d{2}-\d{2}/;
const NO_IMAGERY = /^(Coastlines|Reference_|Graticule|Land_Water_Map)/;
const LONGER_SIDE_PX = 512;
const TURN = 360;

/** What cannot be searched for, and why. */
export class Unsearchable extends Error {}

/**
 * @typedef {object} View
 * @property {string} page  address of Worldview itself
 * @property {number[]} bbox  west, south, east, north in degrees, as Worldview has it: longitudes may lie past 180
 * @property {string | null} day  YYYY-MM-DD; null where the address names none
 * @property {string} asked  the layers as the address has them
 * @property {string[]} layers  names of the layers that are shown, without outlines and names of places
 */

/**
 * Read an address.
 * @param {string} address
 * @param {string} worldview  address of Worldview
 * @returns {View}
 * @throws {Unsearchable}
 */
export function viewOf(address, worldview) {
  const page = URL.canParse(address) ? new URL(address) : null;
  if (page?.origin !== new URL(worldview).origin) throw new Unsearchable(`The open page is not Worldview (${worldview}).`);
  const words = page.searchParams;
  const projection = words.get("p") ?? "geographic";
  if (projection !== "geographic") throw new Unsearchable(`The view is in the ${projection} projection. Choose the geographic one.`);
  const second = words.get("ca") === "false";
  const asked = words.get(second ? "l1" : "l") ?? "";
  return { page: page.origin + page.pathname, bbox: viewed(words.get("v")), day: dayOf(words.get(second ? "t1" : "t")), asked, layers: shown(asked) };
}

/**
 * The view's box. One across the antimeridian may be written as 170 to -170 as well as 170 to 190.
 * @param {string | null} given
 * @throws {Unsearchable}
 */
function viewed(given) {
  if (!given) throw new Unsearchable("The address of the open page says no place yet. Move the map a little.");
  const [west, south, east, north, ...more] = given.split(",").map(Number);
  const bbox = [west, south, west > east ? east + TURN : east, north];
  if (more.length || !bbox.every(Number.isFinite) || west === east || bbox[2] < west || south >= north) {
    throw new Unsearchable(`The address of the open page says no place that can be read (v=${given}). Move the map a little.`);
  }
  return bbox;
}

/**
 * @param {string | null} given
 * @returns {string | null} null where none is named
 * @throws {Unsearchable}
 */
function dayOf(given) {
  if (!given) return null;
  const day = DAY.exec(given)?.[0] ?? "";
  const moment = new Date(day);
  if (Number.isNaN(moment.valueOf()) || moment.toISOString().slice(0, 10) !== day) { // 30 February would be read as 2 March
    throw new Unsearchable(`The address of the open page names no real date (t=${given}). Choose a date in Worldview.`);
  }
  return day;
}

/** @param {string} asked */
function shown(asked) {
  const layers = asked.match(/[^,(]+(\([^)]*\))?/g) ?? [];
  const visible = layers.filter((layer) => !/[(,]hidden[,)]/.test(layer));
  return visible.map((layer) => layer.split("(")[0]).filter((name) => !NO_IMAGERY.test(name));
}

/**
 * The middle of a box: longitude within half a turn, and latitude on the globe.
 * @param {{ bbox: number[] }} view
 */
export function middleOf({ bbox: [west, south, east, north] }) {
  return { lon: wrapped((west + east) / 2), lat: Math.max(-90, Math.min(90, (south + north) / 2)) };
}

/** A longitude within half a turn. @param {number} lon */
export const wrapped = (lon) => ((((lon + 180) % 360) + 360) % 360) - 180;

/**
 * The address of a picture of a view.
 * @param {string} template  with {day}, {layers}, {west}, {south}, {east}, {north}, {width} and {height}
 * @param {View} view
 * @throws {Unsearchable}
 */
export function snapshotOf(template, { bbox: [west, south, east, north], day, layers }) {
  if (!layers.length) throw new Unsearchable("No layer of imagery is shown in Worldview.");
  const scale = LONGER_SIDE_PX / Math.max(east - west, north - south);
  const size = (/** @type {number} */ degrees) => Math.max(1, Math.round(degrees * scale));
  const values = {
    day: day ?? new Date().toISOString().slice(0, 10), // what Worldview shows where its address names no date
    layers: layers.join(","), west, south, east, north, width: size(east - west), height: size(north - south),
  };
  return template.replaceAll(/\{(\w+)\}/g, (whole, name) => (name in values ? encodeURIComponent(values[name]) : whole));
}

/**
 * The box of a tile. One that crosses the antimeridian, which GeoJSON cuts in two, goes past 180.
 * @param {{ type: string, coordinates: any }} geometry
 * @returns {number[]} west, south, east, north
 */
export function boxOf(geometry) {
  const points = geometry.coordinates.flat(geometry.type === "MultiPolygon" ? 2 : 1);
  const lats = points.map(([, lat]) => lat);
  const lons = points.map(([lon]) => lon);
  const isCut = geometry.type === "MultiPolygon" && Math.max(...lons) === 180 && Math.min(...lons) === -180;
  const turned = isCut ? lons.map((lon) => (lon < 0 ? lon + 360 : lon)) : lons;
  return [Math.min(...turned), Math.min(...lats), Math.max(...turned), Math.max(...lats)];
}

/**
 * The address at which Worldview shows a tile, with the layers of a view.
 * @param {View} view
 * @param {{ geometry: any, properties: { datetime: string | null } }} tile
 */
export function addressOf(view, { geometry, properties }) {
  const address = new URL(view.page);
  address.searchParams.set("v", boxOf(geometry).map((degrees) => Number(degrees.toFixed(6))).join(","));
  if (view.asked) address.searchParams.set("l", view.asked);
  const moment = properties.datetime ? new Date(properties.datetime).toISOString() : null;
  if (moment) address.searchParams.set("t", `${moment.slice(0, 10)}-T${moment.slice(11, 19)}Z`);
  else if (view.day) address.searchParams.set("t", view.day);
  return address.href;
}
