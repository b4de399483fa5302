// Streams thought and answer apart, then says what it cost.
import { Client } from "../../clients/typescript/dist/index.js";

const client = new Client(process.env.PENSTOCK_TARGET ?? "127.0.0.1:50051");
const stream = client.stream("What is 48 + 27 + 36 + 15?", { thinking: "auto", timeout: 60 });
for await (const event of stream) {
  if (event.kind === "thought" || event.kind === "answer") process.stdout.write(event.text);
}
const { thinkingOutcome, usage, cost } = stream.response;
console.log(`\n${thinkingOutcome}, ${usage.reasoningTokens} thought and ${usage.answerTokens} answer tokens`);
if (cost) console.log(`${Number(cost.totalUsdTicks) / 1e10} USD`);
await client.close();
