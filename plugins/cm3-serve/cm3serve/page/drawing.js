// Requests pictures and shows them while they are generated; the page runs one request at a time.

import { Refusal, stream } from "/api.js";
import { notice, say, state } from "/common.js";
import * as history from "/history.js";
import { Card, empty, saidOf } from "/results.js";

// Runs a request for pictures.
//   path, body: the request.       words: the caption of each card.
//   view: { status, cards, button, stopper }, elements.      kept: the text shown when there are no cards.
//   entryOf(event): the result in the form of cards and the history.
//   onevent(event): called for every event; onwhole(event): called for the last event of a set.
export async function run({ path, body, words, view, kept, entryOf, actions, onevent = () => {}, onwhole = null }) {
  state.working?.abort();
  const stop = (state.working = new AbortController());
  const { status, cards, button, stopper } = view;
  button.disabled = true; stopper.hidden = false;
  stopper.onclick = () => stop.abort();
  const made = words.map((text) => new Card(text));
  cards.replaceChildren(...made.map((card) => card.root));
  cards.setAttribute("aria-busy", "true");
  // On a phone the pictures are below a long form.
  if (status.getBoundingClientRect().top > innerHeight - 160) status.scrollIntoView({ block: "start" });
  const started = performance.now();
  let done = 0, whole = onwhole === null;
  say(status, words.length === 1 ? "Drawing…" : `Drawing ${words.length} pictures…`);
  try {
    for await (const event of stream(path, body, stop.signal)) {
      onevent(event);
      if (event.type === "set.completed") { whole = true; onwhole(event); continue; }
      const source = `data:image/${event.output_format};base64,${event.b64_json}`;
      const card = made[event.index];
      if (event.type.endsWith("partial_image")) { card.grow(source, event.rows / event.all_rows); continue; }
      done += 1;
      const entry = { source, seed: event.seed, choice: event.choice, ...saidOf(event), ...entryOf(event) };
      card.finish(entry, actions);
      history.add(entry);
      if (words.length > 1) say(status, `${done} of ${words.length} pictures…`);
    }
    if (done < words.length || !whole) throw new Refusal("The connection was lost before the picture was finished. Draw it again.", 0);
    say(status, `${done === 1 ? "One picture" : `${done} pictures`} in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    notice(error, status);
    for (const card of made) if (!card.finished) card.root.remove();
    if (!cards.children.length) cards.append(empty(kept));
  } finally {
    cards.removeAttribute("aria-busy");
    if (state.working === stop) { state.working = null; button.disabled = false; stopper.hidden = true; }
  }
}
