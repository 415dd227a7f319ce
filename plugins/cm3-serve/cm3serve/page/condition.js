// Conditions beside the prompt: boxes, drawn with the mouse or the keyboard, or a picture of a
// structure.

import { Refusal, post } from "/api.js";
import { $, CONDITIONS, blobOf, can, notice, opened, say, state } from "/common.js";
import { element } from "/results.js";

// Neighbouring grey levels that differ by more form an edge, as in the training data.
const EDGE = 64;
const COLOURS = ["#4f46e5", "#be185d", "#047857", "#b45309", "#0369a1", "#7c3aed"];
const SMALLEST = 0.02;

// Boxes on an empty picture, as fractions of it from 0 to 1.
class BoxPad {
  constructor(canvas, list) {
    this.canvas = canvas; this.list = list; this.boxes = []; this.chosen = null; this.from = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.from = this.at(event); this.chosen = null;
    });
    canvas.addEventListener("pointermove", (event) => { if (this.from && event.buttons) this.stretch(this.at(event)); });
    canvas.addEventListener("pointerup", (event) => {
      const [x, y] = this.at(event);
      if (this.chosen === null) { const hit = this.boxes.findLastIndex(({ box }) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]); if (hit >= 0) this.choose(hit); }
      this.from = null;
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => this.show());
  }

  at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height].map((one) => Math.min(1, Math.max(0, one)));
  }

  stretch([x, y]) {
    const box = [Math.min(x, this.from[0]), Math.min(y, this.from[1]), Math.max(x, this.from[0]), Math.max(y, this.from[1])];
    if (box[2] - box[0] < SMALLEST || box[3] - box[1] < SMALLEST) return;
    if (this.chosen === null) this.add(box); else { this.boxes[this.chosen].box = box; this.show(); }
  }

  add(box = [0.25, 0.25, 0.75, 0.75], label = "") {
    if (this.boxes.length >= COLOURS.length * 2) return;
    this.boxes.push({ label, box }); this.chosen = this.boxes.length - 1; this.rows(); this.show();
  }

  remove(place) { this.boxes.splice(place, 1); this.chosen = null; this.rows(); this.show(); }
  choose(place) { this.chosen = place; this.list.querySelectorAll("input")[place].focus(); this.show(); }

  // Arrow keys move the chosen box; with Shift they resize it.
  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Delete" && this.chosen !== null) { this.remove(this.chosen); event.preventDefault(); return; }
    if (!moves[event.key] || !this.boxes.length) return;
    this.chosen ??= this.boxes.length - 1;
    const box = this.boxes[this.chosen].box, [x, y] = moves[event.key].map((one) => one * 0.03);
    const inside = (value, least, most) => Math.min(most, Math.max(least, value));
    if (event.shiftKey) { box[2] = inside(box[2] + x, box[0] + SMALLEST, 1); box[3] = inside(box[3] + y, box[1] + SMALLEST, 1); } else {
      const [by_x, by_y] = [inside(x, -box[0], 1 - box[2]), inside(y, -box[1], 1 - box[3])];
      box[0] += by_x; box[2] += by_x; box[1] += by_y; box[3] += by_y;
    }
    event.preventDefault(); this.show();
  }

  rows() {
    this.list.replaceChildren(...this.boxes.map((one, place) => {
      const field = element("input", { value: one.label, placeholder: "object", "aria-label": `Object in box ${place + 1}`, oninput: () => { one.label = field.value; this.show(); }, onfocus: () => { this.chosen = place; this.show(); } });
      const mark = element("i"); mark.style.background = COLOURS[place % COLOURS.length];
      return element("li", {}, mark, field, element("button", { type: "button", textContent: "Remove", "aria-label": `Remove box ${place + 1}`, onclick: () => this.remove(place) }));
    }));
  }

  show() {
    const { width, height } = this.canvas, context = this.canvas.getContext("2d");
    context.fillStyle = "#fff"; context.fillRect(0, 0, width, height);
    context.textBaseline = "top"; context.font = `${Math.round(width / 20)}px system-ui, sans-serif`;
    for (const [place, { label, box }] of this.boxes.entries()) {
      const [x, y, right, below] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height];
      context.strokeStyle = context.fillStyle = COLOURS[place % COLOURS.length];
      context.lineWidth = place === this.chosen ? 5 : 2; context.setLineDash([]);
      context.globalAlpha = 0.12; context.fillRect(x, y, right - x, below - y); context.globalAlpha = 1;
      context.strokeRect(x, y, right - x, below - y);
      context.save(); context.beginPath(); context.rect(x, y, right - x, below - y); context.clip();
      context.fillText(label || `${place + 1}`, x + 6, y + 6); context.restore();
    }
  }
}

// The picture as the model sees it (`picture`), as it is sent to the server (`sent`), and the
// structure that the server drew of it.
let pad = null, picture = null, sent = null, structure = null, drawing = null;

