/** Streams: async iterators over a generation's events, which outlive their connections. */
import { create } from "@bufbuild/protobuf";
import { setTimeout as sleep } from "node:timers/promises";
import { BrokenStream, fromServiceError } from "./errors.js";
import { EventReader, type Event } from "./events.js";
import {
  CancelRequestSchema,
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
}

/** What a stream needs of its client, now and when its connection is gone. */
export interface Link {
  readonly policy: Reconnect | undefined;
  readonly deadline: number | undefined;
  resume(request: ResumeRequest): Call;
  abandon(request: CancelRequest): void;
}

/**
 * The events of one generation. Leaving the loop ends the generation, if it still runs.
 *
 *     for await (const event of client.stream("What is 17 + 25?", { budget: 64 })) { ... }
 */
export class Stream implements AsyncIterableIterator<Event> {
  protected readonly reader = new EventReader();
  private readonly recovery: Recovery;
  private replies: AsyncIterator<{ event?: GenerationEvent }>;
  private left = false;
  private readonly leaving = new AbortController();

  /** @internal */
  constructor(
    private readonly link: Link,
    private call: Call,
    resumed?: ResumeRequest,
  ) {
    if (resumed) {
      const { generationId, resumeToken } = resumed;
      Object.assign(this.reader.response, { generationId, resumeToken });
      this.reader.lastSequence = Number(resumed.lastSequence);
    }
    this.recovery = new Recovery(this.reader, link.policy, link.deadline);
    this.replies = call[Symbol.asyncIterator]();
  }

  /** What has come so far. */
  get response(): Response {
    return this.reader.response;
  }

  /** Of the newest event; with `response.generationId` and `.resumeToken` what `client.resume` needs. */
  get lastSequence(): number {
    return this.reader.lastSequence;
  }

  /** How often the connection was made up for. */
  get reconnections(): number {
    return this.recovery.reconnections;
  }

  /** Leaves: ends the generation if it still runs, without waiting for anything. Harmless when it is over. */
  close(): void {
    if (this.left) return;
    const { generationId, resumeToken } = this.response;
    this.detach();
    if (this.recovery.isOrphan) this.link.abandon(create(CancelRequestSchema, { generationId, resumeToken }));
  }

  /** Leaves and lets a resumable generation go on, for `client.resume` to read within the server's grace. */
  detach(): void {
    this.left = true;
    this.leaving.abort();
    this.call.cancel();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<Event, undefined>> {
    for (;;) {
      let failure: unknown = new BrokenStream("the stream ended without its last event", true);
      try {
        const { done, value } = await this.replies.next();
        if (!done) {
          const event = value.event && this.recovery.take(value.event);
          if (event) return { done: false, value: event };
          continue;
        }
      } catch (error) {
        failure = fromServiceError(error);
      }
      // Whatever happens after the last event, or after leaving, is of no concern.
      if (this.reader.finished || this.left) return { done: true, value: undefined };
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
    let seconds: number;
    try {
      seconds = this.recovery.waitSeconds(failure);
    } catch (final) {
      const last = this.recovery.lastEvent();
      if (last) return last;
      this.close();
      throw final;
    }
    await sleep(seconds * 1000, undefined, { signal: this.leaving.signal }).catch(() => undefined);
    if (this.left) return undefined;
    this.call = this.link.resume(this.recovery.request());
    this.replies = this.call[Symbol.asyncIterator]();
    return undefined;
  }
}

/** @internal */
export interface SteeredCall extends Call {
  write(request: InteractRequest): unknown;
  end(): unknown;
}

/**
 * A stream that is steered while it runs.
 *
 *     const interaction = client.interact("Prove it.", { budget: -1 });
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
    super({ ...link, policy: undefined }, steered);
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
    if (!this.reader.finished) this.steered.write(create(InteractRequestSchema, { action } as never));
  }
}
