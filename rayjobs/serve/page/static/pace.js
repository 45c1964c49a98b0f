/** How far the work is, how fast it goes, and who does it. */

import { make, notice, the } from "./dom.js";
import { get } from "./service.js";

const LATEST = 30;

/** @param {import("./store.js").Store} store */
export function pace(store) {
  store.watch(["progress"], ({ progress }) => {
    the("done").max = progress?.total || 1;
    the("done").value = progress ? progress.labelled + progress.unsure : 0;
  });
  store.watch(["progress", "moments", "batch", "done"], (work) => (the("done-said").textContent = said(work)));
  store.watch(["trouble"], ({ trouble }) => {
    the("trouble").hidden = !trouble;
    the("trouble").textContent = trouble && `${trouble} What you said is kept here and is sent as soon as it can be.`;
  });
  the("people").addEventListener("toggle", () => the("people").open && people(store));
}

/** @param {import("./session.js").Work} work */
function said({ progress, moments, batch, done }) {
  if (!progress) return "";
  const { labelled, unsure, total } = progress;
  const rate = perMinute(moments);
  const parts = [`${labelled.toLocaleString("en")} of ${total.toLocaleString("en")} labelled`, unsure && `${unsure} unsure`, batch && `${done} of ${batch} in this batch`];
  const left = rate ? (total - labelled - unsure) / rate : 0;
  return [...parts, rate && `${rate.toFixed(0)} a minute`, left && `${timeSaid(left)} left`].filter(Boolean).join(" · ");
}

/** @param {number} minutes */
const timeSaid = (minutes) => (minutes < 90 ? `${Math.ceil(minutes)} min` : `${Math.round(minutes / 60)} h`);

/**
 * Pictures a minute, of the latest ones.
 * @param {number[]} moments  ms
 */
export function perMinute(moments) {
  const latest = moments.slice(-LATEST);
  const span = (latest.at(-1) ?? 0) - (latest[0] ?? 0);
  return span > 0 ? ((latest.length - 1) / span) * 60_000 : 0;
}

/** @param {import("./store.js").Store} store */
async function people(store) {
  const { taxonomy } = store.state;
  if (!taxonomy) return;
  try {
    const { by_person: people, by_class: classes } = await get(`v1/labels/${encodeURIComponent(taxonomy.name)}/progress`);
    const row = (/** @type {string} */ name, /** @type {string} */ value) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value));
    const rate = (/** @type {any} */ one) => (one.per_minute ? `, ${one.per_minute.toFixed(0)} a minute` : "");
    the("people-rows").replaceChildren(...Object.entries(people).map(([name, one]) => row(name, `${one.events}${rate(one)}`)));
    the("class-rows").replaceChildren(...Object.entries(classes).map(([name, count]) => row(name, String(count))));
  } catch (fault) {
    notice(fault.message);
  }
}
