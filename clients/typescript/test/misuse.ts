// Lines that the compiler must refuse: each one after an @ts-expect-error, and no other. A test compiles this file.
import { z } from "zod";
import * as penstock from "../src/index.js";

const client = new penstock.Client();
const reply = await client.generate("hi");
/** As zod's types are. */
declare const city: { readonly "~standard": { readonly types?: { readonly input: unknown; readonly output: { city: string } } | undefined } };

/** What must compile: arguments and answers have the types of a zod schema. */
const place = z.object({ city: z.string(), days: z.number().int().optional() });
penstock.tool({ name: "x", parameters: place, execute: ({ city, days }) => city.length + (days ?? 1) });
(await reply.parsed(place)).city.length;
await client.generate("hi", { responseFormat: place });

// @ts-expect-error
penstock.tool({ name: "x", parameters: place, execute: ({ town }) => town });
// @ts-expect-error
(await reply.parsed(place)).town;
// @ts-expect-error
await client.generate("hi", { thinkin: "fast" });
// @ts-expect-error
await client.generate("hi", { thinking: "deep" });
// @ts-expect-error
await client.generate("hi", { budget: "64" });
// @ts-expect-error
await client.generate("hi", { maxTokens: 5 });
// @ts-expect-error
await client.generate("hi", { max_output_tokens: 5 });
// @ts-expect-error
await client.generate("hi", { stop: 7 });
// @ts-expect-error
await client.generate("hi", { seed: null });
// @ts-expect-error
await client.generate(7);
// @ts-expect-error
await client.generate({ txt: "hi" });
// @ts-expect-error
await client.generate([{ role: "asistant", content: "x" }]);
// @ts-expect-error
await client.generate([{ role: "user", content: [{ type: "txt", text: "x" }] }]);
// @ts-expect-error
await client.generate([{ role: "user", content: [{ type: "tool_result", content: "x" }] }]);
// @ts-expect-error
await client.generate("hi", { effort: "max" });
// @ts-expect-error
await client.generate("hi", { toolMode: "any" });
// @ts-expect-error
await client.generate("hi", { tools: [{ description: "no name" }] });
// @ts-expect-error
await client.run("hi", { maxSteps: 5 });
// @ts-expect-error
await client.run("hi", { onToolError: () => 7 });
// @ts-expect-error
penstock.tool({ name: "x", exec: () => 1 });
// @ts-expect-error
penstock.tool({ name: "x", parameters: city, execute: ({ town }) => town });
// @ts-expect-error
(await reply.parsed(city)).town;
// @ts-expect-error
new penstock.Conversation().addResults("x");
// @ts-expect-error
client.stream("hi", { resumeable: true });
// @ts-expect-error
client.interact("hi", { resumable: true });
// @ts-expect-error
await client.count("hi", { temprature: 1 });
// @ts-expect-error
await client.model("", { timeOut: 1 });
// @ts-expect-error
await client.expertLoad({ window: 1 });
// @ts-expect-error
client.resume("id");
// @ts-expect-error
client.withOptions({ tls: true });
// @ts-expect-error
new penstock.Client("a:1", { api_key: "k" });
// @ts-expect-error
new penstock.Client("a:1", { reconnect: { mostAttempts: 3 } });
// @ts-expect-error
new penstock.Client("a:1", { logger: { log: () => undefined } });
// @ts-expect-error
penstock.buildSpec("hi", { thinkin: "fast" });
// @ts-expect-error
new penstock.Conversation().add(7);
// @ts-expect-error
reply.anwser;
// @ts-expect-error
reply.finishReason === "stopped";
// @ts-expect-error
reply.usage.promptTokens;
// @ts-expect-error
client.generate("hi").answer;

// Correct uses, which the compiler must accept.
const talk = new penstock.Conversation("be short");
talk.add(await client.generate(talk.ask("hi"), { thinking: "thinking", budget: -1, stop: ["a"], timeout: 1 }));
for await (const event of client.stream({ text: "hi" }, { jsonSchema: { type: "object" }, resumable: false })) {
  if (event.kind === "answer") event.text.toUpperCase();
}
for await (const text of client.withOptions({ timeout: 3, metadata: { "x-team": "a" } }).stream("hi").text()) text.trim();
new penstock.Client("a:1", { logger: console, reconnect: null });
const warmth = penstock.tool({ name: "warmth", parameters: city, strict: true, execute: async ({ city }, { signal }) => city.trim() + signal });
const now = penstock.tool({ name: "now", execute: () => 7 });
const plain = penstock.tool({ name: "plain", parameters: { type: "object", properties: {} }, execute: (args) => args["x"] });
const run = await client.run(talk, { tools: [warmth, now, plain], toolMode: "validated", maxTurns: 3, onToolError: (call) => call.name });
talk.add(run.reply).addResults(...(run.turns[0]?.results ?? []));
(await run.reply.parsed(city)).city.trim();
await client.generate([
  { role: "user", content: [{ type: "text", text: "x" }, "y", { type: "image", data: new Uint8Array(), mimeType: "image/png" }] },
  { role: "assistant", content: null, tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: "{}" } }] },
  { role: "tool", tool_call_id: "c", content: "42" },
  { role: "user", content: [{ type: "tool_result", tool_use_id: "c", content: "42" }] },
  penstock.toolMessage({ callId: "c", content: "42", isError: true }),
]);
const version: string = penstock.VERSION;
export default version;
