/**
 * What people said and the service has not acknowledged yet. It lies in the browser's storage, one entry for each event, so that neither a
 * page that is closed nor a service that is killed loses it, and is sent until the service has it. Events bear ids of their own: one
 * that arrives twice counts once.
 */

import { notice } from "./dom.js";
import { asPerson } from "./person.js";
import { post, Problem } from "./service.js";

/**
 * @typedef {{ event_id: string, tile_id: string, kind: "label" | "unsure" | "undo", label?: string, lease?: string, undoes?: string, origin: string }} LabelEvent
 * @typedef {{ key: string, taxonomy: string, person: string, event: LabelEvent }} Entry
 */

const PREFIX = "rayjobs-event/";
const MOST = 200;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
const NOT_ALLOWED = 403;
const NOT_FOUND = 404;
const LOST = 409;
const REFUSED = new Set([400, LOST, 422]);

export class Outbox {
  /** @type {Promise<void> | null} */
  #sending = null;
  #pause = FIRST_PAUSE_MS;
  #most = MOST;
  #latest = 0;
  #again = 0;

  /**
   * @param {object} given
   * @param {() => string} given.person  who labels now: what others have said waits until they are back
   * @param {(trouble: string) => void} given.onTrouble  what keeps events from being sent; empty when nothing does any more
   * @param {(taxonomy: string, progress: any) => void} given.onTaken
   * @param {(entries: Entry[]) => void} given.onRefused  what the service will never take
   */
  constructor({ person, onTrouble, onTaken, onRefused }) {
    this.person = person;
    this.onTrouble = onTrouble;
    this.onTaken = onTaken;
    this.onRefused = onRefused;
    addEventListener("online", () => this.send());
  }

  /** All that waits, in order. @returns {Entry[]} */
  get waiting() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    return keys.sort().map((key) => ({ key, ...JSON.parse(localStorage.getItem(key) ?? "null") })).filter(({ event }) => event);
  }

  /**
   * Keep events, all or none, and send them.
   * @param {string} taxonomy
   * @param {string} person
   * @param {LabelEvent[]} events
   * @throws {Error} the storage is full
   */
  add(taxonomy, person, events) {
    /** @type {string[]} */
    const kept = [];
    try {
      for (const event of events) {
        this.#latest = Math.max(this.#latest + 1, Date.now() * 1000);
        const key = `${PREFIX}${String(this.#latest).padStart(20, "0")}-${event.event_id}`;
        localStorage.setItem(key, JSON.stringify({ taxonomy, person, event }));
        kept.push(key);
      }
    } catch {
      for (const key of kept) localStorage.removeItem(key);
      throw new Error("The browser's storage is full: nothing was taken down. Wait until the service has what was said before.");
    }
    this.send();
  }

  /** Send what waits of who labels now, as far as the service takes it. @returns {Promise<void>} */
  send() {
    clearTimeout(this.#again);
    this.#sending ??= this.#sendAll().finally(() => (this.#sending = null));
    return this.#sending;
  }

  async #sendAll() {
    /** Taxonomies that the service does not know now: they hold up no other. @type {Set<string>} */
    const unknown = new Set();
    for (;;) {
      const person = this.person();
      const waiting = this.waiting.filter((entry) => entry.person === person && !unknown.has(entry.taxonomy));
      if (!waiting.length) return;
      const [{ taxonomy }] = waiting;
      const batch = waiting.filter((entry) => entry.taxonomy === taxonomy).slice(0, this.#most);
      try {
        const answer = await post(`v1/labels/${encodeURIComponent(taxonomy)}/events`, { events: batch.map(({ event }) => event) }, { headers: asPerson(person) });
        for (const { key } of batch) localStorage.removeItem(key);
        this.#most = MOST;
        this.#pause = FIRST_PAUSE_MS;
        this.onTaken(taxonomy, (await answer.json()).progress);
        if (!unknown.size) this.onTrouble("");
      } catch (fault) {
        const told = fault instanceof Problem ? fault : new Problem(0, String(fault));
        if (isRefusal(told)) this.#refused(told, batch);
        else this.#later(told);
        if (told.status === NOT_FOUND) unknown.add(taxonomy);
        else if (!isRefusal(told)) return;
      }
    }
  }

  /** @param {Problem} told */
  #later(told) {
    this.onTrouble(told.message);
    if (told.status === NOT_ALLOWED) return;
    clearTimeout(this.#again);
    this.#again = setTimeout(() => this.send(), this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE_MS);
  }

  /**
   * @param {Problem} told
   * @param {Entry[]} batch
   */
  #refused(told, batch) {
    const lost = told.status === LOST ? new Set((told.said.lost ?? []).map((/** @type {any} */ one) => one.tile_id)) : new Set();
    if (lost.size) this.#drop(batch.filter(({ event }) => lost.has(event.tile_id)), "somebody else labelled it first");
    else if (batch.length > 1) this.#most = 1; // to find out which of them it is
    else this.#drop(batch, told.message);
  }

  /**
   * @param {Entry[]} entries
   * @param {string} why
   */
  #drop(entries, why) {
    for (const { key } of entries) localStorage.removeItem(key);
    notice(entries.length === 1 ? `One label was not taken: ${why}.` : `${entries.length} labels were not taken: ${why}.`);
    this.onRefused(entries);
  }
}

/**
 * Whether the service itself will never take it. Whatever else comes may pass: a proxy answers 404 while the service starts, and a service
 * in front of another workspace knows no such taxonomy.
 * @param {Problem} told
 */
const isRefusal = ({ status, said }) => REFUSED.has(status) && said.detail !== undefined;

/** A UUID of version 4; browsers have one of their own only where the address is secure. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}
