// How a picture is drawn again: a link, the equal command, and Python.

export function quoted(text) { return /^[\w./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`; }
// JSON's strings are Python's too
function python(value) { return typeof value === "string" ? JSON.stringify(value) : String(value); }

export function linkOf(request) {
  const query = new URLSearchParams();
  for (const key of ["prompt", "model", "seed", "guidance_scale", "negative_prompt", "sampler", "num_retrieved", "size", "background"])
    if (request[key] !== undefined) query.set(key, request[key]);
  if (request.sampling?.temperature !== undefined) query.set("temperature", request.sampling.temperature);
  return `${location.origin}/#draw?${query}`;
}

function options(request) {
  const sampling = { ...(request.sampling || {}) };
  for (const key of ["guidance_scale", "negative_prompt"]) if (request[key] !== undefined) sampling[key] = request[key];
  return sampling;
}

export function commandOf(entry) {
  const request = entry.request, words = ["cm3"];
  if (entry.sort === "draw") words.push("generate", quoted(request.prompt), "--n 1");
  else if (entry.sort === "fill") words.push("infill picture.png --mask mask.png", ...(request.prompt ? ["--text", quoted(request.prompt)] : []));
  else words.push("edit picture.png", quoted(request.prompt), "--n 1");
  words.push("--model", quoted(request.model), "--seed", entry.seed, "--candidates 1");
  if (request.sampler) words.push("--sampler", quoted(request.sampler));
  if (request.num_retrieved !== undefined) words.push("--num-retrieved", request.num_retrieved);
  for (const [place, document] of (request.documents || []).entries()) words.push("--context", `document-${place}.png`, quoted(document.text));
  for (const [key, value] of Object.entries(options(request))) words.push("--set", quoted(`sampler.${key}=${value}`));
  words.push(entry.sort === "fill" ? "-o filled.png" : "-o out/");
  return words.join(" ");
}

export function pythonOf(entry) {
  const request = entry.request;
  const keys = [`seed=${entry.seed}`, "num_candidates=1"];
  if (request.sampler) keys.push(`sampler=${python(request.sampler)}`);
  if (request.num_retrieved !== undefined) keys.push(`num_retrieved=${request.num_retrieved}`);
  if (request.documents?.length) keys.push(`context=[${request.documents.map((one, place) => `("document-${place}.png", ${python(one.text)})`).join(", ")}]`);
  for (const [key, value] of Object.entries(options(request))) keys.push(`${key}=${python(value)}`);
  const call = entry.sort === "draw" ? `model.generate(${python(request.prompt)}, 1, ${keys.join(", ")})[0]`
    : entry.sort === "fill" ? `model.infill("picture.png", text=${request.prompt ? python(request.prompt) : "None"}, mask="mask.png", ${keys.join(", ")})`
      : `model.edit("picture.png", ${python(request.prompt)}, 1, ${keys.join(", ")})[0]`;
  return `import cm3core\n\nmodel = cm3core.load(${python(request.model)})\npicture = ${call}\nprint(picture.pixels.shape)`;
}

export function showRepeat(entry) {
  document.getElementById("repeat-link").value = entry.sort === "draw" ? linkOf({ ...entry.request, seed: entry.seed }) : "a link can't hold the picture; download it";
  document.getElementById("repeat-command").value = commandOf(entry);
  document.getElementById("repeat-python").value = pythonOf(entry);
  const files = [entry.sort === "draw" ? "" : "picture.png is the picture that was edited", entry.sort === "fill" ? "mask.png is white where it was painted" : "",
    entry.request.documents?.length ? "document-0.png, … are the documents' pictures" : ""].filter(Boolean);
  document.getElementById("repeat-note").textContent = files.join("; ");
  document.getElementById("repeat").showModal();
}
