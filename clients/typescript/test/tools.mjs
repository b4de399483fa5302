// What user code sees of tools, for the way named; the service is the environment's. Prints JSON.
import * as penstock from "../dist/index.js";

/** As zod and its like make it: a Standard Schema with a JSON schema. */
const CITY = {
  "~standard": {
    version: 1,
    vendor: "test",
    validate: (value) =>
      typeof value.city === "string"
        ? { value: { days: 1, ...value } }
        : { issues: [{ message: "required", path: [{ key: "city" }] }] },
    jsonSchema: { input: () => ({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }) },
  },
};
const executed = [];
const warmth = penstock.tool({
  name: "warmth",
  description: "Return the temperature.",
  parameters: CITY,
  execute: ({ city, days }) => {
    executed.push(`${city} ${days}`);
    return { city, celsius: 21 };
  },
});
const fails = penstock.tool({
  name: "fails",
  execute: async () => {
    throw new RangeError("secret");
  },
});
const tells = penstock.tool({
  name: "tells",
  execute: () => {
    throw new penstock.ToolError("no city \ud800");
  },
});
const hangs = penstock.tool({ name: "hangs", execute: () => new Promise(() => undefined) });
const tools = [warmth, fails, tells, hangs];
const client = new penstock.Client();
const runOf = (run) => ({
  turns: run.turns.length,
  tool_tokens: run.usage.toolTokens,
  prompt_tokens: run.usage.promptTokens,
  ticks: Number(run.cost?.totalUsdTicks ?? 0n),
});
const failure = (error) => ({ error: error.name, metadata: error.metadata, ...(error.run && runOf(error.run)) });

const WAYS = {
  async run() {
    const seen = { finished: 0, results: [] };
    const run = await client.run("How warm?", {
      tools,
      toolMode: "required",
      allowedTools: ["warmth", "fails", "tells"],
      onEvent: (event) => (seen.finished += Number(event.kind === "finished")),
      onResult: (call, { content, isError }) => seen.results.push([call.id, content, Boolean(isError)]),
    });
    seen.results.sort();
    return { ...seen, ...runOf(run), answer: run.answer, roles: run.messages.map(({ role }) => role) };
  },
  told: () => client.run("hi", { tools, onToolError: (call, error) => `${call.name}: ${error.message}` }).then(runOf),
  limit: () => client.run("hi", { tools, maxTurns: 2 }).catch(failure),
  deadline: () => client.run("hi", { tools, timeout: 3 }).catch(failure),
  async events() {
    const stream = client.stream("hi");
    const [kinds, pieces] = [[], []];
    for await (const event of stream) {
      kinds.push(event.kind);
      if (event.kind === "tool_call_arguments") pieces.push(event.jsonFragment);
    }
    const { toolCalls, finishReason } = stream.response;
    const calls = toolCalls.map(({ id, name, argumentsJson, status }) => [id, name, argumentsJson, status]);
    return { kinds, pieces, calls, finish: finishReason, tokens: stream.response.candidates[0].toolTokens };
  },
  async history() {
    const talk = new penstock.Conversation("s");
    const stream = client.stream(talk.ask("one"));
    for await (const _ of stream);
    talk.add(stream.response).addResults({ callId: "call-0", content: "21" });
    talk.add(await client.generate(talk));
    return { last: talk.at(-1) };
  },
  async parsed() {
    const reply = await client.generate("hi", { responseFormat: CITY });
    return reply.parsed().catch((error) => ({ ...failure(error), message: error.message }));
  },
  async schemas() {
    const schema = { type: "object", properties: { n: { type: "integer" } } };
    const parse = (value) => {
      if (!Number.isInteger(value.n)) throw new TypeError("n must be an integer");
      return value;
    };
    const validate = async (value) => (Number.isInteger(value.n) ? { value } : { issues: [{ message: "no integer", path: ["n"] }] });
    const arktype = Object.assign(() => undefined, { "~standard": { validate }, toJsonSchema: () => schema });
    const kinds = { plain: schema, byHand: { jsonSchema: schema, parse }, zod: { "~standard": { validate }, toJSONSchema: () => schema }, arktype };
    const tools = Object.entries(kinds).map(([name, parameters]) =>
      penstock.tool({ name, parameters, execute: ({ n }) => void executed.push(`${name} ${n}`) }),
    );
    const run = await client.run("hi", { tools });
    return { results: run.turns[0].results };
  },
  async zod() {
    const { z } = await import("zod");
    const place = z.object({ city: z.string().min(1), days: z.number().int().max(9).optional() });
    const tools = [penstock.tool({ name: "weather", parameters: place, execute: ({ city }) => void executed.push(city) })];
    const run = await client.run("hi", { tools, responseFormat: z.object({ celsius: z.number() }) });
    return { results: run.turns[0].results, parsed: await run.reply.parsed() };
  },
  async foreign() {
    await client.generate([
      { role: "user", content: [{ type: "text", text: "hi" }, { type: "image_url", image_url: { url: "data:image/png;base64,AAEC" } }] },
      { role: "assistant", content: null, tool_calls: [{ id: "c1", type: "function", function: { name: "f", arguments: "{}" } }] },
      { role: "tool", tool_call_id: "c1", content: "42" },
      {
        role: "assistant",
        content: [{ type: "thinking", thinking: "hm", signature: "s" }, { type: "tool_use", id: "c2", name: "f", input: { a: 1 } }],
      },
      { role: "user", content: [{ type: "tool_result", tool_use_id: "c2", content: "x", is_error: true }, { type: "text", text: "and?" }] },
    ]);
    return {};
  },
};
console.log(JSON.stringify({ ...(await WAYS[process.argv[2]]()), executed }));
await client.close();
