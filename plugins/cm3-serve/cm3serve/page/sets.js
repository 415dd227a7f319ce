// Sets: several things in one style, as pictures, as a grid, and as a zip.

import { $, NO_MODEL, SETS, chips, options, press, refuse, state, tellWords } from "/common.js";
import { run } from "/drawing.js";
import { showSet } from "/repeat.js";
import { download, element, empty } from "/results.js";

const EMPTY = "The pictures of the set appear here. You can download them together.";

// The things, one per line or separated by semicolons.
export function thingsOf(text) { return text.split(/[\n;]/).map((one) => one.trim()).filter(Boolean); }

function formats() { return ["png", ...["transparent", "svg"].filter((one) => $(`set-${one}`).checked)]; }

function requestOf() {
  const body = { model: $("model").value, things: thingsOf($("things").value), formats: formats() };
  if ($("set-style").value.trim()) body.style = $("set-style").value.trim();
  if ($("set-seed").value.trim()) body.seed = $("set-seed").value.trim();
  if ($("set-size").selectedIndex > 0) body.size = $("set-size").value;
  if ($("set-candidates").value !== String(state.facts.candidates)) body.candidates = Number($("set-candidates").value);
  return body;
}

async function draw(event, actions) {
  event.preventDefault();
  await state.loading;
  const status = $("set-status");
  if (!state.facts) { refuse(NO_MODEL, status); return; }
  const body = requestOf();
  if (!body.things.length) { refuse("Enter things to draw, one per line.", status); $("things").focus(); return; }
  $("set-whole").hidden = true;
  const { things, style, formats: _, ...rest } = body;
  tellWords($("set-words"), {}, $("things"));  // of the set before
  let isTold = false;
  run({
    path: SETS, body: { ...body, partial_images: 64, ...(state.facts.svg ? { return_svg: true } : {}) }, words: things, actions, kept: EMPTY,
    view: { status, cards: $("set-cards"), button: $("draw-set"), stopper: $("set-stop") },
    entryOf: (picture) => ({ sort: "draw", words: picture.prompt, request: { ...rest, prompt: picture.prompt, ...(picture.answer && picture.answer.kind !== "found" ? { draw: true } : {}) } }),
    onevent: (one) => {
      if (!isTold) tellWords($("set-words"), one.unknown_words, $("things"));
      isTold = true;
    },
    onwhole: (whole) => showWhole(whole, body),
  });
}

function showWhole(whole, body) {
  const name = (body.style || "set").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  const grid = `data:image/png;base64,${whole.grid}`;
  const each = { png: "PNG", transparent: "transparent PNG", svg: "SVG" };
  $("set-grid").src = grid;
  $("set-title").textContent = `${body.things.length === 1 ? "One picture" : `${body.things.length} pictures`}${body.style ? `, ${body.style}` : ""}`;
  $("set-files").textContent = `The zip has each picture as ${body.formats.map((one) => each[one]).join(", ")}, named after its prompt, and the grid.`;
  $("set-zip").onclick = () => download(`data:application/zip;base64,${whole.zip}`, `${name}.zip`);
  $("set-grid-save").onclick = () => download(grid, `${name}-grid.png`);
  $("set-repeat").onclick = () => showSet({ ...body, seed: whole.seed });
  $("set-whole").hidden = false;
}

export function startSets(actions) {
  $("set-form").onsubmit = (event) => draw(event, actions);
  $("things").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw(event, actions); };
  $("set-style").oninput = () => press($("set-styles"), $("set-style").value.trim());
  $("set-cards").append(empty(EMPTY));
}

export function offerSets(upTo, sizes, size) {
  const { facts } = state;
  chips($("set-styles"), facts.styles, $("set-style").value, (text) => { $("set-style").value = text; press($("set-styles"), text); });
  options($("set-size"), sizes, size);
  options($("set-candidates"), facts.reranker ? upTo(Math.min(facts.limits.candidates, facts.limits.at_once)) : [[1, "1"]], facts.candidates);
  $("set-most").textContent = `One per line, at most ${facts.limits.at_once}.`;
  $("set-svg").disabled = !facts.svg;
  $("set-svg-missing").hidden = facts.svg;
  const examples = $("set-examples"), shown = facts.things.slice(0, 8);
  examples.replaceChildren(...(shown.length > 1 ? [element("button", {
    type: "button", className: "link", textContent: `Try ${shown.slice(0, 3).join(", ")}…`,
    onclick: () => { $("things").value = shown.join("\n"); if (!$("set-style").value && facts.styles.length) { $("set-style").value = facts.styles[0]; press($("set-styles"), facts.styles[0]); } },
  })] : []));
}
