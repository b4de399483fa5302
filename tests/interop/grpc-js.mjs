// The cases of tests/interop on @grpc/grpc-js. argv: the plan as JSON.
import { readFileSync } from "node:fs";
import {
  GenerateRequestSchema,
  GenerateResponseSchema,
  InteractRequestSchema,
  InteractResponseSchema,
  StreamGenerateRequestSchema,
  StreamGenerateResponseSchema,
} from "../../clients/typescript/dist/gen/penstock/v1/generation_pb.js";
import { create, fromBinary, toBinary } from "../../clients/typescript/node_modules/@bufbuild/protobuf/dist/esm/index.js";
import grpc from "../../clients/typescript/node_modules/@grpc/grpc-js/build/src/index.js";
import { run } from "./cases.mjs";

const plan = JSON.parse(process.argv[2]);
const credentials = plan.ca ? grpc.credentials.createSsl(readFileSync(plan.ca)) : grpc.credentials.createInsecure();
const client = new grpc.Client(plan.target, credentials);
const path = (method) => `/penstock.v1.GenerationService/${method}`;
const writes = (schema) => (message) => Buffer.from(toBinary(schema, message));
const reads = (schema) => (bytes) => fromBinary(schema, bytes);

const rpc = {
  unary: (spec) =>
    new Promise((resolve, reject) => {
      const request = create(GenerateRequestSchema, { spec });
      const [out, back] = [writes(GenerateRequestSchema), reads(GenerateResponseSchema)];
      client.makeUnaryRequest(path("Generate"), out, back, request, (error, reply) => (error ? reject(error) : resolve(reply)));
    }),
  stream(spec, { signal, timeoutMs }) {
    const request = create(StreamGenerateRequestSchema, { spec });
    const [out, back] = [writes(StreamGenerateRequestSchema), reads(StreamGenerateResponseSchema)];
    const options = timeoutMs ? { deadline: Date.now() + timeoutMs } : {};
    const call = client.makeServerStreamRequest(path("StreamGenerate"), out, back, request, options);
    signal?.addEventListener("abort", () => call.cancel());
    return call;
  },
  async *steer(requests) {
    const call = client.makeBidiStreamRequest(path("Interact"), writes(InteractRequestSchema), reads(InteractResponseSchema));
    const sending = (async () => {
      for await (const request of requests) call.write(request);
      call.end();
    })();
    yield* call;
    await sending;
  },
};

await run(rpc, (error) => grpc.status[error.code] ?? String(error), plan);
client.close();
