/** One person's work on one taxonomy: the pictures in hand, what was said of them, and the way back. */

import { notice } from "./dom.js";
import { newId } from "./outbox.js";
import { asPerson } from "./person.js";
import { post } from "./service.js";

/**
 * @typedef {{ name: string, key: string, colour: string, description: string, formerly: string[] }} LabelClass
 * @typedef {{ name: string, version: number, classes: LabelClass[] }} Taxonomy
 * @typedef {{ tile_id: string, lease: string, expires: string, datetime: string | null, scene_id: string, suggestion: { label: string, probability: number } | null }} Item
 * @typedef {import("./outbox.js").LabelEvent} LabelEvent
 * @typedef {{ item: Item, event: LabelEvent }} Said
 *
 * What the page knows:
 * @typedef {object} Work
 * @property {"starting" | "picture" | "grid" | "pause" | "end" | "waiting" | "none" | "absent"} phase  what is shown; `none`: there is no taxonomy, `absent`: not the one that was asked for
 * @property {Taxonomy[]} taxonomies
 * @property {Taxonomy | null} taxonomy
 * @property {string} person
 * @property {Item | null} item  the picture in hand
 * @property {Item[]} alike  the pictures of the grid
 * @property {string} last  the class that was given last
 * @property {any} progress  of the taxonomy
 * @property {number[]} moments  when something was said in this session, ms
 * @property {number} batch  pictures of a batch; 0 for no end
 * @property {number} done  pictures of this batch that were labelled
 * @property {boolean} canUndo
 * @property {string} trouble  why the service cannot be asked; empty where it can
 */

const AHEAD = 8;
const LOW = 4;
const GRID = 24;
const PAUSE_MS = 2000;

export class Session {
  /** @type {Item[]} */
  #deck = [];
  /** @type {Said[][]} */
  #history = [];
  /** @type {Promise<void> | null} */
  #filling = null;
  #again = 0;
  #stopped = false;

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./outbox.js").Outbox} outbox
   */
  constructor(store, outbox) {
    this.store = store;
    this.outbox = outbox;
  }

  /** The pictures that come next. */
  get next() {
    return this.#deck.slice(1, 3);
  }

