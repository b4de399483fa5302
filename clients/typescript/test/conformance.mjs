// The TypeScript client's conformance driver: runs all cases and prints what user code sees, a line of JSON per case.
import { fromJson } from "@bufbuild/protobuf";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import * as penstock from "../dist/index.js";

const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
/** Returns plain fields of a message by proto name, without absent ones. */
const plain = (message) =>
  Object.fromEntries(
    Object.entries(message)
      .filter(([name]) => !name.startsWith("$"))
      .map(([name, value]) => [snake(name), value]),
  );

function optionsOf(case_) {
  const options = {};
  if (case_.timeout_seconds !== undefined) options.timeout = case_.timeout_seconds;
  if (case_.resumable !== undefined) options.resumable = case_.resumable;
  if (case_.flush_interval_seconds !== undefined) options.flushIntervalSeconds = case_.flush_interval_seconds;
  return options;
}

function expertsOf({ experts = {} }) {
  return { windowSeconds: experts.window_seconds, intervalSeconds: experts.interval_seconds, ranks: experts.ranks };
}

function eventOf(event) {
  const seen = { kind: event.kind, sequence: event.sequence };
  if ("reason" in event) seen.reason = event.reason;
  if ("text" in event) Object.assign(seen, { candidate: event.candidateIndex, text: event.text, tokens: event.tokenCount });
  if ("callIndex" in event) Object.assign(seen, { candidate: event.candidateIndex, call: event.callIndex, tokens: event.tokenCount });
  if (event.kind === "tool_call_started") seen.name = event.name;
  if (event.kind === "tool_call_arguments") seen.json = event.jsonFragment;
  return seen;
}

const CANDIDATE = ["thought", "answer", "finishReason", "thinkingOutcome", "matchedStop", "reasoningTokens"];
CANDIDATE.push("answerTokens", "toolTokens", "thoughtTokenIds", "answerTokenIds");

function effectiveOf(settings) {
  return (
    settings && {
      ...plain(settings),
      thinking_mode: penstock.thinkingModeName(settings.thinkingMode),
      effort: penstock.effortName(settings.effort),
      tool_mode: penstock.toolModeName(settings.toolMode),
      requested_thinking_mode: penstock.thinkingModeName(settings.requestedThinkingMode),
    }
  );
}

function replyOf(response) {
  return {
    candidates: response.candidates.map((c) => ({
      ...Object.fromEntries(CANDIDATE.map((name) => [snake(name), c[name]])),
      tool_calls: c.toolCalls.map(({ name, argumentsJson, status }) => ({ name, arguments_json: argumentsJson, status })),
    })),
    usage: response.usage && plain(response.usage),
    effective: effectiveOf(response.effectiveSettings),
    cost_usd_ticks: response.cost ? response.cost.totalUsdTicks : null,
  };
}

function errorOf(error) {
  if (!(error instanceof penstock.PenstockError)) throw error;
  return {
    type: error.constructor.name,
    code: status[error.code],
    reason: error.reason,
    fields: error.violations.map((violation) => violation.field),
    metadata: error.metadata,
    retry_after_seconds: error.retryAfterSeconds,
  };
}

const camel = (name) => name.replace(/_./, (found) => found[1].toUpperCase());

/** Takes one step by the RPC Steer: over the stream, or as another client where the case says who and what. */
async function steer(case_, step, stream, seen) {
  const { generationId, resumeToken } = stream.response;
  let reply;
  if (step.do !== "cancel" && !("generation_id" in step || "resume_token" in step || "api_key" in step)) {
    reply = await stream[camel(step.do)](step.budget);
  } else {
    const another = connect(case_, step.api_key ?? case_.api_key);
    const action = { finish_thinking: { finishThinking: true }, change_budget: { budget: step.budget }, cancel: { cancel: true } };
    reply = await another
      .steer(step.generation_id ?? generationId, step.resume_token ?? resumeToken, action[step.do])
      .finally(() => another.close());
  }
  seen.steered = [...(seen.steered ?? []), { ...plain(reply), phase: penstock.generationPhaseName(reply.phase) }];
}

async function events(stream, case_, seen) {
  seen.events = [];
  await sleep(1000 * (case_.late_seconds ?? 0));
  for await (const event of stream) {
    seen.events.push(eventOf(event));
    for (const step of case_.steps ?? []) {
      if (step.after !== seen.events.length) continue;
      if (case_.call === "steer") await steer(case_, step, stream, seen);
      else stream[camel(step.do)](step.budget);
    }
  }
  seen.reply = replyOf(stream.response);
  seen.reconnections = stream.reconnections;
}

/** Longest wait in seconds for a generation to end after its stream was left; it would run for 150. */
const LEAVE_SECONDS = 30;

