// Cards of results: growing, finished, and from the history. Everything that a model or a person wrote is text, never HTML.

import { showRepeat } from "/repeat.js";

export function element(name, properties = {}, ...children) {
  const one = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) key.includes("-") ? one.setAttribute(key, value) : (one[key] = value);
  one.append(...children);
  return one;
}

export function download(source, name) { element("a", { href: source, download: name }).click(); }

export class Card {
  constructor(words) {
    this.image = element("img", { alt: words ? `Being drawn: ${words}` : "Being drawn", hidden: true });
    // few pixels are shown as pixels; many that are shown as fewer would get teeth by that
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
    const facts = [`seed ${entry.seed}`];
    if (entry.choice) facts.push(`best of ${entry.choice.scores.length} by ${entry.choice.measure}: ${entry.choice.scores.map((score, place) => `${place === entry.choice.index ? "▸" : ""}${score.toPrecision(3)}`).join(", ")}`);
    const extension = entry.source.match(/^data:image\/(\w+)/)[1];
    const buttons = [
      ["Download", () => download(entry.source, `${(entry.words || "picture").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${entry.seed}.${extension}`)],
      ["Repeat…", () => showRepeat(entry)],
      ["Edit", () => actions.edit(entry)],
      ["Describe", () => actions.look(entry)],
    ];
    this.caption.replaceChildren(
      element("span", { className: "words", textContent: entry.words || "", title: entry.words || "" }),
      element("span", { className: "facts", textContent: facts.join(" · ") }),
      element("div", { className: "buttons" }, ...buttons.map(([name, onclick]) => element("button", { type: "button", textContent: name, onclick }))),
    );
  }
}

export function empty(text) { return element("p", { className: "empty", textContent: text }); }
