// A conversation with pictures: captions, questions, and pictures as answers, as far as the model
// supports them.

import { Refusal, stream } from "/api.js";
import { $, CHAT, NO_MODEL, can, notice, opened, say, state } from "/common.js";
import * as history from "/history.js";
import { Card, element, saidOf } from "/results.js";

let source = null;    // the data URL of the current picture
let isNew = false;    // whether the picture has not been sent yet
let opening = Promise.resolve();
let turns = [];       // messages of the API
let actions = {};

export function openForLook(file) { return (opening = read(file)); }

async function read(file) {
  say($("look-status"), "");
  try { talkAbout((await opened(file)).toDataURL("image/png"), true); } catch (error) { notice(error, $("look-status")); }
}

function talkAbout(picture, fresh) {
  source = picture; isNew = fresh;
  $("look-picture").src = source; $("look-picture").hidden = false;
  label();
}

function pictures({ content }) { return Array.isArray(content) ? content.filter(({ type }) => type === "image_url").length : 0; }

function hasPicture(message) { return pictures(message) > 0; }

// Models that don't converse in turns read only the last picture, so the others are not sent again.
function lastPictureOnly(messages) {
  const last = messages.findLastIndex(hasPicture);
  const without = ({ content, ...one }) => ({ ...one, content: content.filter(({ type }) => type !== "image_url") });
  return messages.map((one, place) => (place === last || !hasPicture(one) ? one : without(one))).filter(({ content }) => content.length);
}

// The latest turns with as many pictures as one request may have; the first turn is the user's.
function latest(messages) {
  let number = messages.reduce((sum, one) => sum + pictures(one), 0), first = 0;
  while (number > state.facts.limits.pictures && first + 2 < messages.length) {
    number -= pictures(messages[first]) + pictures(messages[first + 1]);
    first += 2;
  }
  return messages.slice(first);
}

// The kind of reply: "text", "image", or "any" if the model decides.
function answer() { return $("answer-field").hidden ? "text" : $("answer-with").value; }

function label() {
  const text = $("question").value.trim();
  $("look").textContent = can("turns") ? "Send" : answer() === "image" ? (source ? "Edit" : "Draw") : text && !$("question-field").hidden ? "Ask" : "Describe";
}

// Whether the model reads pictures at all.
function reads() { return ["caption", "ask", "chat", "edit", "turns"].some(can); }

function missing(question) {
  if (!state.facts) return NO_MODEL;
  if (!reads()) return "This model can draw pictures but not read them.";
  if (can("turns")) return question || (source && isNew) ? "" : "Enter a message or choose a picture.";
  if (!source && answer() !== "image") return "Choose a picture first.";
  return answer() === "image" && !question ? "Describe the picture to draw." : "";
}

export async function look(event) {
  event?.preventDefault();
  await opening;
  const question = $("question-field").hidden ? "" : $("question").value.trim();
  const lacks = missing(question);
  if (lacks) { notice(new Refusal(lacks, 0), $("look-status")); return; }
  // A caption depends on the picture alone.
  const before = question || can("turns") ? turns : [];
  const shows = source !== null && (isNew || (!can("turns") && !before.some(hasPicture)));
  const asked = { role: "user", content: [...(question ? [{ type: "text", text: question }] : []), ...(shows ? [{ type: "image_url", image_url: { url: source } }] : [])] };
  const messages = can("turns") ? latest([...before, asked]) : lastPictureOnly([...before, asked]);
  const wanted = answer();
  const body = { model: $("model").value, messages, modalities: wanted === "any" ? ["text", "image"] : [wanted], ...(wanted === "image" && !can("turns") ? {} : { truncate: true }), ...(can("turns") ? { partial_images: 3 } : {}) };
  state.working?.abort();
  const stop = (state.working = new AbortController());
  $("look").disabled = true; $("look-stop").hidden = false;
  $("look-stop").onclick = () => stop.abort();
  say($("look-status"), wanted === "image" ? "Drawing…" : can("turns") ? "Replying…" : "Looking…");
  const shown = new Exchange(question, shows ? source : null);
  const given = source;
  $("question").value = ""; // the user may now type the next message
  try {
    for await (const chunk of stream(CHAT, body, stop.signal)) shown.take(chunk);
    if (!shown.finished) throw new Refusal("The connection was lost before the answer was finished. Ask again.", 0);
    if (question || can("turns")) turns.push(asked, { role: "assistant", content: shown.content });
    isNew = false;
    shown.finish(body, given, wanted, turns.length === 2 && !shows);
    say($("look-status"), "");
  } catch (error) { shown.drop(); $("question").value ||= question; notice(error, $("look-status")); } finally {
    if (state.working === stop) { state.working = null; $("look").disabled = false; $("look-stop").hidden = true; }
    label();
  }
}

