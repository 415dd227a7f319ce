// Cards of results: growing, finished, and from the history. Everything written by a model or a
// person is text, never HTML.

import { Refusal, file } from "/api.js";
import { showRepeat } from "/repeat.js";

export function element(name, properties = {}, ...children) {
  const one = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) key.includes("-") ? one.setAttribute(key, value) : (one[key] = value);
  one.append(...children);
  return one;
}

export function download(source, name) { element("a", { href: source, download: name }).click(); }

// The facts of a response that are kept with the picture: the prepended documents, whether it is
// nearly a copy of one, and whether it was found, restyled or composed.
export function saidOf(answer) {
  const documents = answer.documents?.map(({ b64_json: _, ...one }) => one);
  return { documents, copyOf: answer.copy_of, svg: answer.svg, answer: answer.answer, note: answer.note };
}

// A link if its address is http or https, else text: a data set's documents come from anyone.
function linked(text, address) {
  return /^https?:\/\//.test(address || "") ? element("a", { href: address, target: "_blank", rel: "noopener noreferrer", textContent: text }) : text;
}

async function saveOriginal(button, one) {
  try {
    const { blob, name } = await file(one.original);
    const address = URL.createObjectURL(blob);
    download(address, name);
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  } catch (error) {
    button.textContent = "Not available";
    button.title = error instanceof Refusal ? error.message : String(error);
  }
}

function sourceOf(one) {
  const known = one.licence !== "unknown";
  const words = [linked(one.id, one.link)];
  if (one.attribution) words.push(` by ${one.attribution}`);
  if (one.collection) words.push(`, of ${one.collection}`);
  words.push(", ", linked(known ? one.licence : "licence unknown", one.licence_link));
  if (one.nearness !== undefined) words.push(`; nearness ${one.nearness.toFixed(2)}`);
  const item = element("li", {}, ...words);
  if (one.original) {
    const button = element("button", { type: "button", className: "link", textContent: "Original", "aria-label": `Download the original of ${one.id}` });
    button.onclick = () => saveOriginal(button, one);
    item.append(" ", button);
  }
  return item;
}

// Whether a picture was found, restyled or composed, and of which document.
function toldOf({ kind, text }) {
  const label = `${kind[0].toUpperCase()}${kind.slice(1)}`;
  return element("p", { className: "told" }, element("b", { textContent: label }), text.slice(kind.length));
}

// What a picture is, and its credits.
function sourcesOf(entry) {
  const parts = [], { answer } = entry;
  if (answer?.kind) parts.push(toldOf(answer));
  if (entry.note) parts.push(element("p", { className: "told", textContent: `${entry.note[0].toUpperCase()}${entry.note.slice(1)}.` }));
  if (entry.copyOf) parts.push(element("p", { className: "copy", textContent: `${entry.copyOf[0].toUpperCase()}${entry.copyOf.slice(1)}` }));
  if (entry.documents?.length) parts.push(element("div", { className: "sources" }, element("span", { textContent: answer?.kind === "found" ? "Original" : "Drawn from" }), element("ul", {}, ...entry.documents.map(sourceOf))));
  return parts;
}

// How a picture was chosen among its candidates.
function choiceOf({ index, scores, measure }) {
  const told = scores.map((score) => score.toPrecision(3));
  if (new Set(told).size === 1) return `${scores.length} candidates, all with ${measure} ${told[0]}`;
  return `Best of ${scores.length} by ${measure}: ${told.map((score, place) => (place === index ? `${score} (this one)` : score)).join(", ")}`;
}

export class Card {
  constructor(words) {
    this.image = element("img", { alt: words ? `In progress: ${words}` : "In progress", hidden: true });
    // Enlarged pictures show their pixels; reduced ones would get jagged edges that way.
    this.image.onload = () => this.image.classList.toggle("larger", this.image.naturalWidth >= this.image.clientWidth);
    this.fill = element("i");
    this.bar = element("div", { className: "bar" }, this.fill);
    this.caption = element("figcaption", {}, element("span", { className: "words", textContent: words || "" }));
    this.root = element("figure", { className: "card" }, element("div", { className: "frame" }, this.image, this.bar), this.caption);
    this.finished = false;
  }

  grow(source, share) { this.image.src = source; this.image.hidden = false; this.fill.style.width = `${100 * share}%`; }

  finish(entry, actions) {
    this.finished = true;
    this.image.src = entry.source; this.image.hidden = false; this.bar.remove();
    this.image.alt = entry.words || "Result";
    const facts = [`Seed ${entry.seed}`];
    if (entry.choice) facts.push(choiceOf(entry.choice));
    const extension = entry.source.match(/^data:image\/(\w+)/)[1];
    const name = `${(entry.words || "picture").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${entry.seed}`;
    const buttons = [
      ["Download", () => download(entry.source, `${name}.${extension}`)],
      ...(entry.svg ? [[entry.answer?.kind === "found" ? "Original SVG" : "SVG", () => download(`data:image/svg+xml;charset=utf-8,${encodeURIComponent(entry.svg)}`, `${name}.svg`)]] : []),
      ["Repeat…", () => showRepeat(entry)],
      ["Edit", () => actions.edit(entry)],
      ["Describe", () => actions.look(entry)],
    ];
    this.caption.replaceChildren(
      element("span", { className: "words", textContent: entry.words || "", title: entry.words || "" }),
      ...sourcesOf(entry),
      element("details", { className: "facts" }, element("summary", { textContent: "Details" }), ...facts.map((textContent) => element("p", { textContent }))),
      element("div", { className: "buttons" }, ...buttons.map(([name, onclick]) => element("button", { type: "button", textContent: name, onclick }))),
    );
  }
}

export function empty(text) { return element("p", { className: "empty", textContent: text }); }
