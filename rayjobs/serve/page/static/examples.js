/** What is searched for: the examples as small pictures, each with a way to take it out. */

import { make, the } from "./dom.js";
import { thumbnail } from "./pictures.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").Example} Example */

/** @param {Store} store */
export function examples(store) {
  store.watch(["positives", "negatives"], ({ positives, negatives }) => {
    const shown = [...positives.map((example) => entry(store, example, "positives")), ...negatives.map((example) => entry(store, example, "negatives"))];
    the("examples").replaceChildren(...shown);
    the("examples").hidden = !shown.length;
  });
}

/**
 * @param {Store} store
 * @param {Example} example
 * @param {"positives" | "negatives"} list
 */
function entry(store, example, list) {
  const name = example.kind === "tile" ? "place" : example.name;
  const said = list === "positives" ? `like this ${name}` : `unlike this ${name}`;
  const remove = () => {
    store.update({ [list]: store.state[list].filter((other) => other !== example) });
    the("examples").querySelector("button")?.focus();
  };
  return make(
    "li",
    { class: `example ${list}`, title: said },
    example.kind === "tile" ? thumbnail(example.id, said) : pictureOf(example),
    make("span", { class: "sign", "aria-hidden": "true" }, list === "positives" ? "+" : "−"),
    make("button", { type: "button", class: "remove", "aria-label": `Remove example: ${said}`, onclick: remove }, "×"),
  );
}

/** @param {import("./store.js").ImageExample} example */
function pictureOf(example) {
  if (!example.picture) return make("span", { class: "no-picture", role: "img", "aria-label": example.name }, "image");
  return make("img", { src: example.picture, alt: example.name, width: 96, height: 96 });
}
