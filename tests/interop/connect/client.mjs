// The cases of tests/interop on @connectrpc/connect-node with gRPC's protocol. argv: the plan as JSON.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { readFileSync } from "node:fs";
import { GenerationService } from "../../../clients/typescript/dist/gen/penstock/v1/generation_pb.js";
import { run } from "../cases.mjs";

const plan = JSON.parse(process.argv[2]);
const baseUrl = `${plan.ca ? "https" : "http"}://${plan.target}`;
const nodeOptions = plan.ca ? { ca: readFileSync(plan.ca) } : {};
const sessionManager = new Http2SessionManager(baseUrl, {}, nodeOptions);
const client = createClient(GenerationService, createGrpcTransport({ baseUrl, nodeOptions, sessionManager }));

const rpc = {
  unary: (spec) => client.generate({ spec }),
  stream: (spec, options) => client.streamGenerate({ spec }, options),
  steer: (requests) => client.interact(requests),
};
// Code.DeadlineExceeded -> DEADLINE_EXCEEDED; the protocol's spelling of CANCELLED has two Ls.
const nameOf = (code) => Code[code].replace(/(?<=[a-z])([A-Z])/g, "_$1").toUpperCase().replace("CANCELED", "CANCELLED");

await run(rpc, (error) => (error instanceof ConnectError ? nameOf(error.code) : String(error)), plan);
sessionManager.abort();
