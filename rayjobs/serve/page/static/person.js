/** Who labels: the person that the token names, else the name that was given here. */

import { question } from "./question.js";
import { get } from "./service.js";

const KEY = "rayjobs-person";
const HEADER = "X-Rayjobs-Person";
const { field, answered } = question("person", {
  title: "Who labels?",
  said: "Your name is kept with each label, so that several people can work together.",
  label: "Name",
  button: "Begin",
  input: {
    autocomplete: "nickname",
    maxlength: 64,
    pattern: String.raw` *[\p{L}\p{N}][\p{L}\p{N}_ .@'\-]{0,63}`, // as the service's `check_person`
    title: "letters, digits and . _ @ ' - or blanks, a letter or digit first",
  },
});

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
  field.value = name;
  return field.validity.valid;
}

/** @param {boolean} mayStay  whether the dialog can be left without a name */
async function askForName(mayStay) {
  field.value = givenName();
  let given = await answered();
  while (!given && !mayStay) given = await answered();
  return given ? field.value.trim() : givenName();
}
