/** A dialog that asks for one line of text. */

import { make } from "./dom.js";

/**
 * Make the dialog, and leave it closed.
 * @param {string} id
 * @param {{ title: string, said: string, label: string, button: string, input: Record<string, unknown> }} words  `input`: attributes
 */
export function question(id, { title, said, label, button, input }) {
  const line = make("p", { class: "soft" }, said);
  const field = /** @type {HTMLInputElement} */ (make("input", { id: `${id}-value`, required: true, ...input }));
  const form = make("form", { method: "dialog" }, line, make("label", { for: field.id }, label), field, make("button", { class: "primary", value: "given" }, button));
  const dialog = /** @type {HTMLDialogElement} */ (make("dialog", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), form));
  document.body.append(dialog);

  /** Show it until it is left. @returns {Promise<boolean>} whether something was given */
  function answered() {
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue !== ""), { once: true }));
  }

  return { field, line, answered };
}
