/**
 * What the page knows, in one place; whoever shows a part of it watches that part.
 *
 * @typedef {{ kind: "tile", id: string }} TileExample
 * @typedef {{ kind: "image", name: string, embedding: number[], encoder: string, picture?: string }} ImageExample
 * @typedef {TileExample | ImageExample} Example
 * @typedef {{ type: "Feature", id: string, geometry: object | null, properties: Record<string, any> }} Feature
 * @typedef {{ status: "idle" | "loading" | "done" | "error", features: Feature[], index_version?: string, exact?: boolean, candidates?: number, problem?: Error }} Answer
 *
 * @typedef {object} State
 * @property {Example[]} positives  what hits should look like
 * @property {Example[]} negatives  what they should not
 * @property {number[] | null} bbox  west, south, east, north of the area searched
 * @property {string} from  first day, or empty
 * @property {string} to  last day, or empty
 * @property {number} spread  metres that hits are apart
 * @property {number} limit  most hits
 * @property {boolean} heat  whether similarity lies over the map
 * @property {Answer} answer  to the search above
 * @property {Map<string, 1 | -1>} marks  of hits by tile id, not searched with yet
 * @property {string | null} current  tile id of the hit in hand
 */

/** Of a search, what its answer depends on. */
export const SEARCH_KEYS = /** @type {const} */ (["positives", "negatives", "bbox", "from", "to", "spread", "limit"]);

/** @type {State} */
export const EMPTY = {
  positives: [],
  negatives: [],
  bbox: null,
  from: "",
  to: "",
  spread: 0,
  limit: 24,
  heat: false,
  answer: { status: "idle", features: [] },
  marks: new Map(),
  current: null,
};

export class Store {
  /** @type {State} */
  #state;
  /** @type {{ keys: readonly string[], listener: (state: State) => void }[]} */
  #watchers = [];

  /** @param {State} initial */
  constructor(initial) {
    this.#state = initial;
  }

  get state() {
    return this.#state;
  }

  /**
   * Replace some values, and tell those who watch them.
   * @param {Partial<State>} patch
   */
  update(patch) {
    const changed = Object.keys(patch).filter((key) => this.#state[key] !== patch[key]);
    this.#state = { ...this.#state, ...patch };
    for (const { keys, listener } of this.#watchers) {
      if (keys.some((key) => changed.includes(key))) listener(this.#state);
    }
  }

  /**
   * Call a listener now, and whenever one of these values was replaced.
   * @param {readonly string[]} keys
   * @param {(state: State) => void} listener
   */
  watch(keys, listener) {
    this.#watchers.push({ keys, listener });
    listener(this.#state);
  }
}
