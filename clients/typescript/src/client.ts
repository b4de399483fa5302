/** The client of one Penstock service. */
import { create, fromBinary, toBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { apiKeyOf, targetOf, tlsOf } from "./environment.js";
import { fromServiceError, PenstockError, rateLimitsOf } from "./errors.js";
import {
  CancelRequestSchema,
  CancelResponseSchema,
  CountTokensRequestSchema,
  CountTokensResponseSchema,
  GenerateRequestSchema,
  GenerateResponseSchema,
  GenerationSpecSchema,
  InteractRequestSchema,
  InteractResponseSchema,
  ResumeRequestSchema,
  ResumeResponseSchema,
  StreamGenerateRequestSchema,
  StreamGenerateResponseSchema,
  type CountTokensResponse,
  type GenerationSpec,
} from "./gen/penstock/v1/generation_pb.js";
import { GetModelRequestSchema, GetModelResponseSchema, type GetModelResponse } from "./gen/penstock/v1/model_pb.js";
import {
  GetExpertLoadRequestSchema,
  GetExpertLoadResponseSchema,
  WatchExpertLoadRequestSchema,
  WatchExpertLoadResponseSchema,
  type ExpertLoad,
  type WatchExpertLoadResponse,
} from "./gen/penstock/v1/routing_pb.js";
import { RECONNECT, type Reconnect } from "./reconnect.js";
import { Response } from "./response.js";
import { checkOptions, type Known } from "./options.js";
import { buildSpec, GENERATION_OPTIONS, type GenerationOptions, type Prompt } from "./spec.js";
import { closeAtSignals, forgetSignals } from "./signals.js";
import { Interaction, Stream, type Call, type Link, type Running, type SteeredCall } from "./stream.js";

const GENERATION = "/penstock.v1.GenerationService";
const MODEL = "/penstock.v1.ModelService";
const ROUTING = "/penstock.v1.RoutingService";
/** Longest that saying Cancel may take while the client goes on, and that closing it waits for what is cancelled. */
const CANCEL_SECONDS = 5;
const CLOSE_SECONDS = 1;
const READ_SECONDS = 30;
const MAX_RECEIVE_BYTES = 256 * 1024 * 1024;

/**
 * Retries of the two calls that may be repeated for nothing, which is off by default:
 * `channelOptions: { "grpc.service_config": RETRY_READS_SERVICE_CONFIG }`. Generating is never retried: it would be done,
 * and billed, twice.
 */
export const RETRY_READS_SERVICE_CONFIG = `{
  "methodConfig": [{
    "name": [
      {"service": "penstock.v1.ModelService", "method": "GetModel"},
      {"service": "penstock.v1.GenerationService", "method": "CountTokens"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.2s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`;

/** What the client says of what it does by itself; `console`, pino and winston fit. Never prompt or output. */
export interface Logger {
  info(message: string): void;
}

export interface ClientOptions {
  apiKey?: string;
  /**
   * False or absent: plaintext. True: the default roots. A string: path of a CA certificate in PEM. Credentials: as they
   * are, for example with a client certificate.
   */
  tls?: boolean | string | grpc.ChannelCredentials;
  /** Seconds; the deadline of calls that name none. Default: none to generate, 30 for calls that generate nothing. */
  timeout?: number;
  /** How often a call that the server refused for now, with the time to wait, is tried again. Default: never. */
  retries?: number;
  /** More gRPC metadata for each call, such as `x-request-id`. */
  metadata?: Readonly<Record<string, string>>;
  /** What is done about dropped connections; null: nothing. */
  reconnect?: Partial<Reconnect> | null;
  /** Is told of lost connections and of calls that are tried again. Default: nobody. */
  logger?: Logger;
  channelOptions?: grpc.ChannelOptions;
}
export interface CallOptions {
  /** Seconds. The server stops working at it, and thinking "auto" plans so that the answer arrives before it. */
  timeout?: number;
  /** Aborting it ends the call, and the generation at the server. */
  signal?: AbortSignal;
}
export interface FlushOptions {
  /** Seconds. Gathers deltas for at most that long: fewer, larger events; the first ones and the last are not held. */
  flushIntervalSeconds?: number;
}
export interface ExpertLoadOptions extends CallOptions {
  /** Up to an hour; absent: the server's own. */
  windowSeconds?: number;
  /** Parallel ranks that the shares are about; absent: as served. */
  ranks?: number;
}
export interface WatchOptions extends ExpertLoadOptions {
  /** 0.1 to an hour; absent: 1. */
  intervalSeconds?: number;
}
export interface StreamOptions extends CallOptions, FlushOptions {
  /** Go on over a dropped connection. Default: unless the client has `reconnect: null`. */
  resumable?: boolean;
}
/** A prompt, or a ready request. */
export type Input = Prompt | GenerationSpec;

/**
 *     const client = new Client("127.0.0.1:50051");
 *     const reply = await client.generate("What is 48 + 27 + 36 + 15?", { thinking: "thinking", budget: 64 });
 *
 * Every method fails with the errors of `errors.ts`. A stream whose connection drops goes on over another one; nothing
 * else is retried.
 */
export class Client {
  private readonly grpc: grpc.Client;
  private metadata = new grpc.Metadata();
  private retries: number;
  private readonly reconnect: Reconnect | undefined;
  private timeout: number | undefined;
  private readonly leaving = new Set<Promise<unknown>>();
  private readonly running = new Set<Running>();
  private root: Client = this;
  private closed = false;
  private readonly atSignal = () => this.close();
  private readonly log: (message: string) => void;

  readonly target: string;

  /**
   * What is not given comes from the environment: PENSTOCK_TARGET (else 127.0.0.1:50051), PENSTOCK_API_KEY or
   * PENSTOCK_API_KEY_FILE, PENSTOCK_CA_FILE or PENSTOCK_TLS.
   */
  constructor(given?: string, options: ClientOptions = {}) {
    checkOptions(options, CLIENT);
    const target = targetOf(given);
    const [apiKey, tls] = [apiKeyOf(options.apiKey), tlsOf(options.tls)];
    this.target = target;
    const { logger } = options;
    if (logger && typeof logger.info !== "function") throw new TypeError("logger must have a method info");
    this.log = (message) => logger?.info(message);
    this.retries = options.retries ?? 0;
    addMetadata(this.metadata, options.metadata);
    const local = isLoopback(target);
    if (apiKey !== undefined) {
      if (tls === undefined && !local) {
        throw new TypeError(`the API key would go to ${target} in the clear: tls: true, or tls: false if that is meant`);
      }
      this.metadata.set("authorization", `Bearer ${apiKey}`);
    }
    this.timeout = options.timeout;
    if (options.reconnect) checkOptions(options.reconnect, POLICY);
    this.reconnect = options.reconnect === null ? undefined : { ...RECONNECT, ...options.reconnect };
    this.grpc = new grpc.Client(target, credentialsFor(tls), {
      "grpc.max_receive_message_length": MAX_RECEIVE_BYTES,
      // A connection that died without a word is found out, so that the stream can go on over another.
      "grpc.keepalive_time_ms": 30_000,
      "grpc.keepalive_timeout_ms": 10_000,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 5_000,
      ...(local && { "grpc.enable_http_proxy": 0 }),
      ...options.channelOptions,
    });
  }

  /** A client with other defaults over the same connection; `metadata` is added. Closing one closes both. */
  withOptions(options: Pick<ClientOptions, "timeout" | "retries" | "metadata">): Client {
    checkOptions(options, { timeout: CLIENT.timeout, retries: CLIENT.retries, metadata: CLIENT.metadata });
    const other: Client = Object.assign(Object.create(Client.prototype) as Client, this);
    other.timeout = options.timeout ?? this.timeout;
    other.retries = options.retries ?? this.retries;
    other.metadata = this.metadata.clone();
    addMetadata(other.metadata, options.metadata);
    return other;
  }

  /** Starts a generation and gives its events as they come. Leaving the loop ends the generation. */
  stream(input: Input, options: GenerationOptions & StreamOptions = {}): Stream {
    const resumable = options.resumable ?? this.reconnect !== undefined;
    const request = create(StreamGenerateRequestSchema, {
      spec: specOf(input, options, STREAM),
      resumable,
      ...flushOf(options),
    });
    const path = `${GENERATION}/StreamGenerate`;
    const deadline = this.deadline(options);
    const start = () =>
      this.serverStream(path, StreamGenerateRequestSchema, StreamGenerateResponseSchema, request, deadline);
    const link = this.link(options, resumable, start);
    return new Stream(link, start());
  }

  /** Starts a generation that can be steered while its events come. A dropped connection ends it. */
  interact(input: Input, options: GenerationOptions & CallOptions & FlushOptions = {}): Interaction {
    const start = create(InteractRequestSchema, {
      action: { case: "start", value: specOf(input, options, { ...CALL, ...FLUSH }) },
      ...flushOf(options),
    });
    const link = this.link(options);
    const call = this.grpc.makeBidiStreamRequest(
      `${GENERATION}/Interact`,
      writer(InteractRequestSchema),
      reader(InteractResponseSchema),
      this.metadata,
      callOptions(link.deadline),
    );
    return new Interaction(link, call as SteeredCall, start);
  }

  /** Goes on with a resumable stream, of this process or another, after `lastSequence`; 0 replays everything. */
  resume(generationId: string, resumeToken: string, lastSequence = 0, options: CallOptions = {}): Stream {
    checkOptions(options, CALL);
    const request = create(ResumeRequestSchema, { generationId, resumeToken, lastSequence: BigInt(lastSequence) });
    const link = this.link(options);
    return new Stream(link, link.resume(request), request);
  }

  /** One reply, complete. */
  async generate(input: Input, options: GenerationOptions & CallOptions = {}): Promise<Response> {
    const request = create(GenerateRequestSchema, { spec: specOf(input, options, CALL) });
    const path = `${GENERATION}/Generate`;
    let rateLimits = {};
    const seen = (trailers: grpc.Metadata) => (rateLimits = rateLimitsOf(trailers));
    const reply = await this.unary(path, GenerateRequestSchema, GenerateResponseSchema, request, options, seen);
    return Object.assign(Response.fromProto(reply), { rateLimits });
  }

  /** Counts tokens and cost without generating, and foretells what the overflow policy would drop. */
  async count(input: Input, options: GenerationOptions & CallOptions = {}): Promise<CountTokensResponse> {
    const request = create(CountTokensRequestSchema, { spec: specOf(input, options, CALL) });
    const path = `${GENERATION}/CountTokens`;
    return this.unary(path, CountTokensRequestSchema, CountTokensResponseSchema, request, this.reading(options));
  }

  /** What is served: the model's card, profile, prices and limits. */
  async model(name = "", options: CallOptions = {}): Promise<GetModelResponse> {
    checkOptions(options, CALL);
    const request = create(GetModelRequestSchema, { model: name });
    return this.unary(`${MODEL}/GetModel`, GetModelRequestSchema, GetModelResponseSchema, request, this.reading(options));
  }

  /** Tokens per expert and layer, over the window that ends now. Fails with `FeatureOff` where nothing is counted. */
  async expertLoad(options: ExpertLoadOptions = {}): Promise<ExpertLoad> {
    checkOptions(options, EXPERTS);
    const request = create(GetExpertLoadRequestSchema, {
      window: seconds(options.windowSeconds),
      rankCount: options.ranks,
    });
    const path = `${ROUTING}/GetExpertLoad`;
    const reply = await this.unary(path, GetExpertLoadRequestSchema, GetExpertLoadResponseSchema, request, this.reading(options));
    return reply.load!;
  }

  /** The same, again and again, until the loop over it is left. */
  async *watchExpertLoad(options: WatchOptions = {}): AsyncGenerator<ExpertLoad> {
    checkOptions(options, { ...EXPERTS, intervalSeconds: ["number"] });
    const request = create(WatchExpertLoadRequestSchema, {
      window: seconds(options.windowSeconds),
      interval: seconds(options.intervalSeconds),
      rankCount: options.ranks,
    });
    const call = this.grpc.makeServerStreamRequest(
      `${ROUTING}/WatchExpertLoad`,
      writer(WatchExpertLoadRequestSchema),
      reader(WatchExpertLoadResponseSchema),
      request,
      this.metadata,
      callOptions(this.deadline(options)),
    );
    call.on("error", () => {}); // what the loop does not see any more: its own cancelling
    const abort = () => call.cancel();
    options.signal?.addEventListener("abort", abort);
    if (options.signal?.aborted) abort();
    try {
      for await (const reply of call) yield (reply as WatchExpertLoadResponse).load!;
    } catch (error) {
      throw fromServiceError(error as grpc.ServiceError);
    } finally {
      options.signal?.removeEventListener("abort", abort);
      call.cancel();
    }
  }

  /** Ends the generations that still run, waits at most a second for the server to know, and disconnects. */
  async close(): Promise<void> {
    this.root.closed = true;
    for (const running of [...this.running]) running.close();
    const late = Date.now() + CLOSE_SECONDS * 1000;
    while (this.leaving.size > 0 && Date.now() < late) {
      // Not only once: a stream that waits for its token has its Cancel still to say.
      await Promise.race([Promise.all(this.leaving), sleep(late - Date.now(), undefined, { ref: false })]);
    }
    forgetSignals(this.atSignal);
    this.grpc.close();
  }

  /** Calls that generate nothing have a timeout by default. */
  private reading(options: CallOptions): CallOptions {
    return { ...options, timeout: options.timeout ?? this.timeout ?? READ_SECONDS };
  }

  private deadline({ timeout = this.timeout }: CallOptions): number | undefined {
    return timeout === undefined ? undefined : Date.now() + timeout * 1000;
  }

  private link(options: CallOptions, resumable = false, start?: () => Call): Link {
    if (this.root.closed) throw new Error("the client is closed");
    let attempts = this.retries;
    const deadline = this.deadline(options);
    return {
      policy: this.reconnect,
      deadline,
      resumable,
      log: this.log,
      signal: options.signal,
      resume: (request) =>
        this.serverStream(`${GENERATION}/Resume`, ResumeRequestSchema, ResumeResponseSchema, request, deadline),
      abandon: (request) =>
        this.waitFor(
          this.unary(`${GENERATION}/Cancel`, CancelRequestSchema, CancelResponseSchema, request, {
            timeout: CANCEL_SECONDS,
          }).catch(() => undefined), // the server's grace ends it then
        ),
      again: async (failure, left) => {
        const wait = start && attempts > 0 ? waitFor(failure, deadline) : undefined;
        if (wait === undefined) return undefined;
        attempts -= 1;
        this.log(again("StreamGenerate", failure, wait));
        await sleep(wait, undefined, { signal: left }).catch(() => undefined);
        return start!();
      },
      leaving: (work) => this.waitFor(work),
      opened: (running) => {
        this.running.add(running);
        closeAtSignals(this.atSignal);
      },
      over: (running) => {
        this.running.delete(running);
        if (this.running.size === 0) forgetSignals(this.atSignal);
      },
    };
  }

  private waitFor(work: Promise<unknown>): void {
    this.leaving.add(work);
    void work.finally(() => this.leaving.delete(work));
  }

  private serverStream<I extends DescMessage, O extends DescMessage>(
    path: string,
    input: I,
    output: O,
    request: MessageShape<I>,
    deadline: number | undefined,
  ): Call {
    return this.grpc.makeServerStreamRequest(
      path,
      writer(input),
      reader(output),
      request,
      this.metadata,
      callOptions(deadline),
    ) as unknown as Call;
  }

  private async unary<I extends DescMessage, O extends DescMessage>(
    path: string,
    input: I,
    output: O,
    request: MessageShape<I>,
    options: CallOptions,
    seen: (trailers: grpc.Metadata) => void = () => undefined,
  ): Promise<MessageShape<O>> {
    const deadline = this.deadline(options);
    for (let left = this.retries; ; left -= 1) {
      try {
        return await this.attempt(path, input, output, request, deadline, options.signal, seen);
      } catch (error) {
        const wait = left > 0 ? waitFor(error, deadline) : undefined;
        if (wait === undefined) throw error;
        this.log(again(path.slice(path.lastIndexOf("/") + 1), error, wait));
        await sleep(wait, undefined, options.signal && { signal: options.signal }).catch(() => undefined);
      }
    }
  }

  private attempt<I extends DescMessage, O extends DescMessage>(
    path: string,
    input: I,
    output: O,
    request: MessageShape<I>,
    deadline: number | undefined,
    signal: AbortSignal | undefined,
    seen: (trailers: grpc.Metadata) => void,
  ): Promise<MessageShape<O>> {
    return new Promise((resolve, reject) => {
      const call = this.grpc.makeUnaryRequest(
        path,
        writer(input),
        reader(output),
        request,
        this.metadata,
        callOptions(deadline),
        (error, reply) => {
          signal?.removeEventListener("abort", abort);
          if (error) reject(fromServiceError(error));
          else resolve(reply as MessageShape<O>);
        },
      );
      const abort = () => call.cancel();
      call.on("status", ({ metadata }: grpc.StatusObject) => seen(metadata));
      signal?.addEventListener("abort", abort);
      if (signal?.aborted) abort();
    });
  }
}

/** Milliseconds until what was refused for now may be tried again; undefined where it may not, or not in time. */
function waitFor(error: unknown, deadline: number | undefined): number | undefined {
  const after = error instanceof PenstockError ? error.retryAfterSeconds : undefined;
  if (after === undefined) return undefined;
  const wait = after * 1000 * (1 + Math.random() / 5); // not all callers at once
  return deadline !== undefined && Date.now() + wait >= deadline ? undefined : wait;
}

function again(method: string, failure: unknown, wait: number): string {
  const why = failure instanceof PenstockError ? failure.reason || grpc.status[failure.code ?? grpc.status.UNKNOWN] : "";
  return `${method}: ${why}; trying again in ${(wait / 1000).toFixed(2)} s`;
}

function addMetadata(metadata: grpc.Metadata, more: Readonly<Record<string, string>> = {}): void {
  for (const [name, value] of Object.entries(more)) {
    if (/^(authorization$|grpc-|:)/i.test(name)) {
      throw new TypeError(`metadata ${name} is set by the client: give apiKey, timeout and the like`);
    }
    metadata.set(name, value);
  }
}

/** Options of single calls, checked by name and value: see options.ts. */
const CALL = { timeout: ["number"], signal: ["object"] } as const;
const FLUSH = { flushIntervalSeconds: ["number"] } as const;
const STREAM = { ...CALL, ...FLUSH, resumable: ["boolean"] } as const;
const EXPERTS = { ...CALL, windowSeconds: ["number"], ranks: ["integer"] } as const;
const CLIENT = {
  apiKey: ["string"],
  tls: ["boolean", "string", "object"],
  timeout: ["number"],
  retries: ["integer"],
  metadata: ["object"],
  reconnect: ["any"],
  logger: ["object"],
  channelOptions: ["object"],
} as const satisfies Record<keyof ClientOptions, Known[string]>;
const POLICY = {
  maxAttempts: ["integer"],
  maxSeconds: ["number"],
  firstWaitSeconds: ["number"],
  maxWaitSeconds: ["number"],
} as const satisfies Record<keyof Reconnect, Known[string]>;

/** The request. Throws TypeError for options that are neither of the call nor of the generation. */
function specOf(input: Input, options: GenerationOptions & CallOptions, call: Known): GenerationSpec {
  checkOptions(options, { ...GENERATION_OPTIONS, ...call });
  const generation = Object.fromEntries(Object.entries(options).filter(([name]) => !(name in call)));
  if (typeof input === "object" && input && "$typeName" in input && input.$typeName === GenerationSpecSchema.typeName) {
    const surplus = Object.keys(generation)[0];
    if (surplus !== undefined) throw new TypeError(`a spec is the whole request: ${surplus} beside it would be ignored`);
    return input as GenerationSpec;
  }
  return buildSpec(input as Prompt, generation);
}

function flushOf({ flushIntervalSeconds }: FlushOptions) {
  return { flushInterval: seconds(flushIntervalSeconds) };
}

const seconds = (value?: number) => (value === undefined ? undefined : durationFromMs(value * 1000));

const writer =
  <T extends DescMessage>(schema: T) =>
  (message: MessageShape<T>) =>
    Buffer.from(toBinary(schema, message));
const reader =
  <T extends DescMessage>(schema: T) =>
  (bytes: Buffer) =>
    fromBinary(schema, bytes);
const callOptions = (deadline: number | undefined): grpc.CallOptions => (deadline === undefined ? {} : { deadline });

function credentialsFor(tls: ClientOptions["tls"]): grpc.ChannelCredentials {
  if (!tls) return grpc.credentials.createInsecure();
  if (tls instanceof grpc.ChannelCredentials) return tls;
  return grpc.credentials.createSsl(tls === true ? null : readFileSync(tls));
}

/** True for targets that cannot leave this machine. */
function isLoopback(target: string): boolean {
  if (target.startsWith("unix:")) return true;
  const host = target.slice(target.lastIndexOf("/") + 1).replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}
