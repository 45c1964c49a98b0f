/** The panel: the open view, what is looked for, and the places that look like it. */

import { make, the } from "./dom.js";
import { around, embedded, pictureOf, placeSaid, post, tileAt } from "./service.js";
import { settings } from "./settings.js";
import { addressOf, boxOf, middleOf, snapshotOf, Unsearchable, viewOf } from "./worldview.js";

const LIMIT = 24;
const MOST_EXAMPLES = 64;

/**
 * @typedef {import("./worldview.js").View} View
 * @typedef {{ id: string, geometry: any, properties: Record<string, any> }} Feature
 * @typedef {{ asked: object, id: string | null, name: string, picture: string }} Example  `asked`: as the service takes it
 */

const given = new URLSearchParams(location.search).get("tab");
/** @type {{ view: View | null, positives: Example[], negatives: Example[], features: Feature[] }} */
const state = { view: null, positives: [], negatives: [], features: [] };

the("options").addEventListener("click", () => chrome.runtime.openOptionsPage());
the("search-view").addEventListener("click", () => work(async () => search([await fromTile(await tileAt(inView()))], [])));
the("add-view").addEventListener("click", () => work(async () => move(await fromTile(await tileAt(inView())), "positives")));
the("search-picture").addEventListener("click", () => work(async () => search([await fromPicture(inView())], [])));
the("again").addEventListener("click", () => work(() => search(state.positives, state.negatives)));
the("clear").addEventListener("click", () => work(async () => show({ positives: [], negatives: [], features: [] }, "")));
chrome.tabs.onActivated.addListener(look);
chrome.tabs.onUpdated.addListener((_, { url }) => url && look());
chrome.tabs.onRemoved.addListener(look);
chrome.storage.onChanged.addListener(look);
look();

/** Read what is open; Worldview writes each movement of its map into its address. */
async function look() {
  const { worldview, snapshot } = await settings();
  const [tab] = given ? [await chrome.tabs.get(Number(given)).catch(() => undefined)] : await chrome.tabs.query({ active: true, currentWindow: true });
  the("search-picture").hidden = !snapshot;
  try {
    state.view = viewOf(tab?.url ?? "", worldview); // of a tab that is closed, or without leave to read it, there is no address
    const { lon, lat } = middleOf(state.view);
    the("view").textContent = [placeSaid(lon, lat), state.view.day, ...state.view.layers].filter(Boolean).join(" · ");
  } catch (fault) {
    if (!(fault instanceof Unsearchable)) throw fault;
    state.view = null;
    the("view").textContent = fault.message;
  }
  for (const id of ["search-view", "search-picture", "add-view"]) the(id).disabled = !state.view;
}

/** @returns {View} */
function inView() {
  if (!state.view) throw new Unsearchable(the("view").textContent);
  return state.view;
}

/**
 * Do something that takes a while, and say what went wrong.
 * @param {() => Promise<void>} task
 */
async function work(task) {
  if (the("results").ariaBusy === "true") return;
  the("results").ariaBusy = "true";
  the("fault").hidden = true;
  the("said").textContent = "Searching …";
  try {
    await task();
  } catch (fault) {
    the("said").textContent = "";
    the("fault").hidden = false;
    the("fault").replaceChildren(make("p", {}, fault.message), ...mends(fault));
  }
  the("results").ariaBusy = "false";
}

/**
 * What can be done about a fault.
 * @param {{ options?: boolean, near?: Feature | null }} fault
 */
function mends({ options, near }) {
  const openOptions = () => chrome.runtime.openOptionsPage();
  return [
    ...(options ? [make("button", { type: "button", class: "plain", onclick: openOptions }, "Open the options")] : []),
    ...(near && state.view ? [make("a", { href: addressOf(state.view, near), target: "_blank", rel: "noreferrer" }, "Open that one in Worldview")] : []),
  ];
}

/**
 * Look for these examples; they are shown with their hits, and not before.
 * @param {Example[]} positives
 * @param {Example[]} negatives
 */
async function search(positives, negatives) {
  const asked = (/** @type {Example[]} */ examples) => examples.map((example) => example.asked);
  const dates = datesOf(state.view, the("when").value);
  const answer = await post("/v1/search", {
    positives: asked(positives), ...(negatives.length ? { negatives: asked(negatives) } : {}), limit: LIMIT, ...(dates ? { datetime: dates } : {}),
  }).catch((fault) => {
    forget([...positives, ...negatives]);
    throw fault;
  });
  const count = answer.features.length;
  const said = count ? `${count} of ${answer.candidates.toLocaleString("en")} tiles${answer.exact ? "" : ", approximately"}` : "No tile of these dates.";
  show({ positives, negatives, features: answer.features }, said);
}

