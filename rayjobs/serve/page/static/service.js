/** The service's HTTP interface: the token where it asks for one, and its faults as errors that can be shown. */

import { askForToken } from "./token.js";

const ROOT = new URL("../", import.meta.url);
const KEY = "rayjobs-token";
const LONGEST_MS = 30_000;

/** What the service said is wrong. */
export class Problem extends Error {
  /**
   * @param {number} status  0 where no answer came
   * @param {string} detail  to be shown
   * @param {Record<string, any>} [said]  all that the service said
   */
  constructor(status, detail, said = {}) {
    super(detail);
    this.status = status;
    this.said = said;
  }
}

/** Whether requests bear a token, so that pictures cannot be asked for by their address alone. */
export const bearsToken = () => sessionStorage.getItem(KEY) !== null;

/**
 * @param {string} path  without a leading slash
 */
export const addressOf = (path) => new URL(path, ROOT).href;

/**
 * Ask the service; where it refuses the token, ask the person for one and try again.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 * @throws {Problem}
 */
export async function ask(path, options = {}) {
  let answer = await sent(path, options);
  while (answer.status === 401) {
    const wrong = bearsToken();
    sessionStorage.setItem(KEY, await askForToken(wrong));
    answer = await sent(path, options);
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 */
export const get = async (path, signal) => (await ask(path, { signal })).json();

/**
 * @param {string} path
 * @param {object | FormData} body
 * @param {{ signal?: AbortSignal, accept?: string, headers?: Record<string, string> }} [options]
 */
export function post(path, body, { signal, accept, headers: further = {} } = {}) {
  const isForm = body instanceof FormData;
  const headers = { ...(isForm ? {} : { "content-type": "application/json" }), ...(accept ? { accept } : {}), ...further };
  return ask(path, { method: "POST", headers, body: isForm ? body : JSON.stringify(body), signal });
}

/**
 * @param {string} path
 * @param {RequestInit} options
 */
async function sent(path, options) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(KEY);
  if (token) headers.set("authorization", `Bearer ${token}`);
  const isUpload = options.body instanceof FormData; // which takes as long as the line is slow
  const signal = options.signal ?? (isUpload ? undefined : AbortSignal.timeout(LONGEST_MS));
  try {
    return await fetch(addressOf(path), { ...options, headers, signal });
  } catch (fault) {
    if (options.signal?.aborted) throw fault;
    throw new Problem(0, "The service does not answer. Is it still running?");
  }
}

/** @param {Response} answer */
async function problemOf(answer) {
  const said = await answer.json().catch(() => null);
  return new Problem(answer.status, said?.detail ?? `The service answered ${answer.status} ${answer.statusText}`, said ?? {});
}
