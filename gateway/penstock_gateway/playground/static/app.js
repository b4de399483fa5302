// The playground: binds the page's controls to the gateway.
import { Api, ApiError } from "./api.js";
import { answer as runTool, TOOL } from "./calculator.js";
import { readChunk } from "./chunks.js";
import { describe, drawHeat, fillLayers, fillQueue } from "./experts.js";
import { budgetAt, costOf, outcomeOf, seconds, tokens, usd } from "./format.js";
import * as snippets from "./snippets.js";
import { ReplyView, showQuestion } from "./turns.js";

const MAX_IMAGE_BYTES = 8 * 1024 * 1024;
const MAX_TURNS = 6;
const DEFAULT_MOST = 4096;
const $ = (id) => document.getElementById(id);

const api = new Api();
let card = { model: "", price_tiers: [], images: null, max_thinking_budget: DEFAULT_MOST };
let messages = [];
let image;
let running;

// ------------------------------------------------------------------------------------------------------------ settings

const how = () => document.querySelector("input[name=how]:checked").value;
const budget = () => budgetAt(Number($("budget").value), card.max_thinking_budget);

function settings() {
  const made = {};
  switch (how()) {
    case "none":
      made.reasoning_effort = "none";
      break;
    case "effort":
      made.thinking_mode = "thinking";
      made.reasoning_effort = $("effort").value;
      break;
    case "budget":
      made.thinking_mode = "thinking";
      made.thinking_budget = budget();
      break;
  }
  if ($("most").value) made.max_completion_tokens = Number($("most").value);
  if ($("greedy").checked) made.temperature = 0;
  if ($("calculator").checked) made.tools = [TOOL];
  return made;
}

const question = () => ({
  role: "user",
  content: image
    ? [{ type: "text", text: $("question").value }, { type: "image_url", image_url: { url: image.url } }]
    : $("question").value,
});

const requestOf = (conversation) => ({
  model: card.model,
  messages: conversation,
  stream: true,
  resumable: true,
  stream_options: { include_usage: true },
  ...settings(),
});

function showSettings() {
  const shown = tokens(budget());
  $("budget-tokens").textContent = shown;
  $("budget").setAttribute("aria-valuetext", shown);
  const language = $("language").value;
  $("code").textContent = snippets[language](location.origin, snippets.shortened(requestOf([...messages, question()])));
}

// ------------------------------------------------------------------------------------------------------------ requests

function setRunning(state) {
  running = state;
  $("send").disabled = state !== undefined;
  $("new").disabled = state !== undefined;
  $("stop").disabled = state === undefined;
  $("answer-now").disabled = !state?.isThinking || !state.place;
  if (state === undefined) $("state").textContent = "Ready";
}

function showProblem(error) {
  $("problem").hidden = false;
  // What browsers say where nobody answers differs, and tells little.
  $("problem").textContent = error instanceof TypeError ? "The gateway cannot be reached." : error.message;
}

/** Counts one reply, and shows the counts while it grows. */
class Counts {
  #began = performance.now();
  #firstAt;
  thought = 0;
  answer = 0;
  usage;
  usd;
  tookSeconds;

