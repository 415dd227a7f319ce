// The page: its views, the model's facts, drawing and editing. Sets, conditions and conversations
// are in separate files.

import { FACTS, NOT_LOADED, Refusal, get, post } from "/api.js";
import { Brush } from "/brush.js";
import { $, EDIT, GENERATE, NO_MODEL, blobOf, can, chips, notice, opened, options, press, refuse, say, state, tellWords } from "/common.js";
import { conditionOf, offerConditions, putBoxes, startConditions } from "/condition.js";
import { run } from "/drawing.js";
import * as history from "/history.js";
import { look, offerLook, openForLook, startLook } from "/look.js";
import { startRepeat } from "/repeat.js";
import { Card, element, empty } from "/results.js";
import { offerSets, startSets } from "/sets.js";

const VIEWS = ["draw", "set", "edit", "look", "history"];
const SHOWN = 256;  // least side in pixels if there is an upscaler
const EMPTY_DRAW = "Pictures appear here, row by row.", EMPTY_EDIT = "The result appears here.", CANT_EDIT = "This model can't edit pictures.";
let style = "", byHand = null, edited = null, lastSeed = null;
let opening = Promise.resolve();  // the file being read
window.cm3 = state;  // for the browser's console
const brush = new Brush($("canvas"), $("brush"));

// ---- views

function show(view) {
  if ($(`view-${view}`).hidden) scrollTo(0, 0);
  for (const one of VIEWS) $(`view-${one}`).hidden = one !== view;
  for (const tab of document.querySelectorAll("#tabs button")) tab.dataset.view === view ? tab.setAttribute("aria-current", "page") : tab.removeAttribute("aria-current");
  if (view === "history") showHistory();
}

function theme(dark) { document.documentElement.dataset.theme = dark ? "dark" : "light"; }

// ---- the model

// Shows a model's facts. Unless it `loads`, a model that is not in memory is refused with status 409.
async function useModel(name, loads) {
  const facts = (state.facts = await (loads ? post(FACTS, { model: name }) : get(`${FACTS}?model=${encodeURIComponent(name)}`)));
  const { limits, sampler, size } = facts;
  const upTo = (most) => Array.from({ length: most }, (_, place) => [place + 1, place + 1]);
  options($("number"), upTo(limits.n), Math.min(Number($("number").value) || 4, limits.n));
  options($("edit-number"), upTo(limits.n), Math.min(Number($("edit-number").value) || 1, limits.n));
  const times = [1, 2, 4, 8].filter((factor) => factor === 1 || Math.max(...size) * factor <= limits.side);
  const sizes = times.map((factor) => [`${size[0] * factor}x${size[1] * factor}`, `${size[0] * factor} × ${size[1] * factor}`]);
  // With an upscaler, the default size is larger than the model's own.
  const chosen = (facts.upscaler && sizes.find(([, text]) => parseInt(text) >= SHOWN)) || sizes[0];
  options($("size"), sizes, chosen[0]);
  options($("candidates"), (facts.reranker ? upTo(Math.min(limits.candidates, limits.at_once)) : [[1, "1"]]), facts.candidates);
  options($("sampler"), [["", sampler.name ? `${sampler.name} (the model's default)` : "the model's default"], ...facts.samplers.filter((one) => one !== sampler.name).map((one) => [one, one])], "");
  for (const [id, key] of [["guidance", "guidance_scale"], ["temperature", "temperature"]]) {
    $(id).disabled = sampler.keys[key] === undefined;
    $(id).placeholder = sampler.keys[key] ?? "";
  }
  $("always-draw-field").hidden = !facts.answers;
  $("retrieved").disabled = !facts.retrieves;
  $("retrieved").placeholder = facts.retrieves ? "the model's default" : "no memory";
  $("prompt").maxLength = $("edit-text").maxLength = limits.prompt_characters;
  $("styles-field").hidden = !facts.styles.length;
  chooseStyle("");
  chips($("styles"), facts.styles, "", (text) => chooseStyle(style === text ? "" : text));
  const shown = facts.things.slice(0, 4);
  $("examples").replaceChildren(...(shown.length ? ["Try ", ...shown.flatMap((text, place) => [...(place ? [", "] : []), element("button", {
    type: "button", className: "link", textContent: text, onclick: () => { $("prompt").value = text; if (!style && facts.styles.length) chooseStyle(facts.styles[0]); },
  })])] : []));
  const draws = can("draw");
  $("draw-missing").hidden = draws;
  if (!draws) $("draw-missing").textContent = "This model was not tuned to draw from a prompt alone.";
  $("edit-hint").textContent = !can("fill") ? (can("edit") ? "Enter an instruction. This model can't fill a painted part." : CANT_EDIT) : can("edit") ? "If you paint over a part, only that part changes. If you paint nothing, the text is an instruction." : "Paint over the part to change. Without a text, the model writes its own caption.";
  offerConditions(); offerSets(upTo, sizes, chosen[0]); offerLook();
  for (const id of ["draw-words", "set-words", "edit-words"]) $(id).hidden = true;
}

