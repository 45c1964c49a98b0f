/** The picture in hand: swiped away, or looked at more closely with wheel, two fingers or a double click. */

import { the } from "./dom.js";
import { choose, directions } from "./choices.js";
import { thumbnail } from "./pictures.js";

const SWIPED_PX = 80;
const MOST = 12;
const CLOSER = 3;

/**
 * @param {import("./store.js").Store} store
 * @param {import("./session.js").Session} session
 * @returns {{ zoom: (times: number) => void }} 0 shows the whole picture again
 */
export function card(store, session) {
  const frame = the("frame");
  /** @type {Map<number, { x: number, y: number }>} */
  const fingers = new Map();
  let scale = 1, x = 0, y = 0; // of the picture in the frame, pixels from its middle
  let swiped = { x: 0, y: 0 };
  /** @type {HTMLElement | null} */
  let image = null;

  const place = () => {
    const reach = { x: ((scale - 1) * frame.clientWidth) / 2, y: ((scale - 1) * frame.clientHeight) / 2 };
    x = Math.max(-reach.x, Math.min(reach.x, x));
    y = Math.max(-reach.y, Math.min(reach.y, y));
    if (image) image.style.transform = `translate(${x + swiped.x}px, ${y + swiped.y}px) rotate(${swiped.x / 40}deg) scale(${scale})`;
    frame.classList.toggle("closer", scale > 1);
    const direction = leaning();
    frame.dataset.leaning = direction ?? "";
    the("leaning").textContent = direction ? (directions(store.state)[direction]?.said ?? "") : "";
  };

  /** @returns {import("./choices.js").Direction | null} */
  const leaning = () => {
    if (Math.hypot(swiped.x, swiped.y) < SWIPED_PX) return null;
    if (Math.abs(swiped.x) > Math.abs(swiped.y)) return swiped.x > 0 ? "right" : "left";
    return swiped.y > 0 ? "down" : "up";
  };

  /** Zoom so that what lies at a place of the frame stays there. */
  const zoomAt = (/** @type {number} */ times, /** @type {number} */ clientX, /** @type {number} */ clientY) => {
    const box = frame.getBoundingClientRect();
    const at = { x: clientX - box.left - box.width / 2, y: clientY - box.top - box.height / 2 };
    const next = Math.max(1, Math.min(MOST, scale * times));
    x = at.x - ((at.x - x) * next) / scale;
    y = at.y - ((at.y - y) * next) / scale;
    scale = next;
    place();
  };
  const zoom = (/** @type {number} */ times) => {
    const box = frame.getBoundingClientRect();
    zoomAt(times || 1 / MOST, box.left + box.width / 2, box.top + box.height / 2);
  };

  frame.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0 || store.state.phase !== "picture") return;
    frame.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (fingers.size > 1) swiped = { x: 0, y: 0 };
    frame.classList.add("held");
  });
  frame.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const moved = { x: now.x - before.x, y: now.y - before.y };
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, finger]) => finger);
    fingers.set(event.pointerId, now);
    if (other) {
      const apart = Math.hypot(now.x - other.x, now.y - other.y) / Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
      x += moved.x / 2;
      y += moved.y / 2;
      zoomAt(apart, (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else if (scale > 1) {
      x += moved.x;
      y += moved.y;
      place();
    } else {
      swiped = { x: swiped.x + moved.x, y: swiped.y + moved.y };
      place();
    }
  });
  const lifted = (/** @type {PointerEvent} */ event) => {
    if (!fingers.delete(event.pointerId) || fingers.size) return;
    const direction = event.type === "pointerup" ? leaning() : null;
    swiped = { x: 0, y: 0 };
    frame.classList.remove("held");
    place();
    if (direction) choose(session, directions(store.state)[direction]);
  };
  frame.addEventListener("pointerup", lifted);
  frame.addEventListener("pointercancel", lifted);
  frame.addEventListener("dblclick", (/** @type {MouseEvent} */ event) => zoomAt(scale > 1 ? 1 / MOST : CLOSER, event.clientX, event.clientY));
  frame.addEventListener(
    "wheel",
    (/** @type {WheelEvent} */ event) => {
      event.preventDefault();
      zoomAt(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
    },
    { passive: false },
  );
  the("closer").addEventListener("click", () => zoom(1.5));
  the("farther").addEventListener("click", () => zoom(1 / 1.5));

  store.watch(["item"], ({ item }) => {
    scale = 1;
    x = y = 0;
    fingers.clear();
    swiped = { x: 0, y: 0 };
    image = item ? thumbnail(item.tile_id, `Tile ${item.tile_id.slice(0, 8)} of scene ${item.scene_id}`) : null;
    if (image) Object.assign(image, { draggable: false, loading: "eager" });
    frame.replaceChildren(...(image ? [image] : []), the("leaning"));
    frame.dataset.id = item?.tile_id ?? "";
    the("about-item").textContent = the("about-item").title = [item?.datetime?.slice(0, 10), item?.scene_id].filter(Boolean).join(" · ");
    place();
    for (const { tile_id: id } of session.next) thumbnail(id).loading = "eager"; // the browser keeps it
  });
  return { zoom };
}
