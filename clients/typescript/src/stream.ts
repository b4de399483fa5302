/** Streams: async iterators over a generation's events, which outlive their connections. */
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
} from "./gen/penstock/v1/generation_pb.js";
import { Recovery, type Reconnect } from "./reconnect.js";
import type { Response } from "./response.js";

/** A call under way, of any of the streaming methods. */
export interface Call extends AsyncIterable<{ event?: GenerationEvent }> {
  cancel(): void;
  on(event: "status", seen: (status: StatusObject) => void): unknown;
}

/** What a stream needs of its client, now and when its connection is gone. */
export interface Link {
  readonly policy: Reconnect | undefined;
  readonly deadline: number | undefined;
  /** The server goes on with the generation when the connection is gone, until `abandon` ends it. */
  readonly resumable: boolean;
  /** Aborting it ends the generation. */
  readonly signal: AbortSignal | undefined;
  /** Tells whoever listens what is done by itself. */
  log(message: string): void;
  resume(request: ResumeRequest): Call;
  abandon(request: CancelRequest): void;
  /** Has the client's `close()` wait for it. */
  leaving(work: Promise<unknown>): void;
  /** Has the client's `close()` end it. */
  opened(stream: Running): void;
  over(stream: Running): void;
  /** Starts again what was refused for now; undefined where there is to be no other attempt. */
  again(failure: unknown, left: AbortSignal): Promise<Call | undefined>;
}

/** Seconds that a stream which was left before its first event waits for it: it carries the token that Cancel needs. */
const START_SECONDS = 1;

/**
 * What runs behind a `Stream`, which holds it and is not held by it: a stream that nobody refers to any more is found
 * by the garbage collector, and its generation ended.
 * @internal
 */
export class Running {
  readonly reader = new EventReader();
  readonly recovery: Recovery;
  readonly leaving = new AbortController();
  replies: AsyncIterator<{ event?: GenerationEvent }>;
  left = false;
  private reading: Promise<unknown> | undefined;
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
      return await reading;
    } finally {
      this.reading = undefined;
    }
  }

  goOn(call: Call): void {
    this.call = call;
    this.replies = this.watched(call);
  }

  private watched(call: Call) {
    call.on("status", ({ metadata }) => (this.reader.response.rateLimits = rateLimitsOf(metadata)));
    return call[Symbol.asyncIterator]();
  }

  private leave(): void {
    this.left = true;
    this.leaving.abort();
    this.link.signal?.removeEventListener("abort", this.onAbort);
    this.link.over(this);
  }

  /** Waits, a bounded time, for the token that the first event brings, and ends the generation with it. */
  private async endWhenStarted(): Promise<void> {
    // Cancelling the call is not enough: where the event is on its way, the server takes it for a lost connection.
    const timer = setTimeout(() => this.call.cancel(), START_SECONDS * 1000);
    try {
      await this.reading; // by the user's code, which takes in what comes
      if (this.reader.lastSequence === 0) {
        const { value } = await this.replies.next();
        if (value?.event) this.recovery.take(value.event);
      }
    } catch {
      // it failed: nothing runs
    }
    clearTimeout(timer);
    this.call.cancel();
    if (this.recovery.isOrphan) this.link.abandon(this.recovery.cancelRequest());
  }
}

const dropped = new FinalizationRegistry<Running>((running) => running.close());

/**
 * The events of one generation. Leaving the loop ends the generation, if it still runs; so do `close()`, an aborted
 * `signal`, closing the client, and forgetting the stream.
 *
 *     for await (const event of client.stream("What is 48 + 27 + 36 + 15?", { budget: 64 })) { ... }
 */
export class Stream implements AsyncIterableIterator<Event> {
  /** @internal */
  protected readonly running: Running;

  /** @internal */
  constructor(link: Link, call: Call, resumed?: ResumeRequest) {
    this.running = new Running(link, call, resumed);
    dropped.register(this, this.running, this);
  }

  /** What has come so far. */
  get response(): Response {
    return this.running.reader.response;
  }

  /** Of the newest event; with `response.generationId` and `.resumeToken` what `client.resume` needs. */
  get lastSequence(): number {
    return this.running.reader.lastSequence;
  }

  /** How many connections were lost on the way. */
  get reconnections(): number {
    return this.running.recovery.reconnections;
  }

  /** Leaves: ends the generation if it still runs, without waiting for anything. Harmless when it is over. */
  close(): void {
    this.running.close();
    dropped.unregister(this);
  }

  /** Leaves and lets a resumable generation go on, for `client.resume` to read within the server's grace. */
  detach(): void {
    this.running.detach();
    dropped.unregister(this);
  }

  /** The first candidate's answer as it comes. Leaving the loop ends the generation. */
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
      // Whatever happens after the last event, or after leaving, is of no concern.
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

  /** Resumes over another connection. Throws `failure` where that cannot be; the event ends a drained stream. */
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
    running.link.log(`connection lost (${why.slice(0, 100)}); going on in ${seconds.toFixed(2)} s`);
    await sleep(seconds * 1000, undefined, { signal: running.leaving.signal }).catch(() => undefined);
    if (!running.left) running.goOn(running.link.resume(running.recovery.request()));
    return undefined;
  }
}

const aborted = () => new Cancelled("the call was aborted by its signal", { code: Code.CANCELLED });

/** @internal */
export interface SteeredCall extends Call {
  write(request: InteractRequest): unknown;
  end(): unknown;
}

/**
 * A stream that is steered while it runs.
 *
 *     const interaction = client.interact("What is 48 + 27 + 36 + 15?", { budget: -1 });
 *     for await (const event of interaction) {
 *       if (interaction.response.thought.length > 1000) interaction.finishThinking();
 *     }
 */
export class Interaction extends Stream {
  /** @internal */
  constructor(
    link: Link,
    private readonly steered: SteeredCall,
    start: InteractRequest,
  ) {
    // Not resumable, and what another server goes on with could not be steered: no policy.
    super({ ...link, policy: undefined, resumable: false, again: async () => undefined }, steered);
    steered.write(start);
  }

  /** Ends the thought now and starts the answer. Without effect once the answer has begun. */
  finishThinking(): void {
    this.say({ case: "finishThinking", value: {} });
  }

  /** Changes the budget of the thought under way, counted from its start; -1 is no limit. */
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
