// Shared by all views: the model's facts, messages, opened pictures.

import { Refusal } from "/api.js";
import { element } from "/results.js";

export const $ = (id) => document.getElementById(id);
export const GENERATE = "/v1/images/generations", EDIT = "/v1/images/edits", CHAT = "/v1/chat/completions", SETS = "/v1/sets", CONDITIONS = "/v1/conditions";
export const NO_MODEL = "No model is loaded. Load one first.";
const LONGEST_SIDE = 512;

// The facts of the chosen model (/studio/facts), and the request that "Stop" aborts.
export const state = { facts: null, working: null, loading: Promise.resolve() };

export function can(ability) { return state.facts?.tasks.includes(ability) ?? false; }

export function notice(error, place) {
  if (error?.name === "AbortError") { place.textContent = "Stopped."; return; }
  place.classList.add("error");
  place.textContent = error instanceof Refusal ? error.message : `The page failed: ${error?.message || error}`;
}

export function say(place, text) { place.classList.remove("error"); place.textContent = text; }

export function refuse(text, place) { notice(new Refusal(text, 0), place); }

export function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text, selected: String(value) === String(chosen) })));
}

// Chips, of which at most one is chosen.
export function chips(place, texts, chosen, onchoose) {
  place.replaceChildren(...texts.map((one) => element("button", {
    type: "button", className: "chip", textContent: one, "aria-pressed": String(one === chosen), onclick: () => onchoose(one),
  })));
}

export function press(place, text) { for (const one of place.children) one.setAttribute("aria-pressed", String(one.textContent === text && text !== "")); }

// Shows words that are in no training caption, with buttons that replace them by the nearest known
// words.
export function tellWords(place, words, field) {
  const told = Object.entries(words || {}), near = told.filter(([, one]) => one);
  place.hidden = !told.length;
  if (!told.length) return;
  const listed = (parts, last) => parts.flatMap((part, number) => [...(number ? [number === parts.length - 1 ? last : ", "] : []), part]);
  place.replaceChildren(
    ...listed(told.map(([word]) => element("b", { textContent: `'${word}'` })), " and "),
    ` ${told.length === 1 ? "is" : "are"} not in the training captions, so the model has not learnt what ` +
      `${told.length === 1 ? "it means" : "they mean"}.`,
    ...(near.length ? [" Did you mean ", ...listed(near.map(([word, one]) => element("button", { type: "button", className: "link", textContent: one, onclick: () => replaceWord(field, word, one, place) })), " or "), "?"] : []),
  );
}

function replaceWord(field, word, near, place) {
  const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  field.value = field.value.replace(new RegExp(`(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "giu"), near);
  place.hidden = true;
  field.focus();
}

// The part of a file that the model sees, as a canvas: the largest centred crop in the model's
// aspect ratio. `size` is in pixels; without it, the canvas has the size to send.
export async function opened(file, size = null) {
  const { facts } = state;
  if (!file) throw new Refusal("No file was chosen.", 0);
  if (!facts) throw new Refusal(NO_MODEL, 0);
  if (file.size > facts.limits.body_bytes) throw new Refusal(`This file is too large: ${Math.round(file.size / 2 ** 20)} MiB, at most ${Math.floor(facts.limits.body_bytes / 2 ** 20)} MiB.`, 0);
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { throw new Refusal("This file can't be read as a picture. Choose a PNG, JPEG, WebP, GIF or BMP.", 0); }
  const [width, height] = facts.size;
  const scale = Math.min(bitmap.width / width, bitmap.height / height);
  const seen = [width * scale, height * scale];
  const smaller = Math.min(1, LONGEST_SIDE / Math.max(...seen));
  const [own_width, own_height] = size ?? seen.map((side) => Math.max(1, Math.round(side * smaller)));
  const canvas = element("canvas", { width: own_width, height: own_height });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; context.fillRect(0, 0, canvas.width, canvas.height); context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - seen[0]) / 2, (bitmap.height - seen[1]) / 2, seen[0], seen[1], 0, 0, canvas.width, canvas.height);
  return canvas;
}

export function blobOf(source) {
  const [head, data] = source.split(",");
  return new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type: head.slice(5, head.indexOf(";")) });
}
