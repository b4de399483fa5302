/** Streams: async iterators over a generation's events, which continue after a lost connection. */
import { create } from "@bufbuild/protobuf";
import { status as Code, type StatusObject } from "@grpc/grpc-js";
import { setTimeout as sleep } from "node:timers/promises";
import { BrokenStream, Cancelled, fromServiceError, rateLimitsOf } from "./errors.js";
import { EventReader, type Event } from "./events.js";
import {
  InteractRequestSchema,
  type CancelRequest,
  type GenerationEvent,
  type InteractRequest,
  type ResumeRequest,
  type SteerResponse,
} from "./gen/penstock/v1/generation_pb.js";
import { Recovery, type Reconnect } from "./reconnect.js";
import type { Response } from "./response.js";

/** A running call of one of the streaming methods. */
export interface Call extends AsyncIterable<{ event?: GenerationEvent }> {
  cancel(): void;
  on(event: "status", seen: (status: StatusObject) => void): unknown;
  on(event: "error", seen: (error: unknown) => void): unknown;
}

/** What to do with a running generation; exactly one. A budget is in tokens from the thought's start; -1 is no limit. */
export type SteerAction = { finishThinking: true } | { budget: number } | { cancel: true };

/** The parts of its client that a stream uses, also after its connection is lost. */
export interface Link {
  readonly policy: Reconnect | undefined;
  readonly deadline: number | undefined;
  /** Whether the server continues the generation without a connection, until `abandon` ends it. */
  readonly resumable: boolean;
  /** Signal whose abort ends the generation. */
  readonly signal: AbortSignal | undefined;
  /** Logs lost connections and retries. */
  log(message: string): void;
  resume(request: ResumeRequest): Call;
  abandon(request: CancelRequest): void;
  steer(generationId: string, resumeToken: string, action: SteerAction): Promise<SteerResponse>;
  /** Makes the client's `close()` wait for the work. */
  leaving(work: Promise<unknown>): void;
  /** Makes the client's `close()` end the stream. */
  opened(stream: Running): void;
  over(stream: Running): void;
  /** Retries a refused start; undefined if there is no other attempt. */
  again(failure: unknown, left: AbortSignal): Promise<Call | undefined>;
}

/** Seconds that an abandoned stream waits for its first event, which has the token that Cancel needs. */
const START_SECONDS = 1;

/**
 * The running part of a `Stream`. It does not refer to the stream, so that the garbage collector finds a stream that is
 * no longer used, and its generation is ended.
 * @internal
 */
export class Running {
  readonly reader = new EventReader();
  readonly recovery: Recovery;
  readonly leaving = new AbortController();
  replies: AsyncIterator<{ event?: GenerationEvent }>;
  left = false;
  private reading: Promise<unknown> | undefined;
  /** How the call failed. gRPC tells it once, to who listens then. */
  private failure: unknown;
  private readonly onAbort = () => this.close();

  constructor(
    readonly link: Link,
    private call: Call,
    resumed?: ResumeRequest,
  ) {
    if (resumed) {
      const { generationId, resumeToken } = resumed;
      Object.assign(this.reader.response, { generationId, resumeToken });
      this.reader.lastSequence = Number(resumed.lastSequence);
    }
    this.recovery = new Recovery(this.reader, link.policy, link.deadline);
    this.replies = this.watched(call);
    link.opened(this);
    link.signal?.addEventListener("abort", this.onAbort);
    if (link.signal?.aborted) this.close();
  }

  close(): void {
    if (this.left) return;
    const { link, recovery } = this;
    this.leave();
    if (link.resumable && this.reader.lastSequence === 0) {
      link.leaving(this.endWhenStarted());
      return;
    }
    this.call.cancel();
    if (recovery.isOrphan) link.abandon(recovery.cancelRequest());
  }

  detach(): void {
    this.leave();
    this.call.cancel();
  }

  async read(): Promise<IteratorResult<{ event?: GenerationEvent }>> {
    const reading = this.replies.next();
    this.reading = reading;
    try {
      const reply = await reading;
      if (reply.done && this.failure !== undefined) throw this.failure;
      return reply;
    } finally {
      this.reading = undefined;
    }
  }

  goOn(call: Call): void {
    this.call = call;
    this.replies = this.watched(call);
  }

  private watched(call: Call) {
    this.failure = undefined;
    // Without a listener, the failure of a call that nobody reads yet would end the process.
    call.on("error", (error) => {
      if (this.call === call) this.failure = error;
    });
    call.on("status", ({ metadata }) => (this.reader.response.rateLimits = rateLimitsOf(metadata)));
    return call[Symbol.asyncIterator]();
  }

  private leave(): void {
    this.left = true;
    this.leaving.abort();
    this.link.signal?.removeEventListener("abort", this.onAbort);
    this.link.over(this);
  }

  /** Waits a bounded time for the token in the first event, and ends the generation with it. */
  private async endWhenStarted(): Promise<void> {
    // To cancel the call is not enough: if the event is on its way, the server sees a lost connection.
    const timer = setTimeout(() => this.call.cancel(), START_SECONDS * 1000);
    try {
      await this.reading; // by the user's code, which reads the events
      if (this.reader.lastSequence === 0) {
        const { value } = await this.replies.next();
        if (value?.event) this.recovery.take(value.event);
      }
    } catch {
      // The call failed, so nothing runs.
    }
    clearTimeout(timer);
    this.call.cancel();
    if (this.recovery.isOrphan) this.link.abandon(this.recovery.cancelRequest());
  }
}

const dropped = new FinalizationRegistry<Running>((running) => running.close());