function loadModel(loads) { return (state.loading = changeModel($("model").value, loads)); }

async function changeModel(name, loads) {
  $("notice").hidden = true;
  try { say($("draw-status"), "Loading the model…"); await useModel(name, loads); say($("draw-status"), ""); } catch (error) {
    if (error.status === NOT_LOADED && !loads) offerLoading(name); else notice(error, $("draw-status"));
  }
}

function offerLoading(name) {
  say($("draw-status"), "");
  const onclick = async () => { await loadModel(true); readLink(); };
  $("notice").classList.remove("error");
  $("notice").replaceChildren(`The model ${name} is not in memory. `, element("button", { type: "button", id: "load", className: "link", textContent: "Load it", onclick }));
  $("notice").hidden = false;
}

function chooseStyle(text) { style = text; press($("styles"), text); }

// ---- drawing

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
  const body = { ...sampling(), prompt: $("prompt").value.trim() + (style ? `, ${style}` : ""), n: Number($("number").value), ...conditionOf() };
  if ($("size").selectedIndex > 0) body.size = $("size").value;
  if ($("candidates").value !== String(state.facts.candidates)) body.candidates = Number($("candidates").value);
  if ($("transparent").checked) body.background = "transparent";
  if (state.facts.answers && $("always-draw").checked) body.draw = true;
  if (byHand) { body.documents = byHand; body.num_retrieved = 0; } else if ($("retrieved").value !== "") body.num_retrieved = $("retrieved").valueAsNumber;
  return body;
}

// The request without its pictures, and the pictures as files by name, for the history and for
// "Repeat".
async function given(body) {
  const { images, mask, documents, condition, ...request } = body;
  const files = {};
  if (images) files["picture.png"] = images[0].image_url;
  if (mask) files["mask.png"] = await brush.whiteMask();
  if (condition) files["condition.png"] = condition.image_url;
  for (const [place, one] of (documents || []).entries()) files[`document-${place}.png`] = one.image_url;
  if (documents) request.documents = documents.map(({ text }) => ({ text }));
  return { request, given: files };
}

async function draw(event, seed = null) {
  event?.preventDefault();
  await state.loading;
  if (!state.facts) { refuse(NO_MODEL, $("draw-status")); return; }
  if (!$("draw-form").reportValidity()) return;
  let body;
  try { body = drawRequest(); } catch (error) { notice(error, $("draw-status")); return; }
  if (seed !== null) body.seed ??= seed;
  drawWith(GENERATE, body, "draw", { status: $("draw-status"), cards: $("draw-cards"), button: $("draw"), stopper: $("stop") }, EMPTY_DRAW, $("draw-words"), $("prompt"));
}

