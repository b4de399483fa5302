// Stops a thought that takes too long: the answer starts at once.
import { Client } from "../../clients/typescript/dist/index.js";

const client = new Client(process.env.PENSTOCK_TARGET ?? "127.0.0.1:50051");
const options = { thinking: "thinking", budget: -1, timeout: 60 };
const interaction = client.interact("What is 48 + 27 + 36 + 15?", options);
for await (const event of interaction) {
  if (event.kind === "thought" && event.response.candidate(0).reasoningTokens === 10) interaction.finishThinking();
}
console.log(`${interaction.response.thinkingOutcome}: ${interaction.response.answer}`);
await client.close();
