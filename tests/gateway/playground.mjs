// Drives the playground's modules without a page, in front of a real gateway: `node playground.mjs FOLDER URL`.
const [folder, url] = process.argv.slice(2);
const { Api, ApiError } = await import(`file://${folder}/api.js`);
const { readChunk } = await import(`file://${folder}/chunks.js`);

globalThis.addEventListener ??= () => {}; // Only pages are told that the network is back.
const real = globalThis.fetch;
let cut;
globalThis.fetch = (path, options) => {
  const connection = new AbortController();
  cut = () => connection.abort(new TypeError("the network is cut"));
  return real(url + path, { ...options, signal: connection.signal });
};

const api = new Api();
const body = (text) => ({
  model: "",
  messages: [{ role: "user", content: text }],
  stream: true,
  resumable: true,
  stream_options: { include_usage: true },
  thinking_mode: "thinking",
});

/** Asks, and does something after so many chunks; returns what a page would show. */
async function ask(text, after, act) {
  const seen = { thought: "", answer: "", lost: [] };
  let chunks = 0;
  const events = api.chat(body(text), { signal: new AbortController().signal, onLost: (attempt) => seen.lost.push(attempt) });
  for await (const { chunk, place } of events) {
    for (const event of readChunk(chunk)) {
      if (event.kind in seen) seen[event.kind] += event.text;
      else seen[event.kind] = event;
    }
    if (++chunks === after) seen.steered = await act(place);
  }
  return seen;
}

const steer = (action) => (place) => api.steer(place, action);
const failure = async (work) => {
  try {
    await work;
    return undefined;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return { status: error.status, code: error.code, message: error.message };
  }
};
const made = {
  plain: await ask("short"),
  now: await ask("long", 12, steer({ action: "finish_thinking" })),
  budget: await ask("long", 12, steer({ action: "change_budget", thinking_budget: 60 })),
  cancel: await ask("long", 12, steer({ action: "cancel" })),
  cut: await ask("long", 12, () => cut()),
  late: await failure(ask("short", 5, async (place) => {
    await new Promise((resolve) => setTimeout(resolve, 500));
    return api.steer(place, { action: "cancel" });
  })),
  stranger: await failure(api.steer({ id: "g", event: "v1:chat:u:g:1:guess" }, { action: "cancel" })),
  refused: await failure(ask("x".repeat(9000))),
};
console.log(JSON.stringify(made));
