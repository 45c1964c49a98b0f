/** Pictures of the service as addresses that an `img` can show: where a token is asked for they are fetched with it. */

import { addressOf, ask, bearsToken } from "./service.js";

/** @type {Map<string, Promise<string>>} */
const fetched = new Map();
const MOST = 400;

/**
 * @param {string} path
 * @returns {Promise<string>}
 */
export async function pictureAt(path) {
  if (!bearsToken()) return addressOf(path);
  const known = fetched.get(path) ?? ask(path).then(async (answer) => URL.createObjectURL(await answer.blob()));
  fetched.delete(path);
  fetched.set(path, known); // the latest asked for comes last
  if (fetched.size > MOST) forgetOldest();
  return known;
}

function forgetOldest() {
  const [path, address] = fetched.entries().next().value;
  fetched.delete(path);
  address.then(URL.revokeObjectURL, () => {});
}

/**
 * Make the picture of a tile.
 * @param {string} id
 * @param {string} [alt]
 * @returns {HTMLImageElement}
 */
export function thumbnail(id, alt = "") {
  const image = new Image(96, 96);
  image.alt = alt;
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("error", () => image.classList.add("missing"));
  pictureAt(`v1/tiles/${id}/thumbnail.png`).then(
    (address) => (image.src = address),
    () => image.classList.add("missing"),
  );
  return image;
}
