/** The dialog that asks for the service's token. */

import { the } from "./dom.js";

/** @type {Promise<string> | null} */
let asking = null;

/**
 * Ask for the token; whoever asks meanwhile gets the same answer.
 * @param {boolean} wrong  whether the one given before was refused
 * @returns {Promise<string>}
 */
export function askForToken(wrong) {
  asking ??= asked(wrong).finally(() => (asking = null));
  return asking;
}

/** @param {boolean} wrong */
function asked(wrong) {
  const dialog = the("token");
  const value = the("token-value");
  if (wrong) the("token-said").textContent = "The service refused that token. Please try another.";
  value.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    the("token-form").addEventListener("submit", () => resolve(value.value), { once: true });
    dialog.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault()); // nothing works without it
  });
}
