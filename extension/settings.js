/** What the options say. They stay in this browser: the token is not synchronised. */

import { WORLDVIEW } from "./worldview.js";

/**
 * @typedef {object} Settings
 * @property {string} service  address of the person's own service, without a slash at its end; empty until it is given
 * @property {string} token  empty where the service asks for none
 * @property {string} worldview  address of Worldview
 * @property {string} snapshot  template of addresses of pictures; empty for none
 */

/** @type {Settings} */
export const DEFAULTS = { service: "", token: "", worldview: WORLDVIEW, snapshot: "" };

/** @returns {Promise<Settings>} */
export const settings = () => chrome.storage.local.get(DEFAULTS);

/** @param {Settings} wanted */
export const keep = (wanted) => chrome.storage.local.set(wanted);

/**
 * Addresses that the extension must be allowed to ask, as the browser writes them.
 * @param {Settings} wanted
 */
export const originsOf = ({ service, worldview, snapshot }) =>
  [...new Set([service, worldview, snapshot].filter(Boolean).map((address) => `${new URL(address).origin}/*`))];
