/** The person's own service: its HTTP interface, and its faults as errors that say what to do. */

import { settings } from "./settings.js";
import { boxOf, middleOf, Unsearchable, wrapped } from "./worldview.js";

const LONGEST_MS = 30_000;
const DAY_MS = 86_400_000;
const MOST_TILES = 100;
const AROUND_DAYS = [0, 3, 30, 365];
const AROUND_DEGREES = [0.02, 0.06, 0.2, 0.6, 2, 6, 20, 60];

/** What went wrong. */
export class Problem extends Error {
  /**
   * @param {string} told
   * @param {{ options?: boolean }} [how]  `options`: it is mended there
   */
  constructor(told, { options = false } = {}) {
    super(told);
    this.options = options;
  }
}

/**
 * @param {string} path  with a leading slash
 * @param {RequestInit} [request]
 * @param {import("./settings.js").Settings} [given]  where they are not those that are kept
 * @returns {Promise<Response>}
 * @throws {Problem}
 */
export async function ask(path, request = {}, given) {
  const { service, token } = given ?? (await settings());
  if (!service) throw new Problem("Which service is to be asked? Give its address in the options.", { options: true });
  await allowed(service);
  const headers = new Headers(request.headers);
  if (token) headers.set("authorization", `Bearer ${token}`);
  const signal = AbortSignal.timeout(LONGEST_MS);
  const answer = await fetch(service + path, { ...request, headers, signal, credentials: "omit" }).catch(() => {
    const late = signal.aborted ? ` within ${LONGEST_MS / 1000} s` : "";
    throw new Problem(`${service} does not answer${late}. Is the service up, and is its address right?`, { options: true });
  });
  if (answer.ok) return answer;
  throw await problemOf(answer);
}

/** @param {string} address */
async function allowed(address) {
  const origin = new URL(address).origin;
  if (await chrome.permissions.contains({ origins: [`${origin}/*`] })) return;
  throw new Problem(`The extension may not ask ${origin} yet. Save the options to allow it.`, { options: true });
}

/** @param {Response} answer */
async function problemOf(answer) {
  const { detail } = await answer.json().catch(() => ({}));
  if (answer.status === 401) return new Problem("The service refused the token. Give another one in the options.", { options: true });
  if (answer.status === 403) return new Problem(`The token may not do this: ${detail ?? "its scope is another"}`, { options: true });
  const words = detail ?? `The service answered ${answer.status} ${answer.statusText}. Is that a rayjobs service?`;
  return new Problem(words, { options: detail === undefined });
}

/**
 * @param {string} path
 * @param {object} body
 */
export async function post(path, body) {
  const answer = await ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return answer.json();
}

/**
 * The tile in the middle of a view, of the view's day, or else of the day next to it.
 * @param {import("./worldview.js").View} view
 * @throws {Problem} the service does not answer
 * @throws {Unsearchable} the index has no tile there; `near` is one that is near
 */
export async function tileAt(view) {
  const { lon, lat } = middleOf(view);
  const there = `/v1/tiles?bbox=${lon},${lat},${lon},${lat}&limit=${MOST_TILES}`;
  const { day } = view;
  const windows = day ? AROUND_DAYS.map((days) => `&datetime=${around(day, days)}`) : [];
  let found = [];
  for (const window of [...windows, ""]) { // a place may have more tiles than one answer holds
    found = (await (await ask(there + window)).json()).features;
    if (found.length) break;
  }
  if (!found.length) throw await nothingAt(lon, lat);
  return found.sort((/** @type {any} */ one, /** @type {any} */ other) => farness(one, view.day) - farness(other, view.day))[0];
}

/**
 * The interval of some days on both sides of a day.
 * @param {string} day
 * @param {number} days
 */
export function around(day, days) {
  const at = (/** @type {number} */ sign) => new Date(Date.parse(day) + sign * days * DAY_MS).toISOString().slice(0, 10);
  return `${at(-1)}/${at(1)}`;
}

/**
 * @param {{ properties: { datetime: string | null } }} tile
 * @param {string | null} day
 */
