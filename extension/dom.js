/** Elements, made and found. */

/**
 * Make an element. Text is text, never markup.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]  `on...` are listeners; true is an empty attribute; null and false are left out
 * @param {...(Node | string | null)} children
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * Find an element of the page by its id.
 * @param {string} id
 * @returns {any}
 */
export function the(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}
