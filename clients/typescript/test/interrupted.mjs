// Reads a stream until a signal ends the process.
import * as penstock from "../dist/index.js";

const client = new penstock.Client(process.argv[2]);
for await (const event of client.stream("hi")) void event;
