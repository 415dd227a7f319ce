// The page: its views, the model's facts, and what each form asks the server for.

import { Refusal, get, post, stream } from "/api.js";
import { Brush } from "/brush.js";
import * as history from "/history.js";
import { Card, element, empty } from "/results.js";

const $ = (id) => document.getElementById(id);
const GENERATE = "/v1/images/generations", EDIT = "/v1/images/edits", CHAT = "/v1/chat/completions";
const LONGEST_SIDE = 512;
let facts = null, style = "", byHand = null, working = null, edited = null, lookedAt = null;
let loading = Promise.resolve();  // the facts of a model
let opening = Promise.resolve();  // a file that is being read
const brush = new Brush($("canvas"), $("brush"));

// ---- views

function show(view) {
  for (const one of document.querySelectorAll(".view")) one.hidden = one.id !== `view-${view}`;
  for (const tab of document.querySelectorAll("#tabs button")) tab.toggleAttribute("aria-current", tab.dataset.view === view);
  document.querySelector(`#tabs [data-view=${view}]`).setAttribute("aria-current", "page");
  if (view === "history") showHistory();
}

function notice(error, place) {
  if (error?.name === "AbortError") { place.textContent = "Stopped."; return; }
  place.classList.add("error");
  place.textContent = error instanceof Refusal ? error.message : `The page failed: ${error?.message || error}`;
}

function say(place, text) { place.classList.remove("error"); place.textContent = text; }

function theme(dark) { document.documentElement.dataset.theme = dark ? "dark" : "light"; }

// ---- the model

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text, selected: String(value) === String(chosen) })));
}

async function useModel(name) {
  facts = await get(`/studio/facts?model=${encodeURIComponent(name)}`);
  const { limits, sampler, size } = facts;
  const upTo = (most) => Array.from({ length: most }, (_, place) => [place + 1, place + 1]);
  options($("number"), upTo(limits.n), Math.min(Number($("number").value) || 4, limits.n));
  options($("edit-number"), upTo(limits.n), Math.min(Number($("edit-number").value) || 1, limits.n));
  const times = [1, 2, 4, 8].filter((factor) => factor === 1 || Math.max(...size) * factor <= limits.side);
  options($("size"), times.map((factor) => [`${size[0] * factor}x${size[1] * factor}`, `${size[0] * factor} × ${size[1] * factor}`]), `${size[0]}x${size[1]}`);
  options($("candidates"), (facts.reranker ? upTo(Math.min(limits.candidates, limits.at_once)) : [[1, "1"]]), facts.candidates);
  options($("sampler"), [["", sampler.name ? `${sampler.name} (the model's)` : "the model's"], ...facts.samplers.filter((one) => one !== sampler.name).map((one) => [one, one])], "");
  for (const [id, key] of [["guidance", "guidance_scale"], ["temperature", "temperature"]]) {
    $(id).disabled = sampler.keys[key] === undefined;
    $(id).placeholder = sampler.keys[key] ?? "";
  }
  $("retrieved").disabled = !facts.retrieves;
  $("retrieved").placeholder = facts.retrieves ? "the model's" : "no memory";
  $("prompt").maxLength = $("edit-text").maxLength = limits.prompt_characters;
  style = "";
  $("styles-field").hidden = !facts.styles.length;
  $("styles").replaceChildren(...facts.styles.map((one) => element("button", {
    type: "button", className: "chip", textContent: one, "aria-pressed": "false",
    onclick: (event) => chooseStyle(style === one ? "" : one, event.currentTarget),
  })));
  const things = facts.examples.map((text) => facts.styles.reduce((rest, one) => (rest.endsWith(`, ${one}`) ? rest.slice(0, -one.length - 2) : rest), text));
  const shown = [...new Set(things)].slice(0, 4);
  $("examples").replaceChildren(...(shown.length ? ["Try ", ...shown.flatMap((text, place) => [...(place ? [", "] : []), element("button", {
    type: "button", className: "link", textContent: text, onclick: () => { $("prompt").value = text; if (!style && facts.styles.length) chooseStyle(facts.styles[0], $("styles").firstChild); },
  })])] : []));
  const edits = facts.tasks.includes("edit");
  $("edit-hint").textContent = edits ? "Painted: only that part is filled. Nothing painted: the text is an instruction." : "Paint over the part to fill. Left empty, the model describes the picture itself.";
  $("question-field").hidden = !facts.tasks.includes("ask");
}