async function drawWith(path, body, sort, view, kept, words, field) {
  tellWords(words, {}, field);  // of the picture before
  const own = await given(body);
  let isFirst = true, isTold = false;
  run({
    path, body: { ...body, partial_images: 64, return_documents: true, ...(state.facts.svg ? { return_svg: true } : {}) }, words: Array(body.n).fill(body.prompt), view, kept, actions,
    // A drawn picture of a prompt that might be answered with an original is repeated by drawing.
    entryOf: (picture) => ({ sort, ...own, ...(picture.answer && picture.answer.kind !== "found" ? { request: { ...own.request, draw: true } } : {}), words: body.prompt || picture.revised_prompt || "", ...(picture.task ? { task: picture.task, record: picture.record } : {}) }),
    onevent: (one) => {
      if (!isTold) tellWords(words, one.unknown_words, field);  // only once: a later event would show replaced words again
      isTold = true;
      if (sort !== "draw" || !one.documents) return;
      if (one.index === 0) lastSeed = one.seed;
      if (one.answer?.kind === "found") { if (isFirst) $("documents").hidden = true; return; }  // nothing was prepended
      if (isFirst) { if (one.task) $("documents").hidden = true; else showDocuments(one.documents); }
      isFirst = false;
    },
  });
}

// ---- documents

