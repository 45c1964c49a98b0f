/** Many look-alikes at once: all are chosen, those that are wrong are taken out, and the others get one class. */

import { make, the } from "./dom.js";
import { directions } from "./choices.js";
import { thumbnail } from "./pictures.js";

/**
 * @param {import("./store.js").Store} store
 * @param {import("./session.js").Session} session
 */
export function grid(store, session) {
  const list = the("grid-items");
  const chosen = () => [...list.querySelectorAll("[aria-pressed=true]")].map((one) => one.dataset.id);

  const tell = () => {
    const count = chosen().length;
    const label = the("grid-class").value;
    the("grid-accept").textContent = count ? `Accept ${count} as ${label}` : "Choose some";
    the("grid-accept").disabled = !count;
  };

  store.watch(["phase", "alike"], (work) => {
    the("grid").hidden = work.phase !== "grid";
    if (work.phase !== "grid") return list.replaceChildren();
    const guess = directions(work).right?.label ?? work.taxonomy.classes[0].name;
    the("grid-class").replaceChildren(...work.taxonomy.classes.map(({ name }) => make("option", { value: name, selected: name === guess }, name)));
    list.replaceChildren(...work.alike.map((item, index) => face(item, index, tell)));
    tell();
    the("grid-accept").focus();
  });
  the("grid-class").addEventListener("change", tell);
  the("grid-accept").addEventListener("click", () => session.accept(chosen(), the("grid-class").value));
  the("grid-none").addEventListener("click", () => {
    const on = !chosen().length;
    for (const one of list.querySelectorAll("button")) one.setAttribute("aria-pressed", String(on));
    tell();
  });
  the("grid-back").addEventListener("click", () => session.closeGrid());
  addEventListener("keydown", (event) => event.key === "Escape" && store.state.phase === "grid" && session.closeGrid());
}

/**
 * @param {import("./session.js").Item} item
 * @param {number} index
 * @param {() => void} tell
 */
function face(item, index, tell) {
  const turn = () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    tell();
  };
  const name = index ? `Look-alike ${index}` : "The picture itself";
  const button = make("button", { type: "button", "data-id": item.tile_id, "aria-pressed": "true", "aria-label": name, onclick: turn }, thumbnail(item.tile_id));
  return make("li", {}, button);
}
