/** The hits: thumbnails with scores, marks on them, and what stands there while there are none. */

import { make, similarity, the } from "./dom.js";
import { thumbnail } from "./pictures.js";
import { mark, searchAgain, searchFor } from "./search.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").State} State */
/** @typedef {import("./store.js").Feature} Feature */

/**
 * @param {Store} store
 * @param {{ onHover: (id: string | null) => void, onHold: (id: string) => void, onRandom: () => void }} given
 */
export function hits(store, given) {
  const list = the("hits");
  store.watch(["answer"], (state) => {
    the("results").setAttribute("aria-busy", String(state.answer.status === "loading"));
    the("results-said").textContent = said(state);
    the("state").replaceChildren(...stateOf(store, state, given.onRandom));
    list.classList.toggle("stale", state.answer.status === "loading");
    if (state.answer.status === "loading" && state.answer.features.length) return; // the old hits stay until the new ones are here
    list.replaceChildren(...cards(store, state, given));
    show(store.state);
  });
  store.watch(["marks", "current"], show);
  the("marks-clear").addEventListener("click", () => store.update({ marks: new Map() }));
  the("marks-search").addEventListener("click", () => searchAgain(store));
}

/** @param {State} state */
function said({ answer }) {
  if (answer.status === "loading") return "Searching …";
  if (answer.status !== "done" || !answer.features.length) return "";
  const count = answer.features.length;
  const among = answer.candidates?.toLocaleString("en") ?? "";
  return `${count} ${count === 1 ? "hit" : "hits"} of ${among} tiles${answer.exact ? "" : ", approximate"}`;
}

/**
 * @param {Store} store
 * @param {State} state
 * @param {() => void} onRandom
 * @returns {HTMLElement[]}
 */
function stateOf(store, { answer }, onRandom) {
  if (answer.status === "idle") {
    return [
      make("p", {}, "Click a place on the map, or give an image: the places that look most like it are shown here."),
      make("button", { type: "button", class: "plain", onclick: onRandom }, "Show me any place"),
    ];
  }
  if (answer.status === "error") {
    const again = () => store.update({ positives: [...store.state.positives] });
    return [
      make("p", { class: "fault", role: "alert" }, answer.problem?.message ?? "The search failed."),
      make("button", { type: "button", class: "plain", onclick: again }, "Try again"),
    ];
  }
  if (answer.status === "done" && !answer.features.length) {
    const clear = () => store.update({ bbox: null, from: "", to: "", spread: 0 });
    return [
      make("p", {}, "No tile passes these filters."),
      make("button", { type: "button", class: "plain", onclick: clear }, "Search everywhere, at any time"),
    ];
  }
  return [];
}

/**
 * @param {Store} store
 * @param {State} state
 * @param {{ onHover: (id: string | null) => void, onHold: (id: string) => void }} given
 */
function cards(store, { answer, limit }, given) {
  if (answer.status === "loading") return Array.from({ length: Math.min(limit, 12) }, () => make("li", { class: "hit skeleton", "aria-hidden": "true" }));
  return answer.features.map((feature, index) => card(store, feature, index + 1, { ...given, version: answer.index_version }));
}

/**
 * @param {Store} store
 * @param {Feature} feature
 * @param {number} rank
 * @param {{ onHover: (id: string | null) => void, onHold: (id: string) => void, version?: string }} given
 */
function card(store, feature, rank, { onHover, onHold, version }) {
  const { score, datetime, label, scene_id: scene } = feature.properties;
  const day = datetime?.slice(0, 10) ?? "";
  const about = [`similarity ${similarity(score)}`, label, day, `scene ${scene}`].filter(Boolean).join(", ");
  const sign = (/** @type {1 | -1} */ value, /** @type {string} */ text, /** @type {string} */ name) =>
    make("button", { type: "button", class: `mark ${name}`, "data-sign": value, "aria-pressed": "false", "aria-label": `Hit ${rank} is ${name}`, title: `This hit is ${name}`, onclick: () => mark(store, feature.id, value) }, text);
  return make(
    "li",
    { class: "hit", "data-id": feature.id, onpointerenter: () => onHover(feature.id), onpointerleave: () => onHover(null) },
    make(
      "button",
      { type: "button", class: "face", title: about, "aria-label": `Hit ${rank}: ${about}`, onfocus: () => store.update({ current: feature.id }), onclick: () => onHold(feature.id) },
      thumbnail(feature.id, "", version),
      make("span", { class: "rank", "aria-hidden": "true" }, String(rank)),
    ),
    make("p", { class: "caption" }, make("b", {}, similarity(score)), make("span", {}, label ?? day)),
    make(
      "div",
      { class: "signs" },
      sign(1, "+", "right"),
      sign(-1, "−", "wrong"),
      make("button", { type: "button", class: "mark like", "aria-label": `Search for look-alikes of hit ${rank}`, title: "Search for look-alikes of this", onclick: () => searchFor(store, { kind: "tile", id: feature.id }) }, "≈"),
    ),
  );
}

/**
 * Show marks and the hit in hand; only the latter's buttons are on the way of the tab key.
 * @param {State} state
 */
function show({ marks, current }) {
  for (const item of the("hits").querySelectorAll("li[data-id]")) {
    const held = item.dataset.id === current;
    const given = marks.get(item.dataset.id);
    item.classList.toggle("current", held);
    item.dataset.mark = given === 1 ? "good" : given === -1 ? "bad" : "";
    for (const button of item.querySelectorAll("button")) button.tabIndex = held ? 0 : -1;
    for (const button of item.querySelectorAll("[data-sign]")) button.setAttribute("aria-pressed", String(Number(button.dataset.sign) === given));
  }
  const count = (/** @type {1 | -1} */ sign) => [...marks.values()].filter((given) => given === sign).length;
  the("marks").hidden = !marks.size;
  the("marks-said").textContent = `${count(1)} right, ${count(-1)} wrong`;
}