function showDocuments(documents) {
  $("documents").hidden = !state.facts.retrieves && !documents.length && !byHand;
  const query = documents.find((one) => one.looked_for)?.looked_for;
  $("documents-hint").textContent = !documents.length ? "None: the memory has nothing close to the prompt, or you asked for no documents. Add your own and draw again with the same seed."
    : byHand ? "Your selection is used for every picture, until you use retrieved documents again." : `Retrieved for ${query ? `“${query}”` : "the prompt"} and prepended to it. Remove some or add your own, and draw again with the same seed.`;
  $("forget-documents").hidden = !byHand;
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

function askDocument() {
  $("document-form").reset(); say($("document-status"), "");
  $("document-dialog").showModal();
}

async function addDocument(event) {
  event.preventDefault();
  try {
    const text = $("document-text").value.trim();
    if (!text) throw new Refusal("Enter a caption for the picture.", 0);
    const picture = await opened($("document-file").files[0], state.facts.size);
    $("documents-list").append(documentOf(picture.toDataURL("image/png"), text, null));
    $("document-dialog").close();
  } catch (error) { notice(error, $("document-status")); }
}

// ---- editing

function openForEdit(file) { return (opening = readForEdit(file)); }

async function readForEdit(file) {
  say($("edit-status"), "");
  try {
    edited = await opened(file);
    brush.open(edited); $("painting").hidden = false; $("edit-cards").replaceChildren();
  } catch (error) { notice(error, $("edit-status")); }
}

async function edit(event) {
  event.preventDefault();
  await opening;
  if (!edited) { refuse("Choose a picture first.", $("edit-status")); return; }
  const mask = await brush.exported(), text = $("edit-text").value.trim();
  if (!can("fill") && (mask || !can("edit"))) { refuse(can("edit") ? "This model can't fill a part: clear the painting." : CANT_EDIT, $("edit-status")); return; }
  if (!mask && !can("edit")) { refuse("Paint over the part to change.", $("edit-status")); return; }
  if (!mask && !text) { refuse("Enter an instruction, or paint over the part to change.", $("edit-status")); return; }
  const body = { model: $("model").value, n: Number($("edit-number").value), images: [{ image_url: edited.toDataURL("image/png") }] };
  if (mask) body.mask = { image_url: mask };
  if (text) body.prompt = text;
  if ($("edit-seed").value.trim()) body.seed = $("edit-seed").value.trim();
  drawWith(EDIT, body, mask ? "fill" : "edit", { status: $("edit-status"), cards: $("edit-cards"), button: $("edit"), stopper: $("edit-stop") }, EMPTY_EDIT, $("edit-words"), $("edit-text"));
}

const actions = {
  edit(entry) { location.hash = "edit"; show("edit"); $("edit-text").value = entry.words; openForEdit(blobOf(entry.source)); },
  async look(entry) { location.hash = "look"; show("look"); await openForLook(blobOf(entry.source)); $("question").value = ""; $("answer-with").value = "text"; look(); },
};

async function showHistory() {
  const cards = (await history.all()).map((entry) => { const card = new Card(entry.words); card.finish(entry, actions); return card.root; });
  $("forget").hidden = !cards.length;
  $("history-cards").replaceChildren(...(cards.length ? cards : [empty("Nothing has been drawn in this browser yet.")]));
}

// ---- links

function readLink() {
  const [view, query] = location.hash.slice(1).split("?");
  if (!VIEWS.includes(view)) return;
  show(view);
  if (!query) return;
  const values = new URLSearchParams(query);
  const fields = view === "set" ? { things: "things", style: "set-style", seed: "set-seed" }
    : { prompt: "prompt", seed: "seed", guidance_scale: "guidance", temperature: "temperature", negative_prompt: "negative", sampler: "sampler", num_retrieved: "retrieved", size: "size", candidates: "candidates" };
  for (const [key, id] of Object.entries(fields)) if (values.has(key)) $(id).value = values.get(key);
  if (view === "set") { press($("set-styles"), $("set-style").value); return; }
  chooseStyle("");
  $("more").open = true;
  $("transparent").checked = values.get("background") === "transparent";
  $("always-draw").checked = values.get("draw") === "true";
  $("number").value = "1";
  try { if (values.has("boxes") && can("boxes")) putBoxes(JSON.parse(values.get("boxes"))); } catch { refuse("The boxes of this link can't be read.", $("draw-status")); }
}

function listen() {
  $("theme").onclick = () => { const dark = document.documentElement.dataset.theme !== "dark"; theme(dark); localStorage.setItem("cm3-theme", dark ? "dark" : "light"); };
  for (const tab of document.querySelectorAll("#tabs button")) tab.onclick = () => { location.hash = tab.dataset.view; show(tab.dataset.view); };
  $("draw-form").onsubmit = draw; $("edit-form").onsubmit = edit;
  $("prompt").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw(event); };
  $("undo").onclick = () => brush.undo(); $("clear").onclick = () => brush.clear(); $("invert").onclick = () => brush.invert();
  $("edit-file").onchange = () => openForEdit($("edit-file").files[0]);
  $("redraw").onclick = () => { byHand = chosenDocuments(); draw(null, lastSeed); };
  $("add-document").onclick = askDocument;
  $("document-form").onsubmit = addDocument; $("document-cancel").onclick = () => $("document-dialog").close();
  $("forget-documents").onclick = () => { byHand = null; draw(null, lastSeed); };
  $("forget").onclick = async () => { if (confirm("Delete all pictures that this browser keeps?")) { await history.clear(); showHistory(); } };
  const dropped = (file) => { if (!file) return; if (!$("view-look").hidden) openForLook(file); else { show("edit"); openForEdit(file); } };
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); dropped(event.dataTransfer.files[0]); });
  addEventListener("paste", (event) => dropped([...event.clipboardData.files][0]));
  addEventListener("hashchange", readLink);
}

async function start() {
  theme(localStorage.getItem("cm3-theme") ? localStorage.getItem("cm3-theme") === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  listen(); startRepeat(); startConditions(); startSets(actions); startLook(actions);
  $("draw-cards").append(empty(EMPTY_DRAW)); $("edit-cards").append(empty(EMPTY_EDIT));
  try {
    const models = (await get("/v1/models")).data.map((one) => one.id);
    const wanted = new URLSearchParams(location.hash.split("?")[1]).get("model");
    options($("model"), models.map((name) => [name, name]), models.includes(wanted) ? wanted : models[0]);
    $("model").onchange = () => loadModel(true);
    // Any site may link to this page. Opening it must not load a model, which can drop another one.
    await loadModel(false);
    readLink();
    document.documentElement.dataset.ready = "yes";
  } catch (error) { $("notice").hidden = false; notice(error, $("notice")); }
}

start();
