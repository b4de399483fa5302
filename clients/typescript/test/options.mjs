// Prints as JSON what user code sees of a client from the environment. "refused" calls a server that refuses, "lost"
// reads a stream whose connection is lost, "another" calls as another caller and closes the client.
import * as penstock from "../dist/index.js";

const said = [];
const base = new penstock.Client(undefined, { logger: { info: (message) => said.push(message) } });
const client = base.withOptions({ retries: 2, metadata: { "X-Team": "a" } });
const talk = new penstock.Conversation("s");
const seen = {};
try {
  new penstock.Client(undefined, { metadata: { Authorization: "x" } });
} catch (error) {
  seen.reserved = error.message;
}
const refusal = (error) => ({ reason: error.reason, limits: error.rateLimits });
if (process.argv[2] === "refused") {
  seen.generate = await client.generate(talk.ask("one")).catch(refusal);
  try {
    for await (const _ of client.stream(talk.ask("two")).text());
  } catch (error) {
    seen.stream = refusal(error);
  }
} else if (process.argv[2] === "another") {
  await base.withOptions({ apiKey: "" }).model();
  await base.withOptions({ apiKey: "another" }).model();
  await base.close();
  seen.closed = await client.generate("x").catch((error) => error.message);
  try {
    new penstock.Client(undefined, { tls: process.argv[1] });
  } catch (error) {
    seen.certificate = error.message.replace(process.argv[1], "FILE");
  }
  try {
    new penstock.Client("service.example:1", { apiKey: "" }).withOptions({ apiKey: "k" });
  } catch (error) {
    seen.network = error.message;
  }
} else if (process.argv[2] === "lost") {
  for await (const _ of client.stream(talk.ask("two")).text());
} else {
  const reply = await client.generate(talk.ask("one"));
  talk.add(reply);
  const stream = client.stream(talk.ask("two"));
  seen.text = "";
  for await (const part of stream.text()) seen.text += part;
  Object.assign(seen, { limits: reply.rateLimits, stream_limits: stream.response.rateLimits });
}
console.log(JSON.stringify({ ...seen, said }));
await base.close();
