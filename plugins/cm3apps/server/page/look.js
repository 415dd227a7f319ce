// A conversation about a picture: captions, questions, and pictures in answer, as far as the model can.

import { Refusal, post } from "/api.js";
import { $, CHAT, can, notice, opened, say } from "/common.js";
import * as history from "/history.js";
import { Card, element } from "/results.js";

let source = null;    // of the picture that is talked about
let isNew = false;    // whether it has not been sent yet
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

function hasPicture({ content }) { return Array.isArray(content) && content.some(({ type }) => type === "image_url"); }

// Only the last picture of a conversation counts: the others are not sent again.
function lastPictureOnly(messages) {
  const last = messages.findLastIndex(hasPicture);
  const without = ({ content, ...one }) => ({ ...one, content: content.filter(({ type }) => type !== "image_url") });
  return messages.map((one, place) => (place === last || !hasPicture(one) ? one : without(one))).filter(({ content }) => content.length);
}

function wantsPicture() { return !$("answer-field").hidden && $("answer-with").value === "image"; }

function label() {
  const text = $("question").value.trim();
  $("look").textContent = wantsPicture() ? (source ? "Edit" : "Draw") : text && !$("question-field").hidden ? "Ask" : "Describe";
}

export async function look(event) {
  event?.preventDefault();
  await opening;
  const question = $("question-field").hidden ? "" : $("question").value.trim();
  if (!source && !wantsPicture()) { notice(new Refusal("Choose a picture first.", 0), $("look-status")); return; }
  if (wantsPicture() && !question) { notice(new Refusal("Say what the picture should show.", 0), $("look-status")); return; }
  // a caption is of the picture alone
  const before = question ? turns : [];
  const shows = source !== null && (isNew || !before.some(hasPicture));
  const asked = { role: "user", content: [...(question ? [{ type: "text", text: question }] : []), ...(shows ? [{ type: "image_url", image_url: { url: source } }] : [])] };
  const messages = lastPictureOnly([...before, asked]);
  $("look").disabled = true;
  say($("look-status"), wantsPicture() ? "Drawing…" : "Looking…");
  try {
    const body = { model: $("model").value, messages, modalities: [wantsPicture() ? "image" : "text"], ...(wantsPicture() ? {} : { truncate: true }) };
    const { content, ...facts } = (await post(CHAT, body)).choices[0].message;
    if (question) turns.push(asked, { role: "assistant", content });
    tell(question, shows ? source : null, content, facts, body);
    isNew = false;
    $("question").value = "";
    say($("look-status"), "");
  } catch (error) { notice(error, $("look-status")); } finally { $("look").disabled = false; label(); }
}

// One exchange: what was asked, and the answer.
function tell(question, picture, content, facts, body) {
  const asked = element("div", { className: "asked" }, ...(picture ? [element("img", { src: picture, alt: "The picture" })] : []), ...(question ? [element("span", { textContent: question })] : []));
  const answer = element("div", { className: "answer" });
  if (Array.isArray(content)) {
    const drawn = content.find(({ type }) => type === "image_url").image_url.url;
    const request = { model: body.model, prompt: question, n: 1 };
    const entry = { sort: source ? "edit" : "draw", source: drawn, seed: facts.seed, choice: facts.choice, words: question, request, given: source ? { "picture.png": source } : {} };
    const card = new Card(question); card.finish(entry, actions); answer.append(card.root);
    history.add(entry);
    talkAbout(drawn, false);
  } else answer.append(element("q", { textContent: content || "(nothing)" }));
  if (can("chat") && facts.turns_left_out) answer.append(element("p", { className: "hint", textContent: `The oldest turns no longer fit: the last ${facts.turns_read} were read.` }));
  const one = element("li", {}, asked, answer);
  $("answers").append(one);
  $("look-empty").hidden = true; $("look-new").hidden = false;
  one.scrollIntoView({ block: "nearest" });
}

function forget() {
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

// Offers what the model can do, and says what it can't.
export function offerLook() {
  const asks = can("ask") || can("chat"), edits = can("edit");
  $("question-field").hidden = !asks && !edits;
  $("answer-field").hidden = !edits;
  if (!edits) $("answer-with").value = "text";
  $("look-hint").textContent = can("chat") ? "It reads the whole conversation, as far as it fits. The last picture counts."
    : asks ? "This model answers single questions: it was not tuned for conversations, and doesn't read earlier turns."
      : "This model describes pictures. It was not tuned to answer questions.";
  $("look-new").textContent = asks || edits ? "New conversation" : "Clear";
  label();
}
