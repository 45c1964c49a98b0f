/** An image as an example: chosen from a folder, dropped anywhere, or pasted. */

import { make, notice, the } from "./dom.js";
import { searchFor } from "./search.js";
import { post } from "./service.js";

/** @typedef {import("./store.js").Store} Store */

const SHOWN_BY_BROWSERS = /^image\/(png|jpeg)$/;

/** @param {Store} store */
export function images(store) {
  const chooser = the("image");
  chooser.addEventListener("change", () => {
    if (chooser.files?.[0]) take(store, chooser.files[0]);
    chooser.value = "";
  });
  addEventListener("paste", (event) => event.clipboardData?.files[0] && take(store, event.clipboardData.files[0]));
  dropping(store);
}

/** @param {Store} store */
function dropping(store) {
  const veil = the("dropping");
  const holdsFile = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
  addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && (veil.hidden = true));
  addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    veil.hidden = true;
    const file = event.dataTransfer?.files[0];
    if (file) take(store, file);
  });
}

/**
 * Have the service embed an image, and search for it.
 * @param {Store} store
 * @param {File} file
 */
async function take(store, file) {
  const waiting = make("li", { class: "example waiting", "aria-label": `${file.name} is sent` });
  the("examples").hidden = false;
  the("examples").append(waiting);
  const form = new FormData();
  form.append("image", file);
  try {
    const { embedding, encoder_fingerprint } = await (await post("v1/embed", form)).json();
    const picture = SHOWN_BY_BROWSERS.test(file.type) ? URL.createObjectURL(file) : undefined;
    searchFor(store, { kind: "image", name: file.name, embedding, encoder: encoder_fingerprint.slice(0, 12), picture });
  } catch (fault) {
    notice(`${file.name}: ${fault.message}`);
  } finally {
    waiting.remove();
  }
}
