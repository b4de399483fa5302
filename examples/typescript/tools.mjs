// Lets the model call a function, and prints each call, the answer, and what all turns used.
import { Client, tool } from "../../clients/typescript/dist/index.js";

const temperature = tool({
  name: "temperature",
  description: "Return the temperature in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  execute: ({ city }) => `It is 21 degrees in ${city}.`,
});

const client = new Client();
const run = await client.run("How warm is it in Oslo?", {
  tools: [temperature],
  maxTurns: 4,
  timeout: 60,
  onResult: (call, result) => console.log(call.name, call.argumentsJson, "->", result.content),
});
console.log(run.answer);
console.log(run.usage.toolTokens, "tokens of tool calls");
await client.close();
