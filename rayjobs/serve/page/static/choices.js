/** What can be said of a picture: by buttons, by keys, and by the four directions of arrows and swipes. */

import { make, the } from "./dom.js";

/** @typedef {import("./session.js").Taxonomy} Taxonomy */
/** @typedef {import("./session.js").Work} Work */
/** @typedef {"right" | "left" | "down" | "up"} Direction */
/** @typedef {{ kind: "label" | "unsure" | "later", label?: string, said: string }} Choice */

const ARROWS = { right: "→", left: "←", down: "↓", up: "↑" };

/**
 * What the directions mean. Of two classes right is the first, or the positive one, and left the other; of more, right is the one that a
 * model suggests, or that was given last.
 * @param {Work} work
 * @returns {Partial<Record<Direction, Choice>>}
 */
export function directions({ taxonomy, item, last }) {
  const names = taxonomy?.classes.map(({ name }) => name) ?? [];
  const sides = { down: { kind: "unsure", said: "unsure" }, up: { kind: "later", said: "later" } };
  if (names.length === 2) {
    const [first, second] = names[1] === "positive" ? [names[1], names[0]] : names;
    return { right: labelled(first), left: labelled(second), ...sides };
  }
  const guess = item?.suggestion?.label ?? last;
  return { ...(names.includes(guess) ? { right: labelled(guess) } : {}), ...sides };
}

/** @param {string} label @returns {Choice} */
const labelled = (label) => ({ kind: "label", label, said: label });

/**
 * @param {import("./session.js").Session} session
 * @param {Choice | undefined} choice
 */
export function choose(session, choice) {
  if (choice?.kind === "later") session.later();
  else if (choice) session.say(choice.kind, choice.label);
}

/**
 * Show the buttons.
 * @param {import("./store.js").Store} store
 * @param {import("./session.js").Session} session
 */
export function choices(store, session) {
  store.watch(["taxonomy", "item", "last"], (work) => {
    const meant = directions(work);
    const arrow = (/** @type {(choice: Choice) => boolean} */ fits) => {
      const found = Object.entries(meant).find(([, choice]) => fits(choice));
      return found ? ARROWS[found[0]] : "";
    };
    const guess = work.item?.suggestion;
    const classes = work.taxonomy?.classes ?? [];
    const buttons = classes.map((one, index) =>
      button(one, { arrow: arrow((choice) => choice.label === one.name), share: guess?.label === one.name ? guess.probability : null, old: the("classes").children[index], onclick: () => session.say("label", one.name) }),
    );
    the("classes").replaceChildren(...buttons);
    the("classes").classList.toggle("two", classes.length === 2);
  });
  the("unsure").addEventListener("click", () => session.say("unsure"));
  the("later").addEventListener("click", () => session.later());
  the("undo").addEventListener("click", () => session.undo());
  the("open-grid").addEventListener("click", () => session.openGrid());
  store.watch(["phase", "canUndo"], ({ phase, canUndo }) => {
    for (const id of ["unsure", "later", "open-grid"]) the(id).disabled = phase !== "picture";
    the("undo").disabled = !canUndo || phase === "grid";
    the("controls").hidden = ["none", "absent", "grid"].includes(phase);
    for (const one of the("classes").children) one.disabled = phase !== "picture";
  });
}

/**
 * A button of a class; the one that had the focus keeps it.
 * @param {import("./session.js").LabelClass} one
 * @param {{ arrow: string, share: number | null, old: any, onclick: () => void }} how
 */
function button(one, { arrow, share, old, onclick }) {
  const keep = old?.dataset.label === one.name;
  const made = keep ? old : make("button", { type: "button", class: "class", "data-label": one.name, title: one.description || null, onclick });
  made.replaceChildren(
    make("span", { class: "swatch", "aria-hidden": "true" }),
    make("span", { class: "grow" }, one.name),
    ...(share === null ? [] : [make("span", { class: "share" }, `${Math.round(share * 100)} %`)]),
    make("kbd", { "aria-hidden": "true" }, one.key),
    ...(arrow ? [make("kbd", { "aria-hidden": "true" }, arrow)] : []),
  );
  made.style.setProperty("--class", one.colour);
  made.classList.toggle("suggested", share !== null);
  return made;
}

/**
 * The keyboard: keys of classes first, then those of the page.
 * @param {import("./store.js").Store} store
 * @param {import("./session.js").Session} session
 * @param {{ zoom: (times: number) => void }} card
 */
export function choiceKeys(store, session, card) {
  const page = {
    u: () => session.say("unsure"), z: () => session.undo(), Backspace: () => session.undo(), g: () => session.openGrid(), "?": () => the("help").showModal(),
    "+": () => card.zoom(1.5), "-": () => card.zoom(1 / 1.5), Escape: () => card.zoom(0),
    ArrowRight: () => choose(session, directions(store.state).right), ArrowLeft: () => choose(session, directions(store.state).left),
    ArrowDown: () => choose(session, directions(store.state).down), ArrowUp: () => choose(session, directions(store.state).up),
  };
  addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || target.closest("input, select, textarea, dialog")) return;
    if (store.state.phase === "grid" && event.key !== "?") return;
    const found = store.state.taxonomy?.classes.find(({ key }) => key === event.key);
    if (found) session.say("label", found.name);
    else if (event.key in page) page[event.key]();
    else return;
    event.preventDefault();
  });
}