  /**
   * Take up a taxonomy. Pictures that an earlier visit left in this person's hands come first.
   * @param {Taxonomy} taxonomy
   */
  async open(taxonomy) {
    const { taxonomy: before, alike } = this.store.state;
    const left = [...this.#deck, ...alike];
    this.#deck = [];
    this.#history = [];
    this.#stopped = false;
    this.store.update({ taxonomy, item: null, alike: [], done: 0, moments: [], canUndo: false, last: "", phase: "starting", progress: null });
    if (before && before.name !== taxonomy.name) this.#release(before.name, left);
    await this.outbox.send();
    await this.fill();
  }

  /**
   * Say what the picture in hand shows.
   * @param {"label" | "unsure"} kind
   * @param {string} [label]
   */
  say(kind, label) {
    const item = this.#deck[0];
    if (this.store.state.phase !== "picture" || !item || !this.#keep([said(item, kind, "page", label)])) return;
    this.#deck.shift();
    this.#show();
    if (this.#deck.length <= LOW) this.fill();
  }

  /** Put the picture in hand behind the others. */
  later() {
    if (this.store.state.phase !== "picture" || this.#deck.length < 2) return;
    this.#deck.push(...this.#deck.splice(0, 1));
    this.#show();
  }

  /** Take back what was said last; its pictures come to hand again. */
  undo() {
    const last = this.#history.at(-1);
    if (!last || this.store.state.phase === "grid") return;
    const { moments, done } = this.store.state;
    const events = last.map(({ event }) => /** @type {LabelEvent} */ ({ event_id: newId(), tile_id: event.tile_id, kind: "undo", undoes: event.event_id, origin: event.origin }));
    if (!this.#kept(events)) return;
    this.#history.pop();
    this.#stopped = false;
    this.store.update({ moments: moments.slice(0, -last.length), done: Math.max(0, done - last.length), canUndo: this.#history.length > 0 });
    const items = last.map(({ item }) => item);
    if (last[0].event.origin === "grid") return this.store.update({ phase: "grid", alike: items });
    this.#deck.unshift(...items);
    this.#show();
  }

  /** Begin the next batch. */
  goOn() {
    if (!this.store.state.taxonomy) return;
    this.#stopped = false;
    this.store.update({ done: 0, phase: "starting" });
    this.#show();
    this.fill();
  }

  /** Leave off: what is in hand may go to others. */
  async stop() {
    const { taxonomy, alike } = this.store.state;
    if (!taxonomy) return;
    const left = [...this.#deck, ...alike];
    this.#deck = [];
    this.#stopped = true;
    this.store.update({ item: null, alike: [], phase: "pause" });
    await this.#release(taxonomy.name, left);
  }

  /**
   * Somebody else labels: what one person has in hand or has said is not another's.
   * @param {string} person
   */
  async handOver(person) {
    const released = this.stop();
    this.#history = [];
    this.store.update({ person, canUndo: false, moments: [], done: 0 });
    await released;
    this.outbox.send();
    this.goOn();
  }

  /** Show the picture in hand beside those that look like it. */
  async openGrid() {
    const [seed] = this.#deck;
    const { taxonomy, person } = this.store.state;
    if (this.store.state.phase !== "picture" || !seed) return;
    try {
      const { items } = await this.#asked({ count: GRID - 1, like: seed.tile_id });
      if (this.#deck[0] !== seed) return void this.#release(taxonomy.name, items, person);
      this.#deck.shift();
      this.store.update({ phase: "grid", alike: [seed, ...items] });
    } catch (fault) {
      notice(fault.message);
    }
  }

  /**
   * Give pictures of the grid a class, and let go of the others.
   * @param {string[]} tiles  those that are chosen
   * @param {string} label
   */
  accept(tiles, label) {
    const { alike, taxonomy } = this.store.state;
    const chosen = alike.filter((/** @type {Item} */ item) => tiles.includes(item.tile_id));
    if (chosen.length && !this.#keep(chosen.map((/** @type {Item} */ item) => said(item, "label", "grid", label)))) return;
    this.#release(taxonomy.name, alike.filter((/** @type {Item} */ item) => !chosen.includes(item)));
    this.store.update({ alike: [] });
    this.#show();
    if (this.#deck.length <= LOW) this.fill();
  }

  /** Go back from the grid to its first picture. */
  closeGrid() {
    const [seed, ...others] = this.store.state.alike;
    this.#deck.unshift(seed);
    this.#release(this.store.state.taxonomy.name, others);
    this.store.update({ alike: [] });
    this.#show();
  }

  /**
   * Forget what the service has refused: it cannot be undone.
   * @param {LabelEvent[]} events
   */
  forget(events) {
    const ids = new Set(events.map(({ event_id: id }) => id));
    this.#history = this.#history.map((entry) => entry.filter(({ event }) => !ids.has(event.event_id))).filter((entry) => entry.length);
    this.store.update({ canUndo: this.#history.length > 0 });
  }

  /** Have enough pictures in hand. */
  fill() {
    clearTimeout(this.#again);
    this.#filling ??= this.#fill().then((more) => {
      this.#filling = null;
      return more && this.#deck.length <= LOW ? this.fill() : undefined; // they were labelled faster than they came
    });
    return this.#filling;
  }

  /** @returns {Promise<boolean>} whether there were new ones */
  async #fill() {
    const { taxonomy, person, batch, done } = this.store.state;
    const wanted = Math.min(AHEAD, batch ? batch - done : AHEAD) - this.#deck.length;
    if (wanted < 1 || this.#stopped || this.store.state.phase === "pause") return false;
    const inHand = () => {
      const waiting = this.outbox.waiting.filter((entry) => entry.taxonomy === taxonomy.name && entry.person === person);
      return [...this.#deck, ...this.store.state.alike, ...waiting.map(({ event }) => event)];
    };
    try {
      const held = inHand().map(({ lease }) => lease).filter(Boolean);
      const { items, progress } = await this.#asked({ count: wanted, held });
      if (this.#stopped || this.store.state.taxonomy !== taxonomy || this.store.state.person !== person) {
        this.#release(taxonomy.name, items, person); // they came too late
        return !this.#stopped;
      }
      const known = new Set(inHand().map(({ tile_id: id }) => id));
      const fresh = items.filter((/** @type {Item} */ item) => !known.has(item.tile_id));
      this.#deck.push(...fresh);
      this.store.update({ progress, trouble: "" });
      if (this.store.state.phase !== "grid") this.#show({ empty: items.length ? "waiting" : "end" });
      if (items.length && !fresh.length) this.#again = setTimeout(() => this.fill(), PAUSE_MS); // once the service has what was said of them
      return fresh.length > 0;
    } catch (fault) {
      this.store.update({ trouble: fault.message });
      if (!this.#deck.length && this.store.state.phase !== "grid") this.store.update({ phase: "waiting", item: null });
      this.#again = setTimeout(() => this.fill(), PAUSE_MS);
      return false;
    }
  }

  /** @param {object} body */
  async #asked(body) {
    const { taxonomy, person } = this.store.state;
    return (await post(`v1/labels/${encodeURIComponent(taxonomy.name)}/next`, body, { headers: asPerson(person) })).json();
  }

  /**
   * Keep events for sending.
   * @param {LabelEvent[]} events
   * @returns {boolean} whether they could be kept
   */
  #kept(events) {
    const { taxonomy, person } = this.store.state;
    try {
      this.outbox.add(taxonomy.name, person, events);
      return true;
    } catch (fault) {
      notice(fault.message);
      return false;
    }
  }

  /**
   * Keep what was said, for sending and for taking it back.
   * @param {Said[]} entry
   * @returns {boolean} whether it could be kept
   */
  #keep(entry) {
    if (!this.#kept(entry.map(({ event }) => event))) return false;
    const { moments, done } = this.store.state;
    this.#history.push(entry);
    const now = Date.now();
    const last = entry[0].event.label ?? this.store.state.last;
    this.store.update({ moments: [...moments, ...entry.map(() => now)], done: done + entry.length, canUndo: true, last });
    return true;
  }

  /** @param {{ empty?: "waiting" | "end" }} [how]  what it means that nothing is in hand */
  #show({ empty = "waiting" } = {}) {
    const { batch, done } = this.store.state;
    if (batch && done >= batch) return this.store.update({ phase: "pause", item: null });
    const [item = null] = this.#deck;
    this.store.update({ item, phase: item ? "picture" : empty });
  }

  /**
   * @param {string} taxonomy
   * @param {Item[]} items
   * @param {string} [person]
   */
  async #release(taxonomy, items, person = this.store.state.person) {
    if (!items.length) return;
    const leases = items.map(({ lease }) => lease);
    const headers = asPerson(person);
    await post(`v1/labels/${encodeURIComponent(taxonomy)}/release`, { leases }, { headers }).catch(() => {}); // they expire
  }
}

/**
 * @param {Item} item
 * @param {"label" | "unsure"} kind
 * @param {"page" | "grid"} origin
 * @param {string} [label]
 * @returns {Said}
 */
const said = (item, kind, origin, label) => ({
  item,
  event: { event_id: newId(), tile_id: item.tile_id, kind, lease: item.lease, origin, ...(label === undefined ? {} : { label }) },
});
