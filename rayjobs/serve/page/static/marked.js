/** What a search was taught, as labels: its right and wrong examples become events of a taxonomy. */

import { make, notice, the } from "./dom.js";
import { newId, Outbox } from "./outbox.js";
import { whoLabels } from "./person.js";
import { get } from "./service.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").State} State */

/** @param {Store} store */
export function marked(store) {
  /** The last label of each tile in this visit: what is saved again says nothing new. @type {Map<string, string | undefined>} */
  const saved = new Map();
  const outbox = new Outbox({
    person: () => person,
    onTrouble: (trouble) => trouble && notice(`${trouble} The labels are kept here and are sent later.`),
    onTaken: () => {},
    onRefused: (entries) => entries.forEach((entry) => saved.delete(named(entry))),
  });
  /** @type {any[]} */
  let taxonomies = [];
  let person = "";

  store.watch(["positives", "negatives", "marks"], (state) => (the("save-labels").hidden = !tilesOf(state, 1).length && !tilesOf(state, -1).length));
  the("save-labels").addEventListener("click", () => open().catch((fault) => notice(fault.message)));
  the("labels-taxonomy").addEventListener("change", chosen);
  the("labels-leave").addEventListener("click", () => the("labels").close());
  the("labels-form").addEventListener("submit", save);

  async function open() {
    ({ taxonomies } = await get("v1/labels"));
    if (!taxonomies.length) return notice("There is no taxonomy yet. Make one on the labelling page.");
    person = await whoLabels();
    the("labels-taxonomy").replaceChildren(...taxonomies.map(({ name }) => make("option", { value: name }, name)));
    the("labels-right-said").textContent = `${tilesOf(store.state, 1).length} right ones are`;
    the("labels-wrong-said").textContent = `${tilesOf(store.state, -1).length} wrong ones are`;
    chosen();
    the("labels").showModal();
  }

  function chosen() {
    const classes = taxonomies.find(({ name }) => name === the("labels-taxonomy").value).classes.map((/** @type {any} */ one) => one.name);
    const wrong = classes.length === 2 ? classes.find((/** @type {string} */ name) => name === "negative") ?? classes[1] : "";
    const right = classes.find((/** @type {string} */ name) => name !== wrong);
    for (const [id, given] of [["labels-right", right], ["labels-wrong", wrong]]) {
      const options = [make("option", { value: "", selected: !given }, "left out"), ...classes.map((/** @type {string} */ name) => make("option", { value: name, selected: name === given }, name))];
      the(id).replaceChildren(...options);
    }
  }

  function save() {
    const taxonomy = the("labels-taxonomy").value;
    const given = /** @type {[1 | -1, string][]} */ ([[1, the("labels-right").value], [-1, the("labels-wrong").value]]);
    const events = given.flatMap(([sign, label]) =>
      (label ? tilesOf(store.state, sign) : [])
        .filter((tile) => saved.get(named({ person, taxonomy, event: { tile_id: tile } })) !== label)
        .map((tile) => ({ event_id: newId(), tile_id: tile, kind: /** @type {const} */ ("label"), label, origin: "search" })),
    );
    try {
      outbox.add(taxonomy, person, events);
    } catch (fault) {
      return notice(fault.message);
    }
    for (const event of events) saved.set(named({ person, taxonomy, event }), event.label);
    notice(events.length ? `${events.length} labels for ${taxonomy}.` : "These were saved already.");
  }
}

/** @param {{ person: string, taxonomy: string, event: { tile_id: string } }} entry */
const named = ({ person, taxonomy, event }) => `${person}/${taxonomy}/${event.tile_id}`;

/**
 * Tiles that are right (1) or wrong (-1): examples and marks. An image has no tile.
 * @param {State} state
 * @param {1 | -1} sign
 */
function tilesOf({ positives, negatives, marks }, sign) {
  const examples = (sign === 1 ? positives : negatives).flatMap((example) => (example.kind === "tile" ? [example.id] : []));
  const hits = [...marks].filter(([, given]) => given === sign).map(([id]) => id);
  return [...new Set([...examples, ...hits])];
}
