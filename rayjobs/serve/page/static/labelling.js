/** Puts the labelling page together. */

import { card } from "./card.js";
import { choiceKeys, choices } from "./choices.js";
import { notice, the } from "./dom.js";
import { grid } from "./grid.js";
import { Outbox } from "./outbox.js";
import { pace, perMinute } from "./pace.js";
import { whoLabels } from "./person.js";
import { Session } from "./session.js";
import { Store } from "./store.js";
import { named, taxonomies } from "./taxonomies.js";

const BATCH = "rayjobs-batch";
const SAID = {
  starting: "One moment …",
  none: "There is no taxonomy yet: say which classes are to be told apart.",
  end: "There is no picture left that nobody has labelled or has in hand.",
  waiting: "No picture is in hand yet …",
};

const store = new Store({
  phase: "starting", taxonomies: [], taxonomy: null, person: "", item: null, alike: [], last: "", progress: null, moments: [],
  batch: Number(localStorage.getItem(BATCH) ?? 25), done: 0, canUndo: false, trouble: "",
});
const outbox = new Outbox({
  person: () => store.state.person,
  onTrouble: (trouble) => store.update({ trouble }),
  onTaken: (taxonomy, progress) => taxonomy === store.state.taxonomy?.name && store.update({ progress }),
  onRefused: (entries) => session.forget(entries.map(({ event }) => event)),
});
const session = new Session(store, outbox);

start().catch((fault) => {
  the("state-said").textContent = fault.message;
  notice(fault.message);
});

async function start() {
  choices(store, session);
  choiceKeys(store, session, card(store, session));
  grid(store, session);
  pace(store);
  states();
  the("help-open").addEventListener("click", () => the("help").showModal());
  store.update({ person: await whoLabels() });
  await taxonomies(store, session);
}

/** What stands in the picture's place, and the settings in the bar. */
function states() {
  store.watch(["phase"], (work) => {
    the("stage").hidden = work.phase === "grid";
    the("frame").hidden = the("zoom").hidden = work.phase !== "picture";
    the("state").hidden = ["picture", "grid"].includes(work.phase);
    the("state-said").textContent = saidOf(work);
    the("go-on").hidden = !["pause", "end"].includes(work.phase);
    the("go-on").textContent = work.phase === "end" ? "Look again" : "Continue";
    the("make-first").hidden = !["none", "absent"].includes(work.phase);
    if (work.phase === "pause") the("go-on").focus();
  });
  the("go-on").addEventListener("click", () => session.goOn());
  the("stop").addEventListener("click", () => session.stop());
  the("batch").value = String(store.state.batch);
  the("batch").addEventListener("change", () => {
    localStorage.setItem(BATCH, the("batch").value);
    store.update({ batch: Number(the("batch").value), done: 0 });
    session.fill();
  });
  store.watch(["person"], ({ person }) => (the("who").textContent = person || "Who?"));
  the("who").addEventListener("click", async () => {
    const person = await whoLabels({ again: true });
    if (person !== store.state.person) await session.handOver(person);
  });
}

/** @param {import("./session.js").Work} work */
function saidOf(work) {
  if (work.phase === "pause") return paused(work);
  return work.phase === "absent" ? `There is no taxonomy ${named()}. Choose one above, or make one.` : (SAID[work.phase] ?? "");
}

/** @param {import("./session.js").Work} work */
function paused({ done, moments }) {
  const rate = perMinute(moments.slice(-done));
  return done ? `${done} done${rate ? `, ${rate.toFixed(0)} a minute` : ""}. Go on?` : "Nothing is in your hands now.";
}
