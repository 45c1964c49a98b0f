/** The keyboard: over the hits with arrows, marks with plus and minus, search with Enter. */

import { the } from "./dom.js";
import { mark, searchAgain, searchFor } from "./search.js";

/** @typedef {import("./store.js").Store} Store */

/** @param {Store} store */
export function keys(store) {
  the("help-open").addEventListener("click", () => the("help").showModal());
  the("hits").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => onHit(store, event));
  addEventListener("keydown", (event) => anywhere(store, event));
}

/**
 * @param {Store} store
 * @param {KeyboardEvent} event
 */
function onHit(store, event) {
  const id = /** @type {HTMLElement} */ (event.target).closest("li")?.dataset.id;
  if (!id || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -Infinity, End: Infinity };
  const onFace = /** @type {HTMLElement} */ (event.target).classList.contains("face");
  if (event.key in steps) move(id, steps[event.key]);
  else if (event.key === "+" || event.key === "=") mark(store, id, 1);
  else if (event.key === "-" || event.key === "_") mark(store, id, -1);
  else if (event.key === "Enter" && onFace) store.state.marks.size ? searchAgain(store) : searchFor(store, { kind: "tile", id });
  else return;
  event.preventDefault();
  event.stopPropagation();
}

/** How many hits stand side by side. */
const columns = () => getComputedStyle(the("hits")).gridTemplateColumns.split(" ").length;

/**
 * @param {string} id
 * @param {number} step
 */
function move(id, step) {
  const items = [...the("hits").querySelectorAll("li[data-id]")];
  const from = items.findIndex((item) => item.dataset.id === id);
  const to = Math.max(0, Math.min(items.length - 1, from + step));
  items[to].querySelector(".face").focus();
}

/**
 * @param {Store} store
 * @param {KeyboardEvent} event
 */
function anywhere(store, event) {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, dialog")) return;
  if (event.key === "?") the("help").showModal();
  else if (event.key === "/") the("hits").querySelector(".current .face")?.focus();
  else if (event.key === "m") the("map").focus();
  else if (event.key === "h") the("heat").click();
  else if (event.key === "Enter" && target === document.body && store.state.marks.size) searchAgain(store);
  else return;
  event.preventDefault();
}
