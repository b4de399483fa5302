// Prints the errors of plain JavaScript with wrong options, one line of JSON per attempt.
import * as penstock from "../dist/index.js";

const client = new penstock.Client("127.0.0.1:1", { reconnect: null });
const attempts = {
  thinkin: () => penstock.buildSpec("hi", { thinkin: "fast" }),
  deep: () => penstock.buildSpec("hi", { thinking: "deep" }),
  fas: () => penstock.buildSpec("hi", { thinking: "fas" }),
  maxTokens: () => penstock.buildSpec("hi", { maxTokens: 5 }),
  max_output_tokens: () => client.stream("hi", { max_output_tokens: 5 }),
  budget: () => penstock.buildSpec("hi", { budget: "5" }),
  fraction: () => penstock.buildSpec("hi", { budget: 1.5 }),
  nothing: () => penstock.buildSpec("hi", { seed: null }),
  stream: () => client.stream("hi", { resumeable: true }),
  interact: () => client.interact("hi", { resumable: true }),
  role: () => penstock.buildSpec([{ role: "asistant", content: "x" }]),
  key: () => penstock.buildSpec([{ role: "user", content: "x", name: "y" }]),
  parts: () => penstock.buildSpec([{ role: "user", content: [{ type: "txt", text: "x" }] }]),
  image: () => penstock.buildSpec([{ role: "user", content: [{ type: "image_url", image_url: { url: "https://a/b" } }] }]),
  developer: () => penstock.buildSpec([{ role: "developer", content: "x" }]),
  toolChoice: () => penstock.buildSpec("hi", { toolChoice: "auto" }),
  tools: () => penstock.buildSpec("hi", { tools: [{ type: "web_search" }] }),
  format: () => penstock.buildSpec("hi", { responseFormat: { type: "json_schema", json_schema: {} } }),
  halfSchema: () => penstock.tool({ name: "x", parameters: { parse: () => 1 } }),
  noExecute: () => client.run("hi", { tools: [{ name: "x" }] }),
  steps: () => client.run("hi", { maxSteps: 3 }),
  prompt: () => penstock.buildSpec(7),
  object: () => penstock.buildSpec({ txt: "x" }),
  spec: () => client.stream(penstock.buildSpec("hi"), { budget: 5 }),
  client: () => new penstock.Client("127.0.0.1:1", { api_key: "k" }),
  logger: () => new penstock.Client("127.0.0.1:1", { logger: { log: () => undefined } }),
  reconnect: () => new penstock.Client("127.0.0.1:1", { reconnect: { mostAttempts: 3 } }),
  generate: () => client.generate("hi", { temprature: 1 }),
  count: () => client.count("hi", { temprature: 1 }),
  model: () => client.model("", { timeOut: 1 }),
  inherited: () => penstock.buildSpec("hi", { constructor: 1 }),
};
for (const [name, attempt] of Object.entries(attempts)) {
  let said;
  try {
    said = (await attempt()) && "taken";
  } catch (error) {
    said = `${error.name}: ${error.message}`;
  }
  console.log(JSON.stringify([name, said]));
}
await client.close();
