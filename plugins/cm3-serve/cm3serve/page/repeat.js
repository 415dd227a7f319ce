// Repeating a picture: a link, a command, and Python code, with the files that they need for
// download.

import { state } from "/common.js";
import { download, element } from "/results.js";

export function quoted(text) { return /^[\w./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`; }

// An option with its value. A value that begins with a dash would be read as another option.
function option(name, value) { return String(value).startsWith("-") ? `${name}=${quoted(String(value))}` : `${name} ${quoted(String(value))}`; }

// A command with its options before "--": arguments after it are never options, even if they begin
// with a dash.
function command(name, options, ...given) { return ["cm3", name, ...options, "--", ...given.map(quoted)].join(" "); }

// JSON's strings are valid in Python.
function python(value) { return typeof value === "string" ? JSON.stringify(value) : typeof value === "boolean" ? (value ? "True" : "False") : String(value); }

export function linkOf(request) {
  const query = new URLSearchParams();
  for (const key of ["prompt", "model", "seed", "guidance_scale", "negative_prompt", "sampler", "num_retrieved", "size", "background"])
    if (request[key] !== undefined) query.set(key, request[key]);
  query.set("candidates", 1);  // the seed belongs to the chosen candidate
  if (request.sampling?.temperature !== undefined) query.set("temperature", request.sampling.temperature);
  if (request.draw) query.set("draw", "true");
  if (request.boxes) query.set("boxes", JSON.stringify(request.boxes));
  return `${location.origin}/#draw?${query}`;
}

function sampler(request) {
  const sampling = { ...(request.sampling || {}) };
  for (const key of ["guidance_scale", "negative_prompt"]) if (request[key] !== undefined) sampling[key] = request[key];
  return sampling;
}

// A value of --set is YAML, so strings are quoted.
function setting([key, value]) { return quoted(`sampler.${key}=${typeof value === "string" ? JSON.stringify(value) : value}`); }

function common(request) {
  const words = [];
  if (request.sampler) words.push(option("--sampler", request.sampler));
  if (request.num_retrieved !== undefined) words.push(`--num-retrieved ${request.num_retrieved}`);
  for (const [place, document] of (request.documents || []).entries()) words.push(`--context document-${place}.png ${quoted(document.text)}`);
  for (const one of Object.entries(sampler(request))) words.push("--set", setting(one));
  return words;
}

// The command, or "" if there is none.
export function commandOf(entry) {
  const { request, sort } = entry;
  if (entry.task || isUnsayable(entry)) return "";
  const how = [option("--model", request.model), `--seed ${entry.seed}`];
  if (sort === "chat") return entry.begins ? ["cm3 chat", option("--message", request.prompt), `--answer ${entry.answer}`, ...how, "-o out/"].join(" ") : "";
  how.push("--candidates 1", ...common(request));
  if (sort === "fill") return command("infill", ["--mask mask.png", ...(request.prompt ? [option("--text", request.prompt)] : []), ...how, "-o filled.png"], "picture.png");
  if (request.size && state.facts?.upscaler) how.push("--upscale");
  if (sort === "draw" && request.background === "transparent") how.push("--transparent");
  if (request.draw) how.push("--draw");
  how.unshift("--n 1");
  how.push("-o out/");
  return sort === "draw" ? command("generate", how, request.prompt) : command("edit", how, "picture.png", request.prompt);
}

// What Python's argparse can't read as a value: of an option of two values what looks like an option, of any "--".
function isUnsayable({ sort, request: { documents = [], model, prompt, sampler } }) {
  const values = [model, sampler, ...(sort === "draw" ? [] : [prompt])];
  return values.includes("--") || documents.some(({ text }) => /^-\S*$/.test(text));
}

export function pythonOf(entry) {
  const request = entry.request, keys = [`seed=${entry.seed}`];
  if (request.sampler) keys.push(`sampler=${python(request.sampler)}`);
  const settings = Object.entries(sampler(request)).map(([key, value]) => `${key}=${python(value)}`);
  const head = `import cm3core\n\nmodel = cm3core.load(${python(request.model)})\n`;
  if (entry.sort === "chat") return entry.begins ? `${head}reply = model.chat(${python(request.prompt)}, answer=${python(entry.answer)}, seed=${entry.seed})\npixels = reply.pictures[${entry.number}].pixels` : "";
  if (entry.task) {
    const record = Object.entries({ ...entry.record, ...(entry.given?.["condition.png"] ? { condition: "condition.png" } : {}) });
    return `${head}record = {${record.map(([key, value]) => `${python(key)}: ${python(value)}`).join(", ")}}\npixels = model.do(${python(entry.task)}, record, ${[...keys, ...settings].join(", ")})["image"]`;
  }
  keys.push("num_candidates=1");
  if (request.num_retrieved !== undefined) keys.push(`num_retrieved=${request.num_retrieved}`);
  if (request.documents?.length) keys.push(`context=[${request.documents.map((one, place) => `("document-${place}.png", ${python(one.text)})`).join(", ")}]`);
  if (request.draw) keys.push("draw=True");
  keys.push(...settings);
  const call = entry.sort === "draw" ? `model.generate(${python(request.prompt)}, 1, ${keys.join(", ")})[0]`
    : entry.sort === "fill" ? `model.infill("picture.png", text=${request.prompt ? python(request.prompt) : "None"}, mask="mask.png", ${keys.join(", ")})`
      : `model.edit("picture.png", ${python(request.prompt)}, 1, ${keys.join(", ")})[0]`;
  return `${head}picture = ${call}\npixels = picture.pixels`;
}

async function copy(button) {
  const field = document.getElementById(button.dataset.copy);
  // Pages from another machine without TLS have no clipboard API; execCommand works there.
  try { await navigator.clipboard.writeText(field.value); } catch { field.select(); document.execCommand("copy"); }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

export function startRepeat() { for (const button of document.querySelectorAll("[data-copy]")) button.onclick = () => copy(button); }

function show(link, shell, lines, note, given = {}) {
  const fields = { link, command: shell, python: lines };
  for (const [name, text] of Object.entries(fields)) {
    document.getElementById(`repeat-${name}-part`).hidden = !text;
    document.getElementById(`repeat-${name}`).value = text;
  }
  document.getElementById("repeat-note").textContent = note;
  const files = Object.entries(given);
  document.getElementById("repeat-files").hidden = !files.length;
  document.getElementById("repeat-files").replaceChildren("Files to download: ", ...files.map(([name, source]) => element("button", { type: "button", textContent: name, "aria-label": `Download ${name}`, onclick: () => download(source, name) })));
  document.getElementById("repeat").showModal();
}

export function showRepeat(entry) {
  const given = entry.given || {};
  const isLinked = entry.sort === "draw" && !entry.request.documents?.length && !entry.given?.["condition.png"];
  const notes = [];
  if (entry.sort === "chat") notes.push(entry.begins ? "To repeat it, begin a conversation with the same message." : `It is part of a conversation: to repeat it, repeat the whole conversation. The reply's seed is ${entry.seed}.`);
  else if (!isLinked) notes.push("A link can't contain pictures: download the files below.");
  if (entry.task) notes.push("There is no command for this task.");
  if (isUnsayable(entry)) notes.push("There is no command for this text, because it begins with a dash.");
  if (entry.request.size) notes.push("The picture on the page was resized.");
  show(isLinked ? linkOf({ ...entry.request, seed: entry.seed }) : "", commandOf(entry), pythonOf(entry), notes.join(" "), given);
}

// Shows how to repeat a whole set.
export function showSet(body) {
  const query = new URLSearchParams({ things: body.things.join("\n"), model: body.model, seed: body.seed });
  if (body.style) query.set("style", body.style);
  const words = [...(body.style ? [option("--style", body.style)] : []), "--n 1", option("--model", body.model), `--seed ${body.seed}`];
  if (body.candidates) words.push(`--candidates ${body.candidates}`);
  if (body.size && state.facts?.upscaler) words.push("--upscale");
  words.push(...body.formats.filter((one) => one !== "png").map((one) => `--${one}`), "--zip", "-o out/");
  const prompts = body.things.map((one) => python(body.style ? `${one}, ${body.style}` : one)).join(", ");
  const candidates = body.candidates ? `, num_candidates=${body.candidates}` : "";
  const lines = `import cm3core\n\nmodel = cm3core.load(${python(body.model)})\npictures = model.generate([${prompts}], 1, seed=${body.seed}${candidates})`;
  show(`${location.origin}/#set?${query}`, command("generate", words, ...body.things), lines, "");
}
