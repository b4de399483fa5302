/** Decides whether, when and from where a stream resumes after a lost connection. No I/O. */
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
 * Bounds of the attempts to resume a stream. Each event that comes resets them. The wait doubles from
 * `firstWaitSeconds` to `maxWaitSeconds`, with jitter. Choose `maxSeconds` a little less than the server's
 * `resume.grace_seconds` (60 by default): after the grace period the generation is gone.
 */
export interface Reconnect {
  readonly maxAttempts: number;
  readonly maxSeconds: number;
  readonly firstWaitSeconds: number;
  readonly maxWaitSeconds: number;
}
export const RECONNECT: Reconnect = { maxAttempts: 20, maxSeconds: 50, firstWaitSeconds: 0.1, maxWaitSeconds: 5 };

// Status codes of a lost connection, from gRPC itself and from proxies; the service's own errors have a reason.
const CUT: readonly (Code | undefined)[] = [Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL];

/** The state of one stream over its connections. Without a policy, it does not resume. */
export class Recovery {
  reconnections = 0;
  private attempts = 0;
  private cutAt = 0;
  private drained: { proto: GenerationEvent; finished: GenerationFinished } | undefined;

  constructor(
    private readonly reader: EventReader,
    private readonly policy: Reconnect | undefined,
    /** Date.now() of the deadline over all connections. */
    readonly deadline: number | undefined,
  ) {}

  /** Whether the server continues a generation that this client will not resume. */
  get isOrphan(): boolean {
    return this.hasToken && !this.reader.finished;
  }

  /** Whether a resume token came, which can resume or end the generation. */
  get hasToken(): boolean {
    return this.drained !== undefined || this.reader.response.resumeToken !== "";
  }

  /** Returns the request that ends the generation on the server where it runs. */
  cancelRequest(): CancelRequest {
    const { generationId, resumeToken } = this.request();
    return create(CancelRequestSchema, { generationId, resumeToken });
  }

  /** Returns the generation's id and token. Throws where there is no token. */
  place(): [string, string] {
    if (!this.hasToken) {
      throw new Error(
        "the stream has no resume token: read its first event, and start it with resumable: true; interact() starts one that can be steered without",
      );
    }
    const { generationId, resumeToken } = this.request();
    return [generationId, resumeToken];
  }

  /**
   * Returns the event for the user. Undefined for a repeated event, an unknown kind, or the last event of a draining
   * server whose generation another server can continue.
   */
  take(proto: GenerationEvent): Event | undefined {
    this.attempts = 0;
    const finished = proto.event.case === "finished" ? proto.event.value : undefined;
    if (this.policy && finished?.resumeToken && Number(proto.sequence) > this.reader.lastSequence) {
      this.drained = { proto, finished };
      return undefined;
    }
    if (this.drained) {
      // The other server knows the stream by the token with which it was resumed.
      this.reader.lastSequence = Number(this.drained.proto.sequence);
      this.reader.response.resumeToken = this.drained.finished.resumeToken;
      this.drained = undefined;
    }
    return this.reader.read(proto);
  }

  /** Returns the last event of a drained server if no other server continued. */
  lastEvent(): Event | undefined {
    const { drained } = this;
    this.drained = undefined;
    return drained && this.reader.read(drained.proto);
  }

  /** Returns the seconds to wait before `request` is sent. Throws `failure` if the stream cannot be resumed. */
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
      const passed = "the deadline passed while the connection was lost";
      throw new DeadlineExceeded(passed, { code: Code.DEADLINE_EXCEEDED }).counted(candidates);
    }
    if (this.attempts === 0) this.reconnections += 1; // counts lost connections, not attempts
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