  /** Counts a step of the engine, which is one token, or a few where it drafts. The last events have the exact counts. */
  step(kind) {
    if (this.#firstAt === undefined) {
      this.#firstAt = performance.now();
      $("first").textContent = seconds((this.#firstAt - this.#began) / 1000);
    }
    this[kind] += 1;
    this.show();
  }

  show() {
    const { usage } = this;
    const about = usage ? "" : "about ";
    $("thought-tokens").textContent = about + tokens(usage?.thought ?? this.thought);
    $("answer-tokens").textContent = about + tokens(usage?.answer ?? this.answer);
    const took = this.tookSeconds ?? (performance.now() - (this.#firstAt ?? this.#began)) / 1000;
    const output = usage?.output ?? this.thought + this.answer;
    if (usage || took > 0.2) $("speed").textContent = `${about}${(output / Math.max(took, 0.001)).toFixed(1)} tokens/s`;
    const cost = usage ? (this.usd ?? costOf(card.price_tiers, usage)) : costOf(card.price_tiers, { output });
    $("cost").textContent = cost === undefined ? "No price list" : usage ? usd(cost) : `at least ${usd(cost)}`;
  }
}

async function send() {
  $("problem").hidden = true;
  $("empty").hidden = true;
  const asked = question();
  messages.push(asked);
  showQuestion($("turns"), $("question").value, image);
  $("question").value = "";
  removeImage();
  $("lost").textContent = "0";
  const stop = new AbortController();
  setRunning({ stop, isThinking: false });
  try {
    for (let turn = 0; turn < MAX_TURNS; turn += 1) {
      const calls = await reply(stop.signal);
      if (calls.length === 0) break;
    }
  } catch (error) {
    if (!stop.signal.aborted) showProblem(error);
    if (error instanceof ApiError && messages.at(-1) === asked) messages.pop();
  } finally {
    setRunning(undefined);
    showSettings();
    $("question").focus({ preventScroll: true });
  }
}

/** Reads one reply of the model; returns its tool calls, which are answered then. */
async function reply(signal) {
  const view = new ReplyView($("turns"));
  const counts = new Counts();
  const said = { thought: "", answer: "", calls: [] };
  const state = running;
  Object.assign(state, { isThinking: false, place: undefined });
  $("state").textContent = "Waiting for the first token";
  $("ended").textContent = "not yet";
  let finish;
  try {
    for await (const { chunk, place } of api.chat(requestOf(messages), { signal, onLost: lost })) {
      state.place = place;
      for (const event of readChunk(chunk)) {
        switch (event.kind) {
          case "started":
            $("budget-holds").textContent = tokens(event.settings.thinking_budget);
            break;
          case "thought":
            if (!state.isThinking) $("state").textContent = "Thinking";
            state.isThinking = true;
            said.thought += event.text;
            view.thought(event.text);
            counts.step("thought");
            break;
          case "thought_ended":
            state.isThinking = false;
            $("ended").textContent = outcomeOf(event.outcome);
            view.thoughtEnded(`${tokens(event.tokens)}. ${outcomeOf(event.outcome)}.`);
            break;
          case "answer":
            state.isThinking = false;
            $("state").textContent = "Answering";
            said.answer += event.text;
            view.answer(event.text);
            counts.step("answer");
            break;
          case "call": {
            state.isThinking = false;
            $("state").textContent = "Calling a tool";
            const call = (said.calls[event.index] ??= { id: "", name: "", arguments: "" });
            call.id += event.id;
            call.name += event.name;
            call.arguments += event.arguments;
            view.tool(event.index, `${call.name} ${call.arguments}`);
            break;
          }
          case "finish":
            finish = event.reason;
            break;
          case "result":
            counts.usd = event.usd;
            counts.tookSeconds = event.seconds - event.first_seconds;
            $("ended").textContent = outcomeOf(event.outcome);
            break;
          case "usage":
            counts.usage = event.usage;
            counts.show();
            break;
        }
      }
      setRunning(state);
    }
  } finally {
    keep(said, finish, view);
  }
  announce(said.answer || (said.calls.length > 0 ? "The model calls a tool." : "There is no answer."));
  return finish === "tool_calls" ? answerCalls(said, view) : [];
}

const FINISHES = {
  max_output_tokens: "The output limit ended it.",
  cancelled: "You stopped it.",
  drained: "The server ended it.",
};

/** Adds the reply, also one that was cut, to the conversation. */
function keep(said, finish, view) {
  if (finish === undefined && !said.thought && !said.answer && said.calls.length === 0) {
    view.remove();
    $("ended").textContent = "none yet";
    return;
  }
  view.ended(finish === undefined ? "It was cut." : (FINISHES[finish] ?? ""));
  const made = { role: "assistant", content: said.answer };
  if (said.thought) made.reasoning_content = said.thought;
  if (finish === "tool_calls") {
    made.tool_calls = said.calls.map(({ id, name, arguments: given }) => ({
      id,
      type: "function",
      function: { name, arguments: given },
    }));
  }
  if (said.answer || made.tool_calls) messages.push(made);
}

function answerCalls(said, view) {
  said.calls.forEach((call, index) => {
    const result = runTool(call.name, call.arguments);
    view.tool(index, `${call.name} ${call.arguments}\n= ${result}`);
    messages.push({ role: "tool", tool_call_id: call.id, content: result });
  });
  return said.calls;
}

function lost(attempt) {
  if (attempt === 1) $("lost").textContent = String(Number($("lost").textContent) + 1);
  $("state").textContent = attempt > 0 ? "The connection is lost; it goes on when the network is back" : "Connected again";
}

function announce(text) {
  $("announce").textContent = text;
}

async function steer(action) {
  if (!running?.place) return undefined;
  try {
    return await api.steer(running.place, action);
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) showProblem(error); // 404: it has ended meanwhile
    return undefined;
  }
}

async function stop() {
  const { stop: controller, place } = running;
  $("state").textContent = "Stopping";
  // With a place the stream still ends by itself, with its usage and its cost.
  if (!place || !(await steer({ action: "cancel" }))) controller.abort();
}

// -------------------------------------------------------------------------------------------------------------- images

function removeImage() {
  image = undefined;
  $("image").value = "";
  $("image-remove").hidden = true;
  showImageNote();
}

function showImageNote() {
  const off = card.images !== null && !card.images.enabled;
  $("image").disabled = off;
  $("image-note").textContent = off ? `Off: ${card.images.reason}` : "PNG, JPEG or WebP, sent with the next question.";
}

async function takeImage() {
  const [file] = $("image").files;
  if (!file) return;
  if (file.size > MAX_IMAGE_BYTES) {
    removeImage();
    $("image-note").textContent = `The image must have at most ${MAX_IMAGE_BYTES / 2 ** 20} MiB.`;
    return;
  }
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  image = { name: file.name, url };
  $("image-remove").hidden = false;
  $("image-note").textContent = `${file.name} goes with the next question.`;
  showSettings();
}

// -------------------------------------------------------------------------------------------------- experts and queue

let watching;

async function showLoad() {
  try {
    const load = await api.load();
    $("load-state").textContent = load.experts ? describe(load.experts) : "";
    $("experts-note").textContent = load.experts ? "" : `Not shown: ${load.experts_reason}`;
    $("heat").hidden = !load.experts;
    if (load.experts) {
      drawHeat($("heat"), load.experts.layers);
      $("heat").setAttribute("aria-label", describe(load.experts));
      fillLayers($("layers"), load.experts.layers);
    }
    $("queue-note").textContent = load.queue ? "" : `Not shown: ${load.queue_reason}`;
    fillQueue($("queue"), load.queue ?? {});
  } catch (error) {
    $("load-state").textContent = error.message;
  }
}

async function watchLoad() {
  clearTimeout(watching);
  if ($("engine").hidden || document.hidden) return;
  await showLoad();
  clearTimeout(watching);
  if ($("live").checked) watching = setTimeout(watchLoad, 1000);
}

function showView() {
  const isEngine = location.hash === "#engine";
  $("chat").hidden = isEngine;
  $("engine").hidden = !isEngine;
  $("to-chat").toggleAttribute("aria-current", !isEngine);
  $("to-engine").toggleAttribute("aria-current", isEngine);
  for (const id of ["to-chat", "to-engine"]) if ($(id).hasAttribute("aria-current")) $(id).setAttribute("aria-current", "page");
  void watchLoad();
}

// --------------------------------------------------------------------------------------------------------------- start

async function connect() {
  try {
    card = { ...card, ...(await api.model()) };
    $("model").textContent = card.model;
    $("problem").hidden = true;
  } catch (error) {
    $("model").textContent = "Not connected";
    showProblem(error);
  }
  showImageNote();
  showSettings();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running === undefined && $("question").value.trim()) void send();
});
$("question").addEventListener("keydown", (event) => {
  // Enter sends, as in other chats; Shift and Enter begins a line.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("answer-now").addEventListener("click", () => void steer({ action: "finish_thinking" }));
$("stop").addEventListener("click", () => void stop());
$("new").addEventListener("click", () => {
  messages = [];
  $("turns").replaceChildren();
  $("empty").hidden = false;
  showSettings();
  $("question").focus();
});
$("budget").addEventListener("input", () => {
  document.querySelector("input[name=how][value=budget]").checked = true;
  showSettings();
});
$("budget").addEventListener("change", async () => {
  if (!running?.isThinking) return;
  const steered = await steer({ action: "change_budget", thinking_budget: budget() });
  if (steered) $("budget-holds").textContent = tokens(steered.thinking_budget);
});
$("effort").addEventListener("change", () => (document.querySelector("input[name=how][value=effort]").checked = true));
$("image").addEventListener("change", () => takeImage().catch(showProblem));
$("image-remove").addEventListener("click", removeImage);
$("key").addEventListener("change", () => {
  api.key = $("key").value.trim();
  sessionStorage.setItem("key", api.key);
  void connect();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copied").textContent = "Copied";
  } catch {
    // Without permission the text is selected, and the keyboard copies it.
    getSelection().selectAllChildren($("code"));
    $("copied").textContent = "Selected: copy it with the keyboard";
  }
});
for (const id of ["question", "how", "effort", "most", "greedy", "calculator", "language"]) {
  const targets = id === "how" ? document.querySelectorAll("input[name=how]") : [$(id)];
  for (const target of targets) target.addEventListener("input", showSettings);
}
addEventListener("hashchange", showView);
document.addEventListener("visibilitychange", () => void watchLoad());
$("live").addEventListener("change", () => void watchLoad());

api.key = sessionStorage.getItem("key") ?? "";
$("key").value = api.key;
showView();
await connect();
