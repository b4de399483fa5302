// Runs the generate and stream cases with no stub and no proto file: everything is learnt by server reflection.
import * as grpc from "@grpc/grpc-js";
import reflection from "grpc-js-reflection-client";
import { readFileSync } from "node:fs";

const { targets, cases } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const LOADED = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const credentials = grpc.credentials.createInsecure();
const services = {};

async function serviceAt(target) {
  if (!services[target]) {
    const client = new reflection.GrpcReflection(target, credentials);
    const descriptor = await client.getDescriptorBySymbol("penstock.v1.GenerationService");
    const { GenerationService } = descriptor.getPackageObject(LOADED).penstock.v1;
    services[target] = new GenerationService(target, credentials);
  }
  return services[target];
}

const short = (name, prefix) => name.replace(prefix, "").toLowerCase();
const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
/** The cases speak proto JSON; descriptors from a server have the protos' own names. */
function byProtoName(value) {
  if (Array.isArray(value)) return value.map(byProtoName);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [snake(name), byProtoName(field)]));
}

const candidateOf = (result, texts) => ({
  ...texts,
  finish_reason: short(result.finish_reason, "FINISH_REASON_"),
  thinking_outcome: short(result.thinking_outcome, "THINKING_OUTCOME_"),
  matched_stop: result.matched_stop,
  reasoning_tokens: result.usage.reasoning_tokens,
  answer_tokens: result.usage.answer_tokens,
});

const replyOf = (ended, candidates) => ({
  candidates,
  usage: ended.usage,
  effective: {
    ...ended.effective_settings,
    thinking_mode: short(ended.effective_settings.thinking_mode, "THINKING_MODE_"),
    effort: short(ended.effective_settings.effort, "EFFORT_"),
    tool_mode: short(ended.effective_settings.tool_mode, "TOOL_MODE_"),
    requested_thinking_mode: short(ended.effective_settings.requested_thinking_mode, "THINKING_MODE_"),
  },
  cost_usd_ticks: ended.cost ? ended.cost.total_usd_ticks : null,
});

const durationOf = (seconds) => ({ seconds: Math.trunc(seconds), nanos: Math.round((seconds % 1) * 1e9) });

async function stream(service, spec, case_) {
  const events = [];
  const texts = {};
  let ended;
  const request = { spec, flush_interval: durationOf(case_.flush_interval_seconds ?? 0) };
  const call = service.StreamGenerate(request);
  const status = new Promise((resolve) => call.on("status", resolve));
  for await (const { event } of call) {
    const seen = { kind: event.event, sequence: event.sequence };
    if (event.interrupted) seen.reason = event.interrupted.reason.replace("INTERRUPTION_REASON_", "").toLowerCase();
    const delta = event.thought ?? event.answer;
    if (delta) {
      Object.assign(seen, { candidate: delta.candidate_index, text: delta.text, tokens: delta.token_count });
      const text = (texts[delta.candidate_index] ??= { thought: "", answer: "", thought_token_ids: [], answer_token_ids: [] });
      text[seen.kind] += delta.text;
      text[`${seen.kind}_token_ids`].push(...delta.token_ids);
    }
    ended = event.finished ?? ended;
    events.push(seen);
  }
  if (!ended) throw new Error(`${case_.name} has no last event: ${JSON.stringify(await status)}`);
  return { events, reply: replyOf(ended, ended.results.map((result, index) => candidateOf(result, texts[index]))) };
}

async function generate(service, spec) {
  const reply = await new Promise((resolve, reject) => {
    service.Generate({ spec }, (error, done) => (error ? reject(error) : resolve(done)));
  });
  return { reply: replyOf(reply, reply.candidates.map((one) => candidateOf(one.result, one))) };
}

for (const case_ of cases) {
  const service = await serviceAt(targets[case_.server ?? "default"]);
  const run = case_.call === "stream" ? stream : generate;
  console.log(JSON.stringify({ name: case_.name, ...(await run(service, byProtoName(case_.spec), case_)) }));
}
