/** The options: which service is asked, and with which token. Saving asks the browser for leave to reach these addresses and no others. */

import { the } from "./dom.js";
import { ask } from "./service.js";
import { keep, originsOf, settings } from "./settings.js";
import { SNAPSHOTS } from "./worldview.js";

const FIELDS = ["service", "token", "worldview", "snapshot"];
const ADDRESSES = { service: "The address of your service", worldview: "The address of Worldview", snapshot: "The address of pictures" };
const HERE = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

the("nasa").addEventListener("click", () => (the("snapshot").value = SNAPSHOTS));
the("form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  save().catch((fault) => say(fault.message, "bad"));
});
const before = await settings();
for (const field of FIELDS) the(field).value = before[field];

async function save() {
  const wanted = Object.fromEntries(FIELDS.map((field) => [field, the(field).value.trim()]));
  wanted.service = wanted.service.replace(/\/+$/, "");
  for (const [field, what] of Object.entries(ADDRESSES)) checkAddress(what, wanted[field]);
  const origins = originsOf(wanted);
  const given = await chrome.permissions.request({ origins }); // must be the first to be awaited: it takes the person's click
  await keep(wanted);
  if (!given) throw new Error("Saved, but the browser was not allowed to reach these addresses.");
  await forgetOthers(origins);
  const info = await (await ask("/v1/info", {}, wanted)).json();
  say(`Saved. The service answers: index “${info.name}”, ${info.rows.toLocaleString("en")} tiles.${warningOf(wanted)}`, "good");
}

/**
 * @param {string} what
 * @param {string} address  empty for none
 * @throws {Error} no browser could ask it
 */
function checkAddress(what, address) {
  const isWeb = URL.canParse(address) && /^https?:$/.test(new URL(address).protocol);
  if (address && !isWeb) throw new Error(`${what} must begin with http:// or https:// and name a host: “${address}” cannot be asked.`);
}

/** @param {string[]} wanted */
async function forgetOthers(wanted) {
  const fixed = chrome.runtime.getManifest().host_permissions ?? [];
  const { origins = [] } = await chrome.permissions.getAll();
  const others = origins.filter((origin) => !wanted.includes(origin) && !fixed.includes(origin));
  if (others.length) await chrome.permissions.remove({ origins: others });
}

/** @param {Record<string, string>} wanted */
function warningOf({ service, token }) {
  const { protocol, hostname } = new URL(service);
  return token && protocol === "http:" && !HERE.test(hostname) ? " The token goes there unencrypted: put TLS in front of the service." : "";
}

/**
 * @param {string} text
 * @param {string} tone
 */
function say(text, tone) {
  the("said").textContent = text;
  the("said").className = tone;
}
