/** How a stream goes on after its connection: what is resumed, when, and for how long. No I/O. */
import { create } from "@bufbuild/protobuf";
import { status as Code } from "@grpc/grpc-js";
import { BrokenStream, DeadlineExceeded, Overloaded, PenstockError, Unavailable } from "./errors.js";
import type { Event, EventReader } from "./events.js";
import {
  CancelRequestSchema,
  ResumeRequestSchema,
  type CancelRequest,
  type GenerationEvent,
  type GenerationFinished,
  type ResumeRequest,
} from "./gen/penstock/v1/generation_pb.js";

/**
 * Bounds of what is done about a dropped connection; every event that comes starts them anew. The wait doubles from
 * `firstWaitSeconds` to `maxWaitSeconds`, with jitter. `maxSeconds` is best a little below the server's
 * `resume.grace_seconds` (60 by default): after it, there is nothing left to resume.
 */
export interface Reconnect {
  readonly maxAttempts: number;
  readonly maxSeconds: number;
  readonly firstWaitSeconds: number;
  readonly maxWaitSeconds: number;
}
export const RECONNECT: Reconnect = { maxAttempts: 20, maxSeconds: 50, firstWaitSeconds: 0.1, maxWaitSeconds: 5 };

// What a cut connection looks like, from gRPC itself and from proxies; the service's own errors have a reason.
const CUT: readonly (Code | undefined)[] = [Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL];

/** One stream's memory over its connections. Without a policy, the first failure is the last. */
export class Recovery {
  reconnections = 0;
  private attempts = 0;
  private cutAt = 0;
  private drained: { proto: GenerationEvent; finished: GenerationFinished } | undefined;

  constructor(
    private readonly reader: EventReader,
    private readonly policy: Reconnect | undefined,
    /** Date.now() of the deadline, which holds over all connections. */
    readonly deadline: number | undefined,
  ) {}

  /** The server goes on with it although nobody will come back. */
  get isOrphan(): boolean {
    return this.hasToken && !this.reader.finished;
  }

  /** The stream can be resumed, and ended, by its token. */
  get hasToken(): boolean {
    return this.drained !== undefined || this.reader.response.resumeToken !== "";
  }

  /** Ends the generation where it runs: after a drain, that is where it was resumed. */
  cancelRequest(): CancelRequest {
    const { generationId, resumeToken } = this.request();
    return create(CancelRequestSchema, { generationId, resumeToken });
  }

  /** The event for the user. None for a repeated one, an unknown kind, and the word that another server goes on. */
  take(proto: GenerationEvent): Event | undefined {
    this.attempts = 0;
    const finished = proto.event.case === "finished" ? proto.event.value : undefined;
    if (this.policy && finished?.resumeToken && Number(proto.sequence) > this.reader.lastSequence) {
      this.drained = { proto, finished };
      return undefined;
    }
    if (this.drained) {
      // The other server knows the stream by the token that made it go on.
      this.reader.lastSequence = Number(this.drained.proto.sequence);
      this.reader.response.resumeToken = this.drained.finished.resumeToken;
      this.drained = undefined;
    }
    return this.reader.read(proto);
  }

  /** Where no other server goes on: the last event of the one that drained. */
  lastEvent(): Event | undefined {
    const { drained } = this;
    this.drained = undefined;
    return drained && this.reader.read(drained.proto);
  }

  /** How long to wait before `request` is sent. Throws `failure` where nothing can be resumed, or not any more. */
  waitSeconds(failure: unknown): number {
    const { policy } = this;
    const { candidates } = this.reader.response;
    if (failure instanceof DeadlineExceeded) throw failure.counted(candidates);
    if (!policy || !(failure instanceof PenstockError) || !this.mayGoOn(failure)) throw failure;
    const now = Date.now();
    if (this.attempts === 0) this.cutAt = now;
    else if (this.attempts >= policy.maxAttempts || now - this.cutAt > policy.maxSeconds * 1000) throw failure;
    let wait = Math.min(policy.maxWaitSeconds, policy.firstWaitSeconds * 2 ** this.attempts);
    wait = Math.max(wait * (0.5 + Math.random() / 2), failure.retryAfterSeconds ?? 0);
    if (this.attempts === 0 && !this.drained) wait = 0; // The connection may be cut while the server is well.
    if (this.deadline !== undefined && this.deadline - now <= wait * 1000) {
      const passed = "the deadline passed while the connection was away";
      throw new DeadlineExceeded(passed, { code: Code.DEADLINE_EXCEEDED }).counted(candidates);
    }
    if (this.attempts === 0) this.reconnections += 1; // connections that were lost, not attempts to get another
    this.attempts += 1;
    return wait;
  }

  private mayGoOn(failure: PenstockError): boolean {
    const { hasToken } = this;
    const isCut = CUT.includes(failure.code) && failure.reason === "";
    if (failure instanceof BrokenStream) return failure.isCutShort && hasToken;
    // Any server that shares the key will do, and the next attempt may reach one.
    if (this.drained) return isCut || failure instanceof Unavailable || failure instanceof Overloaded;
    return hasToken && (isCut || failure.reason === "DRAINING");
  }

  request(): ResumeRequest {
    const { response, lastSequence } = this.reader;
    return create(ResumeRequestSchema, {
      generationId: response.generationId,
      resumeToken: this.drained?.finished.resumeToken ?? response.resumeToken,
      lastSequence: this.drained?.proto.sequence ?? BigInt(lastSequence),
    });
  }
}
