/** A client of one Penstock service. */
import { create, fromBinary, toBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { apiKeyOf, targetOf, tlsOf } from "./environment.js";
import { Cancelled, fromServiceError, PenstockError, rateLimitsOf } from "./errors.js";
import {
  CancelRequestSchema,
  CancelResponseSchema,
  CancelSchema,
  ChangeBudgetSchema,
  CountTokensRequestSchema,
  CountTokensResponseSchema,
  FinishThinkingSchema,
  GenerateRequestSchema,
  GenerateResponseSchema,
  GenerationSpecSchema,
  InteractRequestSchema,
  InteractResponseSchema,
  ResumeRequestSchema,
  ResumeResponseSchema,
  SteerRequestSchema,
  SteerResponseSchema,
  StreamGenerateRequestSchema,
  StreamGenerateResponseSchema,
  type CountTokensResponse,
  type GenerationSpec,
  type SteerRequest,
  type SteerResponse,
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
import { checkOptions, checkValue, describe, type Known } from "./options.js";
import { buildSpec, GENERATION_OPTIONS, type GenerationOptions, type Prompt } from "./spec.js";
import { closeAtSignals, forgetSignals } from "./signals.js";
import { Run, ToolLoop, type RunOptions } from "./tools.js";
import {
  Interaction, Stream, type Call, type EventStream, type Link, type Running, type SteerAction, type SteeredCall,
} from "./stream.js";

const GENERATION = "/penstock.v1.GenerationService";
const MODEL = "/penstock.v1.ModelService";
const ROUTING = "/penstock.v1.RoutingService";
/** Longest time for a Cancel while the client is in use, and longest wait of `close()` for all cancelled calls. */
const CANCEL_SECONDS = 5;
const CLOSE_SECONDS = 1;
const READ_SECONDS = 30;
const MAX_RECEIVE_BYTES = 256 * 1024 * 1024;

/**
 * A gRPC service config that retries the two calls that can be repeated without cost. It is off by default:
 * `channelOptions: { "grpc.service_config": RETRY_READS_SERVICE_CONFIG }`. A generation is never retried: it would
 * run, and be billed, twice.
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

/** A logger for lost connections and retries, such as `console`, pino or winston. It gets no prompt and no output. */
export interface Logger {
  info(message: string): void;
}

export interface ClientOptions {
  apiKey?: string;
  /**
   * False or absent: plaintext. True: the default roots. A string: path of a CA certificate in PEM. Credentials: used
   * unchanged, for example with a client certificate.
   */
  tls?: boolean | string | grpc.ChannelCredentials;
  /** Default deadline of calls in seconds. Absent: none for generations, 30 for calls that generate nothing. */
  timeout?: number;
  /** Number of retries of a call that the server refused with a retry delay. Default: 0. */
  retries?: number;
  /** Additional gRPC metadata of each call, such as `x-request-id`. */
  metadata?: Readonly<Record<string, string>>;
  /** Bounds of the attempts to resume a stream after a lost connection; null: do not resume. */
  reconnect?: Partial<Reconnect> | null;
  /** Logger for lost connections and retries. Default: none. */
  logger?: Logger;
  channelOptions?: grpc.ChannelOptions;
}
export interface CallOptions {
  /** Deadline in seconds. The server stops at it, and thinking "auto" plans so that the answer arrives before it. */
  timeout?: number;
  /** Signal whose abort ends the call, and the generation at the server. */
  signal?: AbortSignal;
}
export interface FlushOptions {
  /** Longest time in seconds that deltas are coalesced into fewer, larger events. First and last ones are not held. */
  flushIntervalSeconds?: number;
}
export interface ExpertLoadOptions extends CallOptions {
  /** Length of the window in seconds, up to an hour; absent: the server's default. */
  windowSeconds?: number;
  /** Number of parallel ranks for which shares are computed; absent: as served. */
  ranks?: number;
}
export interface WatchOptions extends ExpertLoadOptions {
  /** Seconds between two replies, from 0.1 to an hour; absent: 1. */
  intervalSeconds?: number;
}
export interface StreamOptions extends CallOptions, FlushOptions {
  /** Resume the stream after a lost connection. Default: true, unless the client has `reconnect: null`. */
  resumable?: boolean;
}
/** A prompt, or a complete request. */
export type Input = Prompt | GenerationSpec;

/**
 * A client of one service.
 *
 *     const client = new Client("127.0.0.1:50051");
 *     const reply = await client.generate("What is 48 + 27 + 36 + 15?", { thinking: "thinking", budget: 64 });
 *
 * Each method fails with the errors of `errors.ts`. A stream whose connection is lost resumes
 * over another one; nothing else is retried by default.
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
  /** Whether a key would be sent over a network without encryption, and nobody allowed that. */
  private readonly inClear: boolean;
  private readonly atSignal = () => this.close();
  private readonly log: (message: string) => void;

  readonly target: string;

  /**
   * Makes a client. Absent options come from the environment: PENSTOCK_TARGET (else 127.0.0.1:50051), PENSTOCK_API_KEY
   * or PENSTOCK_API_KEY_FILE, PENSTOCK_CA_FILE or PENSTOCK_TLS.
   */
  constructor(given?: string, options: ClientOptions = {}) {
    checkOptions(options, CLIENT);
    if (given !== undefined) checkValue("target", given, ["string"]);
    const target = targetOf(given);
    const [apiKey, tls] = [apiKeyOf(options.apiKey), tlsOf(options.tls)];
    this.target = target;
    const { logger } = options;
    if (logger && typeof logger.info !== "function") throw new TypeError("logger must have a method info");
    this.log = (message) => logger?.info(message);
    this.retries = options.retries ?? 0;
    addMetadata(this.metadata, options.metadata);
    const local = isLoopback(target);
    this.inClear = tls === undefined && !local;
    if (apiKey !== undefined) this.authenticate(apiKey);
    this.timeout = options.timeout;
    if (options.reconnect != null) checkOptions(options.reconnect, POLICY, "reconnect");
    this.reconnect = options.reconnect === null ? undefined : { ...RECONNECT, ...options.reconnect };
    this.grpc = new grpc.Client(target, credentialsFor(tls), {
      "grpc.max_receive_message_length": MAX_RECEIVE_BYTES,
      // Detects a connection that is lost without a signal, so that the stream can resume over another one.
      "grpc.keepalive_time_ms": 30_000,
      "grpc.keepalive_timeout_ms": 10_000,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 5_000,
      ...(local && { "grpc.enable_http_proxy": 0 }),
      ...options.channelOptions,
    });
  }

  private authenticate(apiKey: string): void {
    if (this.inClear) {
      throw new TypeError(`the API key would be sent to ${this.target} without encryption; set tls: true, or tls: false to allow it`);
    }
    this.metadata.set("authorization", `Bearer ${apiKey}`);
  }

  /**
   * Returns a client with other defaults over the same connection; `metadata` is added, and an empty `apiKey` is none.
   * Closing one closes both.
   */
  withOptions(options: Pick<ClientOptions, "apiKey" | "timeout" | "retries" | "metadata"> = {}): Client {
    const { apiKey: key, timeout, retries, metadata } = CLIENT;
    checkOptions(options, { apiKey: key, timeout, retries, metadata });
    const other: Client = Object.assign(Object.create(Client.prototype) as Client, this);
    other.timeout = options.timeout ?? this.timeout;
    other.retries = options.retries ?? this.retries;
    other.metadata = this.metadata.clone();
    addMetadata(other.metadata, options.metadata);
    if (options.apiKey !== undefined) {
      const apiKey = apiKeyOf(options.apiKey);
      if (apiKey === undefined) other.metadata.remove("authorization");
      else other.authenticate(apiKey);
    }
    return other;
  }

  /** Starts a generation and returns its stream of events. Leaving the loop ends the generation. */
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
    return formatted(new Stream(link, start()), options);
  }

  /** Starts a generation that can be controlled while its events come. A lost connection ends it. */
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
    return formatted(new Interaction(link, call as SteeredCall, start), options);
  }

  /** Resumes a stream, of this process or another one, after `lastSequence`; 0 replays all events. */
  resume(generationId: string, resumeToken: string, lastSequence = 0, options: CallOptions = {}): Stream {
    checkOptions(options, CALL);
    checkPlace(generationId, resumeToken);
    if (!(Number.isSafeInteger(lastSequence) && lastSequence >= 0)) {
      throw new TypeError(`lastSequence must be an integer from 0, got ${String(lastSequence)}`);
    }
    const request = create(ResumeRequestSchema, { generationId, resumeToken, lastSequence: BigInt(lastSequence) });
    const link = this.link(options);
    return new Stream(link, link.resume(request), request);
  }

  /**
   * Steers a resumable generation that runs, by one action, which takes effect at the next engine step: for callers that
   * cannot hold an `interact` stream, and for another process than the one that reads the stream. It goes to the server
   * where the generation runs. Fails with `GenerationNotFound` where it is unknown, expired, on another server or another
   * caller's, or has ended (`error.metadata.state` is then "finished").
   */
  async steer(
    generationId: string,
    resumeToken: string,
    action: SteerAction,
    options: CallOptions = {},
  ): Promise<SteerResponse> {
    checkOptions(options, CALL);
    checkPlace(generationId, resumeToken);
    const request = create(SteerRequestSchema, { generationId, resumeToken, action: actionOf(action) });
    return this.unary(`${GENERATION}/Steer`, SteerRequestSchema, SteerResponseSchema, request, this.reading(options));
  }

  /** Returns one complete reply. */
  async generate(input: Input, options: GenerationOptions & CallOptions = {}): Promise<Response> {
    const request = create(GenerateRequestSchema, { spec: specOf(input, options, CALL) });
    this.checkOpen();
    const path = `${GENERATION}/Generate`;
    let rateLimits = {};
    const seen = (trailers: grpc.Metadata) => (rateLimits = rateLimitsOf(trailers));
    const reply = await this.unary(path, GenerateRequestSchema, GenerateResponseSchema, request, options, seen);
    return Object.assign(Response.fromProto(reply), { rateLimits, responseFormat: options.responseFormat });
  }

  /**
   * Asks, executes the tool calls of the reply, sends the results, and repeats until a reply has no calls.
   *
   *     const run = await client.run("How warm is it in Oslo?", { tools: [weather], maxTurns: 4 });
   *
   * Only complete calls of a tool in `tools` (and in `allowedTools`) are executed, each once, also where the connection
   * drops, after its arguments are checked. For other calls, and for a tool that throws, the model is given an error
   * result: the message of a `ToolError`, of other errors the name only. With toolMode "required" the first reply must
   * call; later ones are as with "validated". `timeout` is for all turns and tools together. Fails with
   * `TurnLimitReached` where the last turn still has calls; `error.run` has the turns before any failure. A
   * `Conversation` grows with the replies and the results.
   */
  async run(prompt: Prompt, options: GenerationOptions & CallOptions & RunOptions = {}): Promise<Run> {
    checkOptions(options, { ...GENERATION_OPTIONS, ...CALL, ...RUN });
    const { timeout, signal, ...rest } = options;
    const over = new AbortController();
    const deadline = timeout === undefined ? undefined : Date.now() + timeout * 1000;
    const loop = new ToolLoop(prompt, rest, deadline, signal ?? over.signal);
    try {
      for (;;) {
        const stream = this.stream(loop.run.messages, { ...loop.generation, ...loop.timeout, ...(signal && { signal }) });
        for await (const event of stream) await options.onEvent?.(event);
        const calls = loop.callsOf(stream.response);
        if (calls.length === 0) return loop.run;
        loop.answer(stream.response, await loop.execute(calls));
      }
    } catch (error) {
      throw error instanceof PenstockError ? loop.failed(error) : error;
    } finally {
      over.abort();
    }
  }

  /** Counts tokens and cost without generating. The result says what the overflow policy would drop. */
  async count(input: Input, options: GenerationOptions & CallOptions = {}): Promise<CountTokensResponse> {
    const request = create(CountTokensRequestSchema, { spec: specOf(input, options, CALL) });
    const path = `${GENERATION}/CountTokens`;
    return this.unary(path, CountTokensRequestSchema, CountTokensResponseSchema, request, this.reading(options));
  }

  /** Returns the served model's card, profile, prices and limits. */
  async model(name = "", options: CallOptions = {}): Promise<GetModelResponse> {
    checkOptions(options, CALL);
    checkValue("name", name, ["string"]);
    const request = create(GetModelRequestSchema, { model: name });
    return this.unary(`${MODEL}/GetModel`, GetModelRequestSchema, GetModelResponseSchema, request, this.reading(options));
  }

  /** Returns tokens per expert and layer over the window that ends now. Fails with `FeatureOff` if not counted. */
  async expertLoad(options: ExpertLoadOptions = {}): Promise<ExpertLoad> {
    checkOptions(options, EXPERTS);
    const request = create(GetExpertLoadRequestSchema, {
      window: seconds("windowSeconds", options.windowSeconds),
      rankCount: options.ranks,
    });
    const path = `${ROUTING}/GetExpertLoad`;
    const reply = await this.unary(path, GetExpertLoadRequestSchema, GetExpertLoadResponseSchema, request, this.reading(options));
    return reply.load!;
  }

  /** Yields the expert load at intervals, until the loop is left. */
  async *watchExpertLoad(options: WatchOptions = {}): AsyncGenerator<ExpertLoad> {
    checkOptions(options, { ...EXPERTS, intervalSeconds: ["number"] });
    const request = create(WatchExpertLoadRequestSchema, {
      window: seconds("windowSeconds", options.windowSeconds),
      interval: seconds("intervalSeconds", options.intervalSeconds),
      rankCount: options.ranks,
    });
    this.checkOpen();
    const call = this.grpc.makeServerStreamRequest(
      `${ROUTING}/WatchExpertLoad`,
      writer(WatchExpertLoadRequestSchema),
      reader(WatchExpertLoadResponseSchema),
      request,
      this.metadata,
      callOptions(this.deadline(options)),
    );
    call.on("error", () => {}); // The loop has ended and does not see its own cancellation.
    const abort = () => call.cancel();
    options.signal?.addEventListener("abort", abort);
    if (options.signal?.aborted) abort();
    try {
      for await (const reply of call) yield (reply as WatchExpertLoadResponse).load!;
    } catch (error) {
      throw this.failureOf(error as grpc.ServiceError);
    } finally {
      options.signal?.removeEventListener("abort", abort);
      call.cancel();
    }
  }

  /** Ends the running generations, waits at most a second until the server knows, and disconnects. */
  async close(): Promise<void> {
    this.root.closed = true;
    for (const running of [...this.running]) running.close();
    const late = Date.now() + CLOSE_SECONDS * 1000;
    while (this.leaving.size > 0 && Date.now() < late) {
      // Again and again: a stream that waits for its token has not sent its Cancel yet.
      await Promise.race([Promise.all(this.leaving), sleep(late - Date.now(), undefined, { ref: false })]);
    }
    forgetSignals(this.atSignal);
    this.grpc.close();
  }

  private checkOpen(): void {
    if (this.root.closed) throw new Error("the client is closed");
  }

  /** Makes a call that generates nothing, with a timeout by default. */
  private reading(options: CallOptions): CallOptions {
    this.checkOpen();
    return { ...options, timeout: options.timeout ?? this.timeout ?? READ_SECONDS };
  }

  private deadline({ timeout = this.timeout }: CallOptions): number | undefined {
    return timeout === undefined ? undefined : Date.now() + timeout * 1000;
  }

  private link(options: CallOptions, resumable = false, start?: () => Call): Link {
    this.checkOpen();
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
          }).catch(() => undefined), // Then the server ends it after its grace period.
        ),
      steer: (generationId, resumeToken, action) => this.steer(generationId, resumeToken, action),
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
        if (this.root.closed) throw wasClosed();
      }
    }
  }

  /** Returns the typed error. Closing the client ends calls as if the server were gone. */
  private failureOf(error: grpc.ServiceError): unknown {
    return this.root.closed ? wasClosed() : fromServiceError(error);
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
          if (error) reject(this.failureOf(error));
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

const wasClosed = () => new Cancelled("the client is closed", { code: grpc.status.CANCELLED });

/** Returns the milliseconds until a refused call may be retried; undefined if it may not, or not in time. */
function waitFor(error: unknown, deadline: number | undefined): number | undefined {
  const after = error instanceof PenstockError ? error.retryAfterSeconds : undefined;
  if (after === undefined) return undefined;
  const wait = after * 1000 * (1 + Math.random() / 5); // so that not all callers retry at once
  return deadline !== undefined && Date.now() + wait >= deadline ? undefined : wait;
}

function again(method: string, failure: unknown, wait: number): string {
  const why = failure instanceof PenstockError ? failure.reason || grpc.status[failure.code ?? grpc.status.UNKNOWN] : "";
  return `${method}: ${why}; retrying in ${(wait / 1000).toFixed(2)} s`;
}

function addMetadata(metadata: grpc.Metadata, more: Readonly<Record<string, string>> = {}): void {
  for (const [name, value] of Object.entries(more)) {
    if (/^(authorization$|grpc-|:)/i.test(name)) {
      throw new TypeError(`metadata ${name} is set by the client: use apiKey or timeout instead`);
    }
    metadata.set(name, value);
  }
}

/** Options of single calls, which options.ts checks by name and value. */
const CALL = { timeout: ["number"], signal: ["signal"] } as const;
const FLUSH = { flushIntervalSeconds: ["number"] } as const;
const STREAM = { ...CALL, ...FLUSH, resumable: ["boolean"] } as const;
const RUN = {
  maxTurns: ["int32"],
  onEvent: ["function"],
  onResult: ["function"],
  onToolError: ["function"],
} as const satisfies Record<keyof RunOptions, Known[string]>;
const STEER = { finishThinking: ["boolean"], budget: ["int32"], cancel: ["boolean"] } as const;
const EXPERTS = { ...CALL, windowSeconds: ["number"], ranks: ["int32"] } as const;
const CLIENT = {
  apiKey: ["string"],
  tls: ["boolean", "string", "object"],
  timeout: ["number"],
  retries: ["int32"],
  metadata: ["texts"],
  reconnect: ["any"],
  logger: ["object"],
  channelOptions: ["object"],
} as const satisfies Record<keyof ClientOptions, Known[string]>;
const POLICY = {
  maxAttempts: ["int32"],
  maxSeconds: ["number"],
  firstWaitSeconds: ["number"],
  maxWaitSeconds: ["number"],
} as const satisfies Record<keyof Reconnect, Known[string]>;

/** Returns the request. Throws TypeError for options that belong neither to the call nor to the generation. */
function specOf(input: Input, options: GenerationOptions & CallOptions, call: Known): GenerationSpec {
  checkOptions(options, { ...GENERATION_OPTIONS, ...call });
  const generation = Object.fromEntries(Object.entries(options).filter(([name]) => !(name in call)));
  if (typeof input === "object" && input && "$typeName" in input && input.$typeName === GenerationSpecSchema.typeName) {
    const surplus = Object.keys(generation)[0];
    if (surplus !== undefined) throw new TypeError(`a spec is the whole request, so ${surplus} beside it would be ignored; set it in the spec`);
    return input as GenerationSpec;
  }
  return buildSpec(input as Prompt, generation);
}

function checkPlace(generationId: string, resumeToken: string): void {
  checkValue("generationId", generationId, ["string"]);
  checkValue("resumeToken", resumeToken, ["string"]);
}

function actionOf(action: SteerAction): SteerRequest["action"] {
  checkOptions(action, STEER, "action", "action");
  const given = Object.entries(action).filter(([, value]) => value !== undefined && value !== false);
  if (given.length !== 1) throw new TypeError("give exactly one of finishThinking: true, budget and cancel: true");
  const [name, value] = given[0]!;
  if (name === "budget") return { case: "changeBudget", value: create(ChangeBudgetSchema, { thinkingBudget: Number(value) }) };
  if (name === "cancel") return { case: "cancel", value: create(CancelSchema) };
  return { case: "finishThinking", value: create(FinishThinkingSchema) };
}

/** Its reply knows the schema that the request asked for. */
function formatted<T extends EventStream>(stream: T, { responseFormat }: GenerationOptions): T {
  stream.response.responseFormat = responseFormat;
  return stream;
}

function flushOf({ flushIntervalSeconds }: FlushOptions) {
  return { flushInterval: seconds("flushIntervalSeconds", flushIntervalSeconds) };
}

/** Most seconds that a Duration holds: ten thousand years. */
const MAX_SECONDS = 315_576_000_000;

function seconds(name: string, value?: number) {
  if (value === undefined) return undefined;
  if (Math.abs(value) <= MAX_SECONDS) return durationFromMs(value * 1000);
  throw new TypeError(`${name} must be at most ${MAX_SECONDS} seconds, got ${value}`);
}

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
  if (tls === true) return grpc.credentials.createSsl();
  if (typeof tls !== "string") {
    // Of another copy of gRPC, they are no instance of this one's class.
    if (typeof tls.compose === "function") return tls;
    throw new TypeError(`tls must be true, false, the path of a CA certificate or gRPC's credentials, got ${describe(tls)}`);
  }
  const certificate = readFileSync(tls);
  if (!certificate.includes("-----BEGIN CERTIFICATE-----")) {
    throw new TypeError(`${tls} must have a certificate in PEM, found none`);
  }
  return grpc.credentials.createSsl(certificate);
}

/** Returns whether the target is on this machine. */
function isLoopback(target: string): boolean {
  if (target.startsWith("unix:")) return true;
  const host = target.slice(target.lastIndexOf("/") + 1).replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}
