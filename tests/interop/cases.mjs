// The cases of tests/interop for the two clients on Node. `rpc` is the client: unary, stream and steer, whose errors
// `codeOf` names as gRPC does.
import {
  FinishThinkingSchema,
  GenerationSpecSchema,
  InteractRequestSchema,
  MessageSchema,
  MessagesSchema,
  Role,
} from "../../clients/typescript/dist/gen/penstock/v1/generation_pb.js";
import { create } from "../../clients/typescript/node_modules/@bufbuild/protobuf/dist/esm/index.js";

function specOf(content) {
  const message = create(MessageSchema, { role: Role.USER, content });
  const value = create(MessagesSchema, { messages: [message] });
  return create(GenerationSpecSchema, { input: { case: "messages", value } });
}

const steer = (action) => create(InteractRequestSchema, { action });

async function answerOf(events) {
  let answer = "";
  for await (const { event } of events) {
    if (event.event.case === "answer") answer += event.event.value.text;
    if (event.event.case === "finished") return answer;
  }
  return "ended without its last event";
}

/** Asks, says that it was thought enough at the first thought, and tells the answer. */
async function bidi(rpc) {
  let sayMore;
  const more = new Promise((resolve) => (sayMore = resolve));
  async function* asked() {
    yield steer({ case: "start", value: specOf("SLOW THOUGHT") });
    yield await more;
  }
  async function* watched() {
    for await (const reply of rpc.steer(asked())) {
      if (reply.event.event.case === "thought") {
        sayMore(steer({ case: "finishThinking", value: create(FinishThinkingSchema) }));
      }
      yield reply;
    }
  }
  return answerOf(watched());
}

async function cancel(rpc) {
  const leaving = new AbortController();
  for await (const { event } of rpc.stream(specOf("SLOW ANSWER"), { signal: leaving.signal })) {
    if (event.event.case === "answer") leaving.abort();
  }
  return "ended by itself";
}

async function deadline(rpc) {
  for await (const _ of rpc.stream(specOf("SLOW ANSWER"), { timeoutMs: 700 }));
  return "ended by itself";
}

async function parallel(rpc, codeOf, count) {
  const one = () => answerOf(rpc.stream(specOf("PARALLEL"), {})).catch(codeOf);
  const seen = {};
  for (const end of await Promise.all(Array.from({ length: count }, one))) seen[end] = (seen[end] ?? 0) + 1;
  return Object.keys(seen).sort().map((end) => `${seen[end]} ${end}`).join(", ");
}

/** Runs all cases of the plan, and prints their ends. */
export async function run(rpc, codeOf, plan) {
  const cases = {
    unary: async () => (await rpc.unary(specOf("SHORT"))).candidates[0].answer,
    stream: () => answerOf(rpc.stream(specOf("SHORT"), {})),
    bidi: () => bidi(rpc),
    cancel: () => cancel(rpc),
    deadline: () => deadline(rpc),
    parallel: () => parallel(rpc, codeOf, plan.parallel),
  };
  const ends = {};
  for (const [name, one] of Object.entries(cases)) ends[name] = await one().catch(codeOf);
  console.log(JSON.stringify(ends));
}
