/** Who labels: the person that the token names, else the name that was given here. */

import { the } from "./dom.js";
import { get } from "./service.js";

const KEY = "rayjobs-person";
const HEADER = "X-Rayjobs-Person";

/** The name that was given in this browser; empty for none. */
export const givenName = () => localStorage.getItem(KEY) ?? "";

/**
 * The header that says who asks. A header holds plain letters only, names may hold any.
 * @param {string} person
 */
export const asPerson = (person) => ({ [HEADER]: encodeURIComponent(person) });

/**
 * Find out who labels, and ask where nobody knows.
 * @param {{ again?: boolean }} [how]  `again`: even where a name was given before
 * @returns {Promise<string>}
 */
export async function whoLabels({ again = false } = {}) {
  const { person } = await get("v1/labels");
  if (person) return person;
  if (again || !mayBe(givenName())) localStorage.setItem(KEY, await askForName(again));
  return givenName();
}

/** Whether the service takes it as a name. @param {string} name */
function mayBe(name) {
  the("person-value").value = name;
  return the("person-value").validity.valid;
}

/** @param {boolean} mayStay  whether the dialog can be left without a name */
function askForName(mayStay) {
  const dialog = the("person");
  the("person-value").value = givenName();
  dialog.showModal();
  return new Promise((resolve) => {
    const leave = (/** @type {Event} */ event) => (mayStay ? resolve(givenName()) : event.preventDefault());
    dialog.addEventListener("cancel", leave);
    the("person-form").addEventListener(
      "submit",
      () => {
        dialog.removeEventListener("cancel", leave);
        resolve(the("person-value").value.trim());
      },
      { once: true },
    );
  });
}