function chooseStyle(text, chip) {
  style = text;
  for (const one of $("styles").children) one.setAttribute("aria-pressed", String(one === chip && text !== ""));
}

// ---- pictures

function sampling() {
  const body = { model: $("model").value };
  const seed = $("seed").value.trim();
  if (seed) body.seed = seed;
  if ($("guidance").value !== "") body.guidance_scale = $("guidance").valueAsNumber;
  if ($("temperature").value !== "") body.sampling = { temperature: $("temperature").valueAsNumber };
  if ($("sampler").value) body.sampler = $("sampler").value;
  if ($("negative").value.trim()) body.negative_prompt = $("negative").value.trim();
  return body;
}

function drawRequest() {
  const body = { ...sampling(), prompt: $("prompt").value.trim() + (style ? `, ${style}` : ""), n: Number($("number").value) };
  if ($("size").selectedIndex > 0) body.size = $("size").value;
  if ($("candidates").value !== String(facts.candidates)) body.candidates = Number($("candidates").value);
  if ($("transparent").checked) body.background = "transparent";
  if (byHand) { body.documents = byHand; body.num_retrieved = 0; } else if ($("retrieved").value !== "") body.num_retrieved = $("retrieved").valueAsNumber;
  return body;
}

async function run(path, body, sort, parts, kept) {
  working?.abort();
  const stop = (working = new AbortController());
  const { status, cards, button, stopper } = parts;
  button.disabled = true; stopper.hidden = false;
  stopper.onclick = () => stop.abort();
  const made = Array.from({ length: body.n }, () => new Card(body.prompt));
  cards.replaceChildren(...made.map((card) => card.root));
  const started = performance.now();
  let done = 0;
  say(status, body.n === 1 ? "Drawing…" : `Drawing ${body.n} pictures…`);
  try {
    for await (const event of stream(path, { ...body, partial_images: 64, return_documents: true }, stop.signal)) {
      const source = `data:image/${event.output_format};base64,${event.b64_json}`;
      const card = made[event.index];
      if (event.type.endsWith("partial_image")) { card.grow(source, event.rows / event.all_rows); continue; }
      done += 1;
      const { images, mask, ...request } = body;
      const entry = { sort, source, seed: event.seed, choice: event.choice, request, words: body.prompt || event.revised_prompt || "" };
      card.finish(entry, actions);
      history.add(entry);
      if (sort === "draw" && done === 1) showDocuments(event.documents);
    }
    if (done < body.n) throw new Refusal("The connection broke in the middle of a picture. Draw it again.", 0);
    say(status, `${done === 1 ? "One picture" : `${done} pictures`} in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    notice(error, status);
    for (const card of made) if (!card.caption.querySelector("button")) card.root.remove();
    if (!cards.children.length) cards.append(empty(kept));
  } finally {
    if (working === stop) { working = null; button.disabled = false; stopper.hidden = true; }
  }
}

const EMPTY_DRAW = "Pictures appear here, row by row.";

async function draw(event) {
  event?.preventDefault();
  await loading;
  if (!facts || !$("draw-form").reportValidity()) return;
  run(GENERATE, drawRequest(), "draw", { status: $("draw-status"), cards: $("draw-cards"), button: $("draw"), stopper: $("stop") }, EMPTY_DRAW);
}

// ---- documents

function showDocuments(documents) {
  $("documents").hidden = !documents.length && !byHand;
  $("documents-list").replaceChildren(...documents.map((one) => documentOf(`data:image/png;base64,${one.b64_json}`, one.text, one.b64_json === null ? null : one.score)));
}

function documentOf(source, text, score) {
  const box = element("input", { type: "checkbox", checked: true });
  const words = element("span", { textContent: score === null || score === undefined ? text : `${text} (${score.toFixed(2)})` });
  const one = element("div", { className: "document" }, element("img", { src: source, alt: "" }), element("label", {}, box, words));
  Object.assign(one.dataset, { source, text });
  return one;
}

function chosenDocuments() {
  return [...$("documents-list").children].filter((one) => one.querySelector("input").checked).map((one) => ({ image_url: one.dataset.source, text: one.dataset.text }));
}

async function addDocument() {
  const input = element("input", { type: "file", accept: "image/*" });
  input.onchange = async () => {
    try {
      const picture = await opened(input.files[0]);
      const text = prompt("What does this picture show?");
      if (text) $("documents-list").append(documentOf(picture.toDataURL("image/png"), text, null));
    } catch (error) { notice(error, $("draw-status")); }
  };
  input.click();
}

// ---- pictures that are uploaded

// What the model sees of a file: its largest centred part in the model's aspect ratio, as a canvas.
async function opened(file) {
  if (!file) throw new Refusal("No file was chosen.", 0);
  if (file.size > facts.limits.body_bytes) throw new Refusal(`This file has ${Math.round(file.size / 2 ** 20)} MiB; at most ${Math.floor(facts.limits.body_bytes / 2 ** 20)} are taken.`, 0);
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { throw new Refusal("This file can't be read as a picture. Choose a PNG, JPEG, WebP, GIF or BMP.", 0); }
  const [width, height] = facts.size;
  const scale = Math.min(bitmap.width / width, bitmap.height / height);
  const seen = [width * scale, height * scale];
  const smaller = Math.min(1, LONGEST_SIDE / Math.max(...seen));
  const canvas = element("canvas", { width: Math.max(1, Math.round(seen[0] * smaller)), height: Math.max(1, Math.round(seen[1] * smaller)) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; context.fillRect(0, 0, canvas.width, canvas.height); context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - seen[0]) / 2, (bitmap.height - seen[1]) / 2, seen[0], seen[1], 0, 0, canvas.width, canvas.height);
  return canvas;
}

function openForEdit(file) { return (opening = readForEdit(file)); }
function openForLook(file) { return (opening = readForLook(file)); }

async function readForEdit(file) {
  say($("edit-status"), "");
  try {
    edited = await opened(file);
    brush.open(edited); $("painting").hidden = false; $("edit-cards").replaceChildren();
  } catch (error) { notice(error, $("edit-status")); }
}

async function readForLook(file) {
  say($("look-status"), "");
  try { lookedAt = (await opened(file)).toDataURL("image/png"); $("look-picture").src = lookedAt; $("look-picture").hidden = false; } catch (error) { notice(error, $("look-status")); }
}

async function edit(event) {
  event.preventDefault();
  await opening;
  if (!edited) { notice(new Refusal("Choose a picture first.", 0), $("edit-status")); return; }
  const mask = await brush.exported();
  if (!mask && !facts.tasks.includes("edit")) { notice(new Refusal("Paint over the part that should be filled.", 0), $("edit-status")); return; }
  const body = { model: $("model").value, n: Number($("edit-number").value), images: [{ image_url: edited.toDataURL("image/png") }] };
  if (mask) body.mask = { image_url: mask };
  if ($("edit-text").value.trim()) body.prompt = $("edit-text").value.trim();
  if ($("edit-seed").value.trim()) body.seed = $("edit-seed").value.trim();
  run(EDIT, body, mask ? "fill" : "edit", { status: $("edit-status"), cards: $("edit-cards"), button: $("edit"), stopper: $("edit-stop") }, "The result appears here.");
}

async function look(event) {
  event?.preventDefault();
  await opening;
  if (!lookedAt) { notice(new Refusal("Choose a picture first.", 0), $("look-status")); return; }
  const question = $("question-field").hidden ? "" : $("question").value.trim();
  const content = [...(question ? [{ type: "text", text: question }] : []), { type: "image_url", image_url: { url: lookedAt } }];
  $("look").disabled = true;
  say($("look-status"), "Looking…");
  try {
    const answer = await post(CHAT, { model: $("model").value, messages: [{ role: "user", content }], modalities: ["text"] });
    const text = answer.choices[0].message.content;
    $("answers").prepend(element("li", {}, element("img", { src: lookedAt, alt: "" }), element("div", {},
      ...(question ? [element("div", { className: "hint", textContent: question })] : []), element("q", { textContent: text || "(nothing)" }))));
    say($("look-status"), "");
  } catch (error) { notice(error, $("look-status")); } finally { $("look").disabled = false; }
}


function blobOf(source) {
  const [head, data] = source.split(",");
  return new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type: head.slice(5, head.indexOf(";")) });
}

const actions = {
  edit(entry) { show("edit"); $("edit-text").value = entry.words; openForEdit(blobOf(entry.source)); },
  async look(entry) { show("look"); await openForLook(blobOf(entry.source)); look(); },
};

async function showHistory() {
  const cards = (await history.all()).map((entry) => { const card = new Card(entry.words); card.finish(entry, actions); return card.root; });
  $("history-cards").replaceChildren(...(cards.length ? cards : [empty("Nothing has been drawn in this browser yet.")]));
}

// ---- links

function readLink() {
  const [view, query] = location.hash.slice(1).split("?");
  if (!["draw", "edit", "look", "history"].includes(view)) return;
  show(view);
  if (!query) return;
  const values = new URLSearchParams(query);
  const fields = { prompt: "prompt", seed: "seed", guidance_scale: "guidance", temperature: "temperature", negative_prompt: "negative", sampler: "sampler", num_retrieved: "retrieved", size: "size" };
  for (const [key, id] of Object.entries(fields)) if (values.has(key)) $(id).value = values.get(key);
  chooseStyle("", null);
  $("transparent").checked = values.get("background") === "transparent";
  $("number").value = "1";
}

async function start() {
  theme(localStorage.getItem("cm3-theme") ? localStorage.getItem("cm3-theme") === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  $("theme").onclick = () => { const dark = document.documentElement.dataset.theme !== "dark"; theme(dark); localStorage.setItem("cm3-theme", dark ? "dark" : "light"); };
  for (const tab of document.querySelectorAll("#tabs button")) tab.onclick = () => { location.hash = tab.dataset.view; show(tab.dataset.view); };
  $("draw-form").onsubmit = draw; $("edit-form").onsubmit = edit; $("look-form").onsubmit = look;
  $("prompt").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw(event); };
  $("undo").onclick = () => brush.undo(); $("clear").onclick = () => brush.clear(); $("invert").onclick = () => brush.invert();
  $("edit-file").onchange = () => openForEdit($("edit-file").files[0]);
  $("look-file").onchange = () => openForLook($("look-file").files[0]);
  $("redraw").onclick = () => { byHand = chosenDocuments(); draw(); };
  $("add-document").onclick = addDocument;
  $("forget-documents").onclick = () => { byHand = null; draw(); };
  $("forget").onclick = async () => { await history.clear(); showHistory(); };
  const dropped = (file) => { if (!file) return; if (!$("view-look").hidden) openForLook(file); else { show("edit"); openForEdit(file); } };
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); dropped(event.dataTransfer.files[0]); });
  addEventListener("paste", (event) => dropped([...event.clipboardData.files][0]));
  addEventListener("hashchange", readLink);
  $("draw-cards").append(empty(EMPTY_DRAW));
  try {
    const models = (await get("/v1/models")).data.map((one) => one.id);
    const wanted = new URLSearchParams(location.hash.split("?")[1]).get("model");
    options($("model"), models.map((name) => [name, name]), models.includes(wanted) ? wanted : models[0]);
    const change = () => (loading = load());
    const load = async () => { try { say($("draw-status"), "Loading the model…"); await useModel($("model").value); say($("draw-status"), ""); } catch (error) { notice(error, $("draw-status")); } };
    $("model").onchange = change;
    await change();
    readLink();
    document.documentElement.dataset.ready = "yes";
  } catch (error) { $("notice").hidden = false; notice(error, $("notice")); }
}

start();
