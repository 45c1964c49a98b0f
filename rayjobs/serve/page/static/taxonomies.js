/** Which taxonomy is worked on, and the dialog in which one is made or changed. */

import { make, the } from "./dom.js";
import { get, post } from "./service.js";

/** @typedef {import("./session.js").LabelClass} LabelClass */

const KEY = "rayjobs-taxonomy";
const BINARY = [{ name: "positive", key: "p" }, { name: "negative", key: "n" }];

/** The taxonomy that the page's address names; null for none. */
export const named = () => new URLSearchParams(location.search).get("taxonomy") || null;

/**
 * @param {import("./store.js").Store} store
 * @param {import("./session.js").Session} session
 */
export async function taxonomies(store, session) {
  const chooser = the("taxonomy");
  /** @type {LabelClass[] | null} classes that are changed; null where a taxonomy is made */
  let changed = null;

  store.watch(["taxonomies", "taxonomy"], ({ taxonomies: all, taxonomy }) => {
    const none = make("option", { value: "", selected: true, disabled: true }, "choose …");
    chooser.replaceChildren(...(taxonomy ? [] : [none]), ...all.map(({ name }) => make("option", { value: name, selected: name === taxonomy?.name }, name)));
    the("taxonomy-field").hidden = !all.length;
  });
  chooser.addEventListener("change", () => open(chooser.value));
  for (const id of ["make", "make-first"]) the(id).addEventListener("click", () => ask(null));
  the("change").addEventListener("click", () => ask(store.state.taxonomy));
  the("add-class").addEventListener("click", () => the("class-fields").append(fields()));
  the("leave-taxonomy").addEventListener("click", () => the("taxonomy-dialog").close());
  the("taxonomy-form").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      if (changed) await allSent(the("taxonomy-name").value); // while the classes still have the names that were seen
      const made = await (await post("v1/labels", { name: the("taxonomy-name").value, classes: given(changed) })).json();
      await load();
      the("taxonomy-dialog").close();
      open(made.name);
    } catch (fault) {
      the("taxonomy-fault").textContent = fault.message;
    }
  });

  /** @param {string} name */
  async function allSent(name) {
    await session.outbox.send();
    const { person } = store.state;
    const left = session.outbox.waiting.some((entry) => entry.taxonomy === name && entry.person === person);
    if (left) throw new Error("The service has not got all your labels of this taxonomy yet. Save again once it has.");
  }

  /** @param {any} taxonomy */
  function ask(taxonomy) {
    changed = taxonomy?.classes ?? null;
    the("taxonomy-title").textContent = taxonomy ? `Change ${taxonomy.name}` : "New taxonomy";
    the("taxonomy-name").value = taxonomy?.name ?? "";
    the("taxonomy-name").readOnly = Boolean(taxonomy);
    the("taxonomy-fault").textContent = "";
    the("class-fields").replaceChildren(...(changed ?? BINARY).map(fields));
    the("taxonomy-dialog").showModal();
  }

  async function load() {
    store.update({ taxonomies: (await get("v1/labels")).taxonomies });
  }

  /** @param {string} name */
  function open(name) {
    localStorage.setItem(KEY, name);
    session.open(store.state.taxonomies.find((one) => one.name === name));
  }

  await load();
  const { taxonomies: all } = store.state;
  const [first] = all;
  const wanted = named() ?? localStorage.getItem(KEY);
  const found = all.find(({ name }) => name === wanted);
  if (found) open(found.name);
  else if (first && named() !== null) store.update({ phase: "absent" }); // labels that were meant for one taxonomy shall not go to another
  else if (first) open(first.name);
  else store.update({ phase: "none" });
}

/** @param {Partial<LabelClass>} [one] */
function fields({ name = "", key = "", colour = "", description = "" } = {}) {
  const field = (/** @type {string} */ what, /** @type {Record<string, unknown>} */ how) => make("input", { "aria-label": what, "data-field": what.toLowerCase(), ...how });
  const row = make(
    "li",
    { "data-was": name },
    field("Name", { value: name, maxlength: 64, placeholder: "name" }),
    field("Key", { value: key, maxlength: 1, size: 2, placeholder: "key" }),
    field("Colour", { type: "color", value: colour || "#000000", "data-own": colour }),
    field("Description", { value: description, maxlength: 500, placeholder: "what belongs to it" }),
  );
  const colours = row.querySelector("[type=color]");
  colours.addEventListener("input", () => (colours.dataset.own = colours.value));
  return row;
}

/**
 * The classes of the dialog. What is renamed keeps its labels; a row without a name says nothing.
 * @param {LabelClass[] | null} changed
 */
function given(changed) {
  return [...the("class-fields").children].flatMap((row) => {
    const value = (/** @type {string} */ field) => row.querySelector(`[data-field=${field}]`).value.trim();
    const name = value("name");
    if (!name) return [];
    const before = changed?.find((one) => one.name === row.dataset.was);
    const formerly = before ? [...before.formerly, ...(before.name === name ? [] : [before.name])].filter((former) => former !== name) : [];
    return [{ name, key: value("key"), colour: row.querySelector("[type=color]").dataset.own, description: value("description"), formerly }];
  });
}