// Black where neighbouring pixels differ, white elsewhere, like the edges in the training data.
export function edgesOf(canvas) {
  const { width, height } = canvas;
  const from = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const grey = new Float32Array(width * height);
  for (let place = 0; place < grey.length; place++) grey[place] = (from[4 * place] + from[4 * place + 1] + from[4 * place + 2]) / 3;
  const lines = element("canvas", { width, height }), context = lines.getContext("2d"), made = context.createImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const place = y * width + x;
    const down = y + 1 < height ? Math.abs(grey[place + width] - grey[place]) : 0;
    const right = x + 1 < width ? Math.abs(grey[place + 1] - grey[place]) : 0;
    made.data.set([...Array(3).fill(Math.max(down, right) > EDGE ? 0 : 255), 255], 4 * place);
  }
  context.putImageData(made, 0, 0);
  return lines;
}

function kind() { return $("condition-kind").value; }

// The condition that the server draws; undefined for the picture's edges or the picture itself,
// which this page draws.
function condition() { return state.facts?.conditions.find(({ name }) => name === $("structure-kind").value); }

function shownPicture() { return condition() ? structure : $("structure-kind").value === "own-edges" ? edgesOf(picture) : picture; }

// Requests the structure from the server; only the newest response is used.
async function drawStructure() {
  const wanted = condition();
  drawing?.abort(); drawing = structure = null;
  if (!wanted || !sent) { show(); return; }
  const mine = drawing = new AbortController();
  say($("condition-status"), "The server is drawing the structure…"); show();
  try {
    const answer = await post(CONDITIONS, { model: state.facts.model, condition: wanted.name, image_url: sent.toDataURL("image/png") }, mine.signal);
    const made = await opened(blobOf(`data:image/png;base64,${answer.b64_json}`), state.facts.size);
    if (drawing !== mine) return;
    structure = made; say($("condition-status"), "");
  } catch (error) { if (drawing === mine) notice(error, $("condition-status")); }
  if (drawing === mine) drawing = null;
  show();
}

function choose() {
  const how = $("structure-kind").value, field = $("feature");
  field.disabled = how === "own-edges";
  field.value = how === "own-edges" ? "edges" : condition()?.feature ?? "an outline";
  say($("condition-status"), "");
  drawStructure();
}

function show() {
  $("boxes-part").hidden = kind() !== "boxes";
  $("structure-part").hidden = kind() !== "structure";
  const source = picture && shownPicture(), preview = $("structure-preview");
  preview.hidden = !source;
  if (!source) return;
  preview.width = source.width; preview.height = source.height;
  preview.getContext("2d").drawImage(source, 0, 0);
}

async function open(file) {
  say($("condition-status"), "");
  picture = sent = null;
  try { [picture, sent] = [await opened(file, state.facts.size), await opened(file)]; await drawStructure(); } catch (error) { show(); notice(error, $("condition-status")); }
}

export function startConditions() {
  pad = new BoxPad($("pad"), $("boxes"));
  $("condition-kind").onchange = show; $("structure-kind").onchange = choose;
  $("add-box").onclick = () => { pad.add(); pad.choose(pad.boxes.length - 1); };
  $("structure-file").onchange = () => open($("structure-file").files[0]);
  pad.show(); show();
}

// Offers the conditions that the model was tuned for, and says which are missing.
export function offerConditions() {
  const [width, height] = state.facts.size;
  const known = [["", "nothing"], ...(can("boxes") ? [["boxes", "boxes"]] : []), ...(can("structure") ? [["structure", "a picture"]] : [])];
  const before = kind();
  $("condition-kind").replaceChildren(...known.map(([value, text]) => element("option", { value, textContent: text, selected: value === before })));
  $("condition-field").hidden = known.length === 1;
  $("condition-missing").hidden = known.length === 3;
  $("condition-missing").textContent = known.length === 1
    ? "This model draws from prompts only: it was not tuned to follow boxes (object_to_image) or a picture (structure)."
    : `This model was not tuned to follow ${can("boxes") ? "a picture (structure)" : "boxes (object_to_image)"}.`;
  pad.canvas.width = 480; pad.canvas.height = Math.round(480 * height / width);
  const ways = [["own-edges", "its edges, computed in this browser"], ["itself", "the picture itself"], ...state.facts.conditions.map(({ name, feature }) => [name, `its ${feature} (${name})`])];
  $("structure-kind").replaceChildren(...ways.map(([value, text]) => element("option", { value, textContent: text })));
  picture = sent = null; $("structure-file").value = "";
  pad.show(); choose();
}

// The fields of the request; throws a message if something is missing.
export function conditionOf() {
  if (kind() === "boxes") {
    if (!pad.boxes.length) throw new Refusal("Draw a box first, or choose “nothing”.", 0);
    if (pad.boxes.some(({ label }) => !label.trim())) throw new Refusal("Name the object in every box.", 0);
    return { boxes: pad.boxes.map(({ label, box }) => ({ label: label.trim(), box: box.map((one) => Math.round(one * 1e4) / 1e4) })) };
  }
  if (kind() === "structure") {
    if (!picture) throw new Refusal("Choose a picture to follow first, or choose “nothing”.", 0);
    if (!shownPicture()) throw new Refusal(drawing ? "The server is still drawing the structure. Wait a moment." : "The structure could not be drawn. Choose another structure or another picture.", 0);
    return { condition: { image_url: shownPicture().toDataURL("image/png"), feature: $("feature").value.trim() || "edges" } };
  }
  return {};
}

export function putBoxes(boxes) {
  pad.boxes = []; for (const { label, box } of boxes) pad.add(box, label);
  $("condition-kind").value = "boxes"; $("conditions").open = true; show();
}