/** What `Stream` and `Interaction` have in common. */
export abstract class EventStream implements AsyncIterableIterator<Event> {
  /** @internal */
  protected readonly running: Running;

  /** @internal */
  constructor(link: Link, call: Call, resumed?: ResumeRequest) {
    this.running = new Running(link, call, resumed);
    dropped.register(this, this.running, this);
  }

  /** The reply so far. */
  get response(): Response {
    return this.running.reader.response;
  }

  /** Number of the newest event. `client.resume` needs it with `response.generationId` and `.resumeToken`. */
  get lastSequence(): number {
    return this.running.reader.lastSequence;
  }

  /** Number of lost connections. */
  get reconnections(): number {
    return this.running.recovery.reconnections;
  }

  /** Leaves the stream and ends a running generation, without waiting. Has no effect after the end. */
  close(): void {
    this.running.close();
    dropped.unregister(this);
  }

  /** Leaves the stream; a resumable generation continues, and `client.resume` can read it in the grace period. */
  detach(): void {
    this.running.detach();
    dropped.unregister(this);
  }

  /** Yields the first candidate's answer as it comes. Leaving the loop ends the generation. */
  async *text(): AsyncGenerator<string, void, void> {
    for await (const event of this) {
      if (event.kind === "answer" && event.candidateIndex === 0 && event.text) yield event.text;
    }
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<Event, undefined>> {
    const { running } = this;
    const { reader, recovery, link } = running;
    for (;;) {
      if (running.left && !reader.finished && link.signal?.aborted) throw aborted();
      let failure: unknown = new BrokenStream("the stream ended without its last event", true);
      try {
        const { done, value } = await running.read();
        if (!done) {
          const event = value.event && recovery.take(value.event);
          if (event) return { done: false, value: event };
          continue;
        }
      } catch (error) {
        failure = fromServiceError(error);
      }
      // Errors after the last event, or after leaving, do not matter.
      if (reader.finished || running.left) {
        if (!reader.finished && link.signal?.aborted) throw aborted();
        this.close();
        return { done: true, value: undefined };
      }
      const last = await this.goOn(failure);
      if (last) return { done: false, value: last };
    }
  }

  async return(): Promise<IteratorResult<Event, undefined>> {
    this.close();
    return { done: true, value: undefined };
  }

  /** Resumes over another connection, or throws `failure`. A returned event ends a drained stream. */
  private async goOn(failure: unknown): Promise<Event | undefined> {
    const { running } = this;
    const again = running.reader.lastSequence === 0 ? await running.link.again(failure, running.leaving.signal) : undefined;
    if (again) {
      if (running.left) again.cancel();
      else running.goOn(again);
      return undefined;
    }
    let seconds: number;
    try {
      seconds = running.recovery.waitSeconds(failure);
    } catch (final) {
      const last = running.recovery.lastEvent();
      if (last) return last;
      this.close();
      throw final;
    }
    const [why = ""] = (failure as Error).message.split("\n");
    running.link.log(`connection lost (${why.slice(0, 100)}); resuming in ${seconds.toFixed(2)} s`);
    await sleep(seconds * 1000, undefined, { signal: running.leaving.signal }).catch(() => undefined);
    if (!running.left) running.goOn(running.link.resume(running.recovery.request()));
    return undefined;
  }
}

const aborted = () => new Cancelled("the call was aborted by its signal", { code: Code.CANCELLED });

/**
 * The events of one generation. These end a running generation: leaving the loop, `close()`, an aborted `signal`,
 * closing the client, and garbage collection of the stream.
 *
 *     for await (const event of client.stream("What is 48 + 27 + 36 + 15?", { budget: 64 })) { ... }
 *
 * A resumable stream can be steered once its first event was read. That is a call of its own: see `Client.steer`.
 */
export class Stream extends EventStream {
  /** Ends the thought now and starts the answer. Fails for a stream without a resume token. */
  async finishThinking(): Promise<SteerResponse> {
    return this.running.link.steer(...this.running.recovery.place(), { finishThinking: true });
  }

  /** Changes the budget of the current thought, counted from its start; -1 is no limit. Fails like `finishThinking`. */
  async changeBudget(budget: number): Promise<SteerResponse> {
    return this.running.link.steer(...this.running.recovery.place(), { budget });
  }
}

/** @internal */
export interface SteeredCall extends Call {
  write(request: InteractRequest): unknown;
  end(): unknown;
}

/**
 * A stream that can be controlled while it runs.
 *
 *     const interaction = client.interact("What is 48 + 27 + 36 + 15?", { budget: -1 });
 *     for await (const event of interaction) {
 *       if (interaction.response.thought.length > 1000) interaction.finishThinking();
 *     }
 */
export class Interaction extends EventStream {
  /** @internal */
  constructor(
    link: Link,
    private readonly steered: SteeredCall,
    start: InteractRequest,
  ) {
    // Not resumable, and a generation on another server could not be controlled: so there is no policy.
    super({ ...link, policy: undefined, resumable: false, again: async () => undefined }, steered);
    steered.write(start);
  }

  /** Ends the thought now and starts the answer. Has no effect after the start of the answer. */
  finishThinking(): void {
    this.say({ case: "finishThinking", value: {} });
  }

  /** Changes the budget of the current thought, counted from its start; -1 is no limit. */
  changeBudget(budget: number): void {
    this.say({ case: "changeBudget", value: { thinkingBudget: budget } });
  }

  /** Ends the generation; the stream still gets its last event, with usage and cost. `close()` does not wait. */
  cancel(): void {
    this.say({ case: "cancel", value: {} });
  }

  private say(action: object): void {
    if (!this.running.reader.finished && !this.running.left) this.steered.write(create(InteractRequestSchema, { action } as never));
  }
}