/**
 * An interval around the open day; null for any.
 * @param {View | null} view
 * @param {string} days  on both sides
 */
function datesOf(view, days) {
  return days === "" || !view?.day ? null : around(view.day, Number(days));
}

/** @param {Feature} tile */
async function fromTile(tile) {
  return { asked: { tile_id: tile.id }, id: tile.id, name: nameOf(tile), picture: await pictureOf(tile.id) };
}

/** @param {View} view */
async function fromPicture(view) {
  const { snapshot } = await settings();
  const { embedding, encoder_fingerprint: encoder, picture } = await embedded(snapshotOf(snapshot, view));
  return { asked: { embedding, encoder_fingerprint: encoder }, id: null, name: "picture of the view", picture };
}

/** @param {Feature} tile */
const nameOf = ({ geometry, properties }) => [properties.label, placeOf(geometry), properties.datetime?.slice(0, 10)].filter(Boolean).join(", ") || "tile";

/** @param {any} geometry */
function placeOf(geometry) {
  if (!geometry) return "";
  const { lon, lat } = middleOf({ bbox: boxOf(geometry) });
  return placeSaid(lon, lat);
}

/**
 * Put an example among those that hits should look like, or should not; it leaves the hits.
 * @param {Example} example
 * @param {"positives" | "negatives"} list
 */
function move(example, list) {
  const known = [...state.positives, ...state.negatives].some(({ id }) => id !== null && id === example.id);
  if (known || state[list].length >= MOST_EXAMPLES) {
    forget([example]);
    return say(known ? "That place is among the examples already." : `A search takes ${MOST_EXAMPLES} examples at most.`);
  }
  show({ [list]: [...state[list], example], features: state.features.filter(({ id }) => id !== example.id) }, "Search again to learn from it.");
  the("again").hidden = !state.positives.length;
}

/** @param {string} text */
const say = (text) => void (the("said").textContent = text);

/**
 * @param {Partial<typeof state>} changes
 * @param {string} said
 */
function show(changes, said) {
  Object.assign(state, changes);
  say(said);
  the("again").hidden = true;
  the("query").hidden = !state.positives.length && !state.negatives.length;
  forget([...document.querySelectorAll("#examples img, #hits img")].map(({ src }) => ({ picture: src })));
  the("examples").replaceChildren(...state.positives.map((one) => entry(one, "positives")), ...state.negatives.map((one) => entry(one, "negatives")));
  the("hits").replaceChildren(...state.features.map(card));
}

/**
 * Pictures lie in memory until they are let go of; those of the examples are shown again.
 * @param {{ picture: string }[]} shown
 */
function forget(shown) {
  const kept = new Set([...state.positives, ...state.negatives].map(({ picture }) => picture));
  for (const { picture } of shown) if (!kept.has(picture)) URL.revokeObjectURL(picture);
}

/**
 * @param {Example} example
 * @param {"positives" | "negatives"} list
 */
function entry(example, list) {
  const said = `${list === "positives" ? "like" : "unlike"} ${example.name}`;
  const remove = async () => {
    show({ [list]: state[list].filter((other) => other !== example) }, "");
    the("again").hidden = !state.positives.length;
  };
  return make(
    "li",
    { class: list, title: said },
    make("img", { src: example.picture, alt: said, width: 64, height: 64 }),
    make("button", { type: "button", "aria-label": `Remove: ${said}`, onclick: () => work(remove) }, "×"),
  );
}

/**
 * @param {Feature} feature
 * @param {number} index
 */
function card(feature, index) {
  const picture = /** @type {HTMLImageElement} */ (make("img", { alt: "", width: 96, height: 96 }));
  const put = (/** @type {string} */ address) => (picture.isConnected ? (picture.src = address) : URL.revokeObjectURL(address));
  pictureOf(feature.id).then(put, () => picture.classList.add("missing"));
  const name = nameOf(feature);
  const take = (/** @type {"positives" | "negatives"} */ list) => () => work(async () => move(await fromTile(feature), list));
  const link = state.view && feature.geometry ? addressOf(state.view, feature) : null;
  return make(
    "li",
    { "data-id": feature.id },
    picture,
    make(
      "div",
      {},
      make("b", {}, feature.properties.score.toFixed(3)),
      make("p", { class: "soft" }, name),
      link && make("a", { href: link, target: "_blank", rel: "noreferrer" }, "Open in Worldview", make("span", { class: "away" }, `: hit ${index + 1}`)),
      make(
        "div",
        { class: "row" },
        make("button", { type: "button", class: "plain right", "aria-label": `Hit ${index + 1} is right`, onclick: take("positives") }, "+ like this"),
        make("button", { type: "button", class: "plain wrong", "aria-label": `Hit ${index + 1} is wrong`, onclick: take("negatives") }, "− unlike"),
      ),
    ),
  );
}
