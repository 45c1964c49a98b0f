/** The hits as a file. */

import { make, notice, the } from "./dom.js";
import { requestOf } from "./search.js";
import { post } from "./service.js";

/** @typedef {import("./store.js").Store} Store */

const MEDIA_TYPES = { geojson: "application/geo+json", csv: "text/csv", parquet: "application/vnd.apache.parquet" };

/** @param {Store} store */
export function exports(store) {
  store.watch(["answer"], ({ answer }) => (the("exports").hidden = answer.status !== "done" || !answer.features.length));
  for (const button of the("exports").querySelectorAll("button")) {
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await save(store, button.dataset.format);
      } catch (fault) {
        notice(`The hits could not be saved: ${fault.message}`);
      } finally {
        button.disabled = false;
      }
    });
  }
}

/**
 * @param {Store} store
 * @param {keyof typeof MEDIA_TYPES} format
 */
async function save(store, format) {
  const answer = await post("v1/search", requestOf(store.state), { accept: MEDIA_TYPES[format] });
  const address = URL.createObjectURL(await answer.blob());
  make("a", { href: address, download: `look-alikes.${format}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