function farness({ properties: { datetime } }, day) {
  if (!datetime) return Infinity;
  return day ? Math.abs(Date.parse(datetime) - Date.parse(day)) / DAY_MS : -Date.parse(datetime); // the latest where no day is named
}

/**
 * Why there is nothing: the index lies elsewhere, or has a hole there.
 * @param {number} lon
 * @param {number} lat
 */
async function nothingAt(lon, lat) {
  const { name, bounds } = await (await ask("/v1/info")).json();
  const nothing = `The index “${name}” has no tile at ${placeSaid(lon, lat)}`;
  if (!bounds) return new Unsearchable(`${nothing}: its images have no place on the ground.`);
  if (!isWithin(bounds, lon, lat)) return new Unsearchable(`${nothing}: it covers ${boxSaid(bounds)}.`);
  const near = await nearestTo(lon, lat);
  const where = near ? `one near by is at ${placeSaid(...placeOf(near))}` : "move the map a little";
  return Object.assign(new Unsearchable(`${nothing}: it has tiles around it, but none just there; ${where}.`), { near });
}

/**
 * @param {number[]} bounds  west lies beyond east where they cross the antimeridian
 * @param {number} lon
 * @param {number} lat
 */
function isWithin([west, south, east, north], lon, lat) {
  const isAcross = west > east ? lon >= west || lon <= east : lon >= west && lon <= east;
  return isAcross && lat >= south && lat <= north;
}

/**
 * The tile whose middle is nearest, of those in the first of some growing boxes that holds any; null where none does.
 * @param {number} lon
 * @param {number} lat
 */
async function nearestTo(lon, lat) {
  const far = (/** @type {any} */ tile) => {
    const [east, north] = placeOf(tile);
    return Math.hypot(wrapped(east - lon) * Math.cos((lat * Math.PI) / 180), north - lat);
  };
  for (const degrees of AROUND_DEGREES) {
    const box = [wrapped(lon - degrees), Math.max(-90, lat - degrees), wrapped(lon + degrees), Math.min(90, lat + degrees)];
    const { features } = await (await ask(`/v1/tiles?bbox=${box}&limit=${MOST_TILES}`)).json();
    if (features.length) return features.reduce((/** @type {any} */ best, /** @type {any} */ one) => (far(one) < far(best) ? one : best));
  }
  return null;
}

/**
 * @param {any} tile
 * @returns {[number, number]} longitude and latitude of its middle
 */
function placeOf({ geometry }) {
  const { lon, lat } = middleOf({ bbox: boxOf(geometry) });
  return [lon, lat];
}

/**
 * @param {number} lon
 * @param {number} lat
 */
export function placeSaid(lon, lat) {
  return `${Math.abs(lat).toFixed(2)}° ${lat < 0 ? "S" : "N"} ${Math.abs(lon).toFixed(2)}° ${lon < 0 ? "W" : "E"}`;
}

/** @param {number[]} box */
const boxSaid = ([west, south, east, north]) => `${placeSaid(west, south)} to ${placeSaid(east, north)}`;

/**
 * A tile's picture as an address that an `img` can show.
 * @param {string} id
 */
export async function pictureOf(id) {
  return URL.createObjectURL(await (await ask(`/v1/tiles/${id}/thumbnail.png`)).blob());
}

/**
 * The embedding of a picture that another service draws.
 * @param {string} address
 * @returns {Promise<{ embedding: number[], encoder_fingerprint: string, picture: string }>}
 */
export async function embedded(address) {
  await allowed(address);
  const { host } = new URL(address);
  const answer = await fetch(address, { signal: AbortSignal.timeout(LONGEST_MS), credentials: "omit" }).catch(() => {
    throw new Problem(`${host}, which draws pictures of views, does not answer.`);
  });
  const isPicture = answer.ok && (answer.headers.get("content-type") ?? "").startsWith("image/");
  if (!isPicture) throw new Problem(`${host} drew no picture of this view (${answer.status}).`);
  const picture = await answer.blob();
  const form = new FormData();
  form.append("image", picture, "view");
  return { ...(await (await ask("/v1/embed", { method: "POST", body: form })).json()), picture: URL.createObjectURL(picture) };
}
