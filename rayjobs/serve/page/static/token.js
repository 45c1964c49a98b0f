/** The dialog that asks for the service's token. */

import { question } from "./question.js";

const { field, line, answered } = question("token", {
  title: "This service asks for a token",
  said: "It is kept in this tab until the tab is closed.",
  label: "Token",
  button: "Enter",
  input: { type: "password", autocomplete: "current-password" },
});

/** @type {Promise<string> | null} */
let asking = null;

/**
 * Ask for the token; whoever asks meanwhile gets the same answer.
 * @param {boolean} wrong  whether the one given before was refused
 * @returns {Promise<string>}
 */
export function askForToken(wrong) {
  asking ??= asked(wrong).finally(() => (asking = null));
  return asking;
}

/** @param {boolean} wrong */
async function asked(wrong) {
  if (wrong) line.textContent = "The service refused that token. Please try another.";
  field.value = "";
  while (!(await answered())); // nothing works without it
  return field.value;
}