async function running(wanted) {
  const late = Date.now() + LEAVE_SECONDS * 1000;
  for (;;) {
    const page = await (await fetch(targets["leaving.metrics"])).text();
    const count = Number(/^penstock_sequences_running(?:{.*})? (\S+)/m.exec(page)?.[1] ?? 0);
    if (count === wanted || Date.now() > late) return count;
    globalThis.gc(); // collects the dropped stream
    await sleep(50);
  }
}

/** Leaves a stream as the case says. The client stays open, and the stream keeps its name. */
async function leave(client, case_, seen, spec) {
  const aborting = new AbortController();
  if (case_.how.endsWith("_reply")) {
    const reply = client.generate(spec, { ...optionsOf(case_), signal: aborting.signal }).catch((error) => error);
    seen.running = { before: await running(1) };
    if (case_.how === "cancel_reply") aborting.abort();
    else await client.close();
    seen.error = errorOf(await reply);
    seen.running.after = await running(0);
    return;
  }
  let stream = client.stream(spec, { ...optionsOf(case_), signal: aborting.signal });
  const there = async () => (seen.running = { before: await running(1) });
  switch (case_.how) {
    case "break":
      for await (const event of stream) {
        if (event.sequence < 3) continue;
        await there();
        break;
      }
      break;
    case "text": {
      const texts = stream.text();
      for await (const _ of texts) {
        await there();
        break;
      }
      break;
    }
    case "raise":
      await (async () => {
        for await (const event of stream) {
          await there();
          throw new RangeError(`${event.sequence}`);
        }
      })().catch((error) => {
        if (!(error instanceof RangeError)) throw error;
      });
      break;
    case "cancel": {
      const reading = (async () => {
        for await (const _ of stream);
      })().catch((error) => error);
      await there();
      aborting.abort();
      seen.error = errorOf(await reading);
      break;
    }
    case "unread":
      await there();
      stream.close();
      break;
    default:
      await stream.next();
      await there();
      if (case_.how === "close") stream.close();
      else if (case_.how === "close_client") await client.close();
      else stream = undefined;
  }
  seen.running.after = await running(0);
}

const CALLS = {
  leave,
  stream: (client, case_, seen, spec) => events(client.stream(spec, optionsOf(case_)), case_, seen),
  steer: (client, case_, seen, spec) => events(client.stream(spec, optionsOf(case_)), case_, seen),
  interact: (client, case_, seen, spec) => events(client.interact(spec, optionsOf(case_)), case_, seen),
  async resume(client, case_, seen, spec) {
    const first = client.stream(spec, optionsOf(case_));
    for (let read = 0; read < case_.read; read += 1) await first.next();
    if (case_.leave === "cancel") first.close();
    else first.detach();
    await client.close(); // waits until the server knows
    const { generationId, resumeToken } = first.response;
    const another = connect(case_, case_.resume_api_key ?? case_.api_key);
    const resumed = another.resume(
      case_.generation_id ?? generationId,
      case_.resume_token ?? resumeToken,
      case_.last_sequence ?? first.lastSequence,
    );
    await events(resumed, case_, seen).finally(() => another.close());
  },
  async generate(client, case_, seen, spec) {
    seen.reply = replyOf(await client.generate(spec, optionsOf(case_)));
  },
  async count(client, case_, seen, spec) {
    const { dropped, effectiveSettings, ...counted } = await client.count(spec, optionsOf(case_));
    seen.count = { ...plain(counted), dropped_tokens: dropped?.tokens ?? 0, dropped_messages: dropped?.messages ?? 0 };
    seen.effective = effectiveOf(effectiveSettings) ?? null;
  },
  async experts(client, case_, seen) {
    seen.tokens = Number((await client.expertLoad(expertsOf(case_))).tokenCount);
  },
  async watch_experts(client, case_, seen) {
    for await (const load of client.watchExpertLoad(expertsOf(case_))) {
      seen.tokens = Number(load.tokenCount);
      break;
    }
  },
  async model(client, case_, seen) {
    const card = await client.model(case_.model);
    seen.model = {
      ...plain(card),
      thinking_modes: card.thinkingModes.map(penstock.thinkingModeName).sort(),
      default_thinking_mode: penstock.thinkingModeName(card.defaultThinkingMode),
      limits: plain(card.limits),
    };
  },
};

const { targets, cases } = JSON.parse(readFileSync(process.argv[2], "utf8"));

function connect({ server = "default" }, apiKey) {
  const options = {};
  if (apiKey !== undefined) options.apiKey = apiKey;
  if (`${server}.ca` in targets) options.tls = targets[`${server}.ca`];
  return new penstock.Client(targets[server], options);
}

for (const case_ of cases) {
  const seen = { name: case_.name };
  const client = connect(case_, case_.api_key);
  try {
    const spec = case_.spec && fromJson(penstock.GenerationSpecSchema, case_.spec);
    await CALLS[case_.call](client, case_, seen, spec);
  } catch (error) {
    seen.error = errorOf(error);
  }
  await client.close();
  console.log(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
}
