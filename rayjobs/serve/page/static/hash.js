/** The search as the address's fragment, so that it can be shared and gone back to. */

/** @typedef {import("./store.js").State} State */
/** @typedef {import("./store.js").Example} Example */

const TILE = /^[0-9a-f]{20}$/;
const IMAGE = /^image\.([0-9a-f]{12})\.([\w-]+)$/;
const DAY = /^\d{4}-\d{2}-\d{2}$/;
const STEPS = 32767;

/**
 * @param {State} state
 * @returns {string} without the `#`
 */
export function toHash(state) {
  const words = new URLSearchParams();
  for (const example of state.positives) words.append("like", written(example));
  for (const example of state.negatives) words.append("unlike", written(example));
  if (state.bbox) words.set("bbox", state.bbox.map((degrees) => degrees.toFixed(6)).join(","));
  if (state.from) words.set("from", state.from);
  if (state.to) words.set("to", state.to);
  if (state.spread) words.set("apart", String(state.spread));
  if (state.limit !== 24) words.set("hits", String(state.limit));
  if (state.heat) words.set("heat", "1");
  return words.toString();
}

/**
 * Read a fragment, which may be anything: what is not ours is left out.
 * @param {string} hash
 * @returns {Partial<State>}
 */
export function fromHash(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const day = (/** @type {string} */ name) => (DAY.test(words.get(name) ?? "") ? words.get(name) : "");
  const positive = (/** @type {string} */ name, /** @type {number} */ otherwise) => {
    const value = Number(words.get(name));
    return Number.isFinite(value) && value > 0 ? value : otherwise;
  };
  const bbox = (words.get("bbox") ?? "").split(",").map(Number);
  return {
    positives: words.getAll("like").map(read).filter((example) => example !== null),
    negatives: words.getAll("unlike").map(read).filter((example) => example !== null),
    bbox: bbox.length === 4 && bbox.every(Number.isFinite) ? bbox : null,
    from: day("from"),
    to: day("to"),
    spread: positive("apart", 0),
    limit: Math.round(positive("hits", 24)),
    heat: words.get("heat") === "1",
  };
}

/** @param {Example} example */
function written(example) {
  return example.kind === "tile" ? example.id : `image.${example.encoder}.${packed(example.embedding)}`;
}

/**
 * @param {string} word
 * @returns {Example | null}
 */
function read(word) {
  if (TILE.test(word)) return { kind: "tile", id: word };
  const [, encoder, text] = IMAGE.exec(word) ?? [];
  const embedding = text ? unpacked(text) : null;
  return embedding && { kind: "image", name: "image", embedding, encoder };
}

/**
 * An embedding in 16 bits a number, as base64 for addresses. Its length does not matter to a search, so that the scale is left out.
 * @param {number[]} embedding
 */
export function packed(embedding) {
  const greatest = Math.max(...embedding.map(Math.abs)) || 1;
  const numbers = Int16Array.from(embedding, (value) => Math.round((value / greatest) * STEPS));
  const text = String.fromCharCode(...new Uint8Array(numbers.buffer));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * @param {string} text
 * @returns {number[] | null}
 */
export function unpacked(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
    return bytes.length && bytes.length % 2 === 0 ? Array.from(new Int16Array(bytes.buffer), (value) => value / STEPS) : null;
  } catch {
    return null;
  }
}