// One exchange: the question, and the answer while it arrives.
class Exchange {
  constructor(question, picture) {
    this.question = question;
    this.parts = [];      // of the answer: {text, place} or {url, card}
    this.growing = null;  // the card of the picture being drawn
    this.facts = {};
    this.finished = false;
    this.answer = element("div", { className: "answer", hidden: true });
    const asked = element("div", { className: "asked" }, ...(picture ? [element("img", { src: picture, alt: "The picture" })] : []), ...(question ? [element("span", { textContent: question })] : []));
    this.root = element("li", {}, asked, this.answer);
    $("answers").append(this.root);
    $("look-empty").hidden = true;
    this.root.scrollIntoView({ block: "nearest" });
  }

  // The content in the API's form.
  get content() {
    if (this.parts.every(({ text }) => text !== undefined)) return this.parts.map(({ text }) => text).join("");
    return this.parts.map(({ text, url }) => (text === undefined ? { type: "image_url", image_url: { url } } : { type: "text", text }));
  }

  take({ choices }) {
    const [choice] = choices;
    if (!choice) return;
    const { content, role, partial_image: partial, ...facts } = choice.delta;
    Object.assign(this.facts, facts);
    if (choice.finish_reason) this.finished = true;
    if (partial) this.card().grow(partial.image_url.url, partial.rows / partial.all_rows);
    for (const part of typeof content === "string" ? [{ type: "text", text: content }] : content || []) {
      if (part.type === "text") this.write(part.text);
      else { this.parts.push({ url: part.image_url.url, card: this.card() }); this.growing = null; this.parts.at(-1).card.grow(part.image_url.url, 1); }
    }
  }

  card() {
    if (!this.growing) { this.growing = new Card(this.question); this.answer.hidden = false; this.answer.append(this.growing.root); }
    return this.growing;
  }

  write(text) {
    if (this.parts.at(-1)?.text === undefined) {
      const place = element("q");
      this.answer.append(place); this.answer.hidden = false;
      this.parts.push({ text: "", place });
    }
    const last = this.parts.at(-1);
    last.text += text;
    last.place.textContent = last.text.trim() || "(nothing)";
  }

  // `begins`: whether this exchange begins the conversation, without a picture.
  finish(body, given, wanted, begins) {
    if (!this.parts.length) this.write("");
    for (const [number, { url, card }] of this.parts.filter((part) => part.card).entries()) {
      const request = { model: body.model, prompt: this.question, n: 1 };
      // A prompt alone can't repeat a picture from a conversation.
      const sort = can("turns") ? "chat" : given ? "edit" : "draw";
      const entry = { ...saidOf(this.facts), sort, source: url, seed: this.facts.seed, choice: this.facts.choice, words: this.question, request, answer: wanted, begins, number, given: given && sort === "edit" ? { "picture.png": given } : {} };
      card.finish(entry, actions);
      history.add(entry);
      talkAbout(url, false);
    }
    if (this.facts.turns_left_out && (can("chat") || can("turns"))) this.answer.append(element("p", { className: "hint", textContent: `The oldest turns no longer fit: the model read the last ${this.facts.turns_read}.` }));
    $("look-new").hidden = false;
    this.root.scrollIntoView({ block: "nearest" });
  }

  drop() { this.root.remove(); $("look-empty").hidden = $("answers").children.length > 0; }
}

function forget() {
  state.working?.abort();
  turns = []; isNew = source !== null;
  $("answers").replaceChildren(); $("look-empty").hidden = false; $("look-new").hidden = true;
  say($("look-status"), ""); ($("question-field").hidden ? $("look") : $("question")).focus();
}

export function startLook(given) {
  actions = given;
  $("look-form").onsubmit = look;
  $("question").oninput = $("answer-with").onchange = label;
  $("look-file").onchange = () => openForLook($("look-file").files[0]);
  $("look-new").onclick = forget;
}

// Offers what the model can do, and explains what it can't.
export function offerLook() {
  const asks = can("ask") || can("chat"), edits = can("edit"), converses = can("turns");
  $("question-field").hidden = !asks && !edits && !converses;
  $("question-label").textContent = converses ? "Message" : "Question";
  $("question").placeholder = converses ? "" : "leave empty for a caption";
  $("answer-field").hidden = !edits && !converses;
  $("answer-any").hidden = $("answer-any").disabled = !converses;
  if (converses) $("answer-with").value = "any";
  else if (!edits || answer() === "any") $("answer-with").value = "text";
  $("look-hint").textContent = converses ? "The model reads all turns and pictures that fit in its context, and replies with text and pictures."
    : can("chat") ? "The model reads as much of the conversation as fits in its context, and the last picture."
      : !reads() ? "This model can draw pictures but not read them."
      : asks ? "This model answers single questions. It was not tuned for conversations and ignores earlier turns."
        : "This model describes pictures. It was not tuned to answer questions.";
  $("look-new").textContent = asks || edits || converses ? "New conversation" : "Clear";
  label();
}
