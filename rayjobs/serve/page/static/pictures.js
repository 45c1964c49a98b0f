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
 * @param {string} [version]  of the index that answered with the tile; where it is not served any more, the one that is will do
 * @returns {HTMLImageElement}
 */
export function thumbnail(id, alt = "", version) {
  const path = `v1/tiles/${id}/thumbnail.png`;
  const paths = version ? [`${path}?index_version=${encodeURIComponent(version)}`, path] : [path];
  const image = new Image(96, 96);
  image.alt = alt;
  image.loading = "lazy";
  image.decoding = "async";
  const next = () => {
    const wanted = paths.shift();
    if (!wanted) return image.classList.add("missing");
    pictureAt(wanted).then((address) => (image.src = address), next);
  };
  image.addEventListener("error", next);
  next();
  return image;
}
