// Requests to the server: JSON and server-sent events, with a token if the server requires one.

export class Refusal extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

// The facts of a model: GET reads them if the model is in memory, else it answers NOT_LOADED; POST loads it.
export const FACTS = "/studio/facts", NOT_LOADED = 409;
let asking = null;

function token() { return sessionStorage.getItem("cm3-token"); }

function askToken(refused) {
  if (asking) return asking;
  document.getElementById("token-refused").hidden = !refused;
  const dialog = document.getElementById("login");
  asking = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const field = document.getElementById("token");
      if (field.value) sessionStorage.setItem("cm3-token", field.value);
      field.value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function send(path, options = {}) {
  for (;;) {
    const headers = { ...(options.headers || {}) };
    const used = token();
    if (used) headers.Authorization = `Bearer ${used}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The server can't be reached. Check the connection and whether cm3 serve is running, then try again.", 0);
    }
    if (response.status === 401) {
      if (token() === used) { sessionStorage.removeItem("cm3-token"); await askToken(Boolean(used)); }
      continue;
    }
    if (!response.ok) {
      let message = `The server returned status ${response.status}.`;
      try { message = (await response.json()).error.message; } catch { /* no JSON: keep the status */ }
      throw new Refusal(message, response.status);
    }
    return response;
  }
}

export async function get(path) { return (await send(path)).json(); }

// Fetches a file of a model, which is loaded if need be: its content as a blob, and its name.
export async function file(path) {
  let response;
  try { response = await send(path); } catch (error) {
    if (error.status !== NOT_LOADED) throw error;
    await post(FACTS, { model: new URL(path, location).searchParams.get("model") });
    response = await send(path);
  }
  const name = response.headers.get("content-disposition")?.match(/filename="([^"]+)"/)?.[1];
  return { blob: await response.blob(), name: name || "original" };
}

// Seeds have up to 63 bits, too many for JavaScript's numbers, so they are kept as strings of
// digits.
function parsed(text) { return JSON.parse(text.replace(/"seed": (\d+)/g, '"seed": "$1"')); }

function posted(body, signal) {
  const text = JSON.stringify(body).replace(/"seed":"(\d+)"/, '"seed":$1');
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: text, signal };
}

export async function post(path, body, signal) { return (await send(path, posted(body, signal))).json(); }

export async function* stream(path, body, signal) {
  const response = await send(path, posted({ ...body, stream: true }, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The connection was lost before the picture was finished. Draw it again.", 0);
    }
    if (piece.done) return;
    held += piece.value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((one) => one.startsWith("data: "));
      if (!line || line === "data: [DONE]") continue;
      const data = parsed(line.slice(6));
      if (data.error) throw new Refusal(data.error.message, 500);
      yield data;
    }
  }
}
