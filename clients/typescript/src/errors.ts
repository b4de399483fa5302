/**
 * The errors of calls. The reason selects the class; without a reason, the status code does.
 *
 *     PenstockError                    code                               reason
 *     ├ InvalidRequest  .violations    INVALID_ARGUMENT                   INVALID_FIELD, MISSING_FIELD, ...
 *     │ ├ BudgetDoesNotFit                                                BUDGET_DOES_NOT_FIT
 *     │ └ ContextOverflow                                                 CONTEXT_OVERFLOW
 *     ├ FeatureOff                     FAILED_PRECONDITION                FEATURE_OFF
 *     ├ NotImplementedYet              UNIMPLEMENTED                      NOT_IMPLEMENTED
 *     ├ ModelNotFound                  NOT_FOUND                          MODEL_NOT_FOUND
 *     ├ GenerationNotFound             NOT_FOUND                          GENERATION_NOT_FOUND
 *     ├ Overloaded .retryAfterSeconds  RESOURCE_EXHAUSTED                 OVERLOADED, QUOTA_EXCEEDED
 *     ├ MessageTooLarge                RESOURCE_EXHAUSTED                 MESSAGE_TOO_LARGE, or none from gRPC itself
 *     ├ DeadlineExceeded               DEADLINE_EXCEEDED                  DEADLINE_PASSED
 *     ├ Unavailable                    UNAVAILABLE                        DRAINING, ENGINE_DOWN, or none
 *     ├ CallerRefused                  UNAUTHENTICATED, PERMISSION_DENIED CALLER_REFUSED
 *     ├ Cancelled                      CANCELLED
 *     ├ PoisonousRequest               ABORTED                            POISONOUS_REQUEST
 *     ├ ServerFault                    INTERNAL, UNKNOWN, DATA_LOSS       ENGINE_REFUSED, INTERNAL
 *     ├ BrokenStream                   (none)                             events are missing
 *     ├ TurnLimitReached .run          (none)                             run reached maxTurns
 *     └ UnparsableAnswer               (none)                             the answer is no responseFormat
 */
import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { status as Code, type Metadata, type ServiceError } from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema, type Status } from "./gen/google/rpc/status_pb.js";
import type { Run } from "./tools.js";

const DOMAIN = "penstock.v1";

/** `field` is a proto path from the request's root, such as `spec.thinking.thinking_budget`. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
  readonly reason: string;
}

export interface Failure {
  /** Undefined if no status came. */
  readonly code?: Code;
  /** A value of `penstock.v1.ErrorReason` without its prefix; empty if the server sent none. */
  readonly reason?: string;
  /** Metadata of the reason, as documented there. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly violations?: readonly FieldViolation[];
  readonly retryAfterSeconds?: number | undefined;
  /** The caller's limits and the rest of them, such as `remaining-requests`, if the server sends them. */
  readonly rateLimits?: Readonly<Record<string, string>>;
}

/** A call that did not succeed. */
export class PenstockError extends Error {
  readonly code: Code | undefined;
  readonly reason: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly violations: readonly FieldViolation[];
  readonly retryAfterSeconds: number | undefined;
  readonly rateLimits: Readonly<Record<string, string>>;
  /** The turns until then, where `run` failed. */
  readonly run?: Run;

  constructor(message: string, failure: Failure = {}) {
    super(message);
    this.name = new.target.name;
    this.code = failure.code;
    this.reason = failure.reason ?? "";
    this.metadata = failure.metadata ?? {};
    this.violations = failure.violations ?? [];
    this.retryAfterSeconds = failure.retryAfterSeconds;
    this.rateLimits = failure.rateLimits ?? {};
  }
}

/** The request is invalid; `violations` has the fields by path. */
export class InvalidRequest extends PenstockError {}
/** The thinking budget does not fit with maxOutputTokens and the answer reserve. */
export class BudgetDoesNotFit extends InvalidRequest {}
/** The prompt does not fit; `metadata` has the numbers. */
export class ContextOverflow extends InvalidRequest {}
/** The request needs a feature that this server's profile has off. */
export class FeatureOff extends PenstockError {}
/** This version of the service does not have the method or field. */
export class NotImplementedYet extends PenstockError {}
/** The request names another model than the served one. */
export class ModelNotFound extends PenstockError {}
/** The generation to resume is unknown, expired, or another caller's. */
export class GenerationNotFound extends PenstockError {}
/** The server has no capacity now; `retryAfterSeconds` is its estimate. */
export class Overloaded extends PenstockError {}
/** A message is larger than the sender or the receiver allows. */
export class MessageTooLarge extends PenstockError {}
/**
 * The deadline passed. `metadata` has the thought_tokens, answer_tokens and tool_tokens until then: as the server counted
 * them or, if this client's own clock was first, as many as had arrived.
 */
export class DeadlineExceeded extends PenstockError {
  /** The clock of this client or of a proxy was first: no status came from the service. */
  readonly isOwn: boolean;

  constructor(message: string, failure: Failure = {}) {
    const own = !failure.reason;
    const metadata = { thought_tokens: "0", answer_tokens: "0", tool_tokens: "0", ...failure.metadata };
    super(message, own ? { ...failure, reason: "DEADLINE_PASSED", metadata } : failure);
    this.isOwn = own;
  }

  /** Returns the error with the tokens that have arrived, if it is the client's own. */
  counted(candidates: readonly { reasoningTokens: number; answerTokens: number; toolTokens: number }[]): DeadlineExceeded {
    if (!this.isOwn) return this;
    const sum = (of: "reasoningTokens" | "answerTokens" | "toolTokens") =>
      String(candidates.reduce((all, one) => all + one[of], 0));
    return new DeadlineExceeded(this.message, {
      ...(this.code !== undefined && { code: this.code }),
      metadata: { thought_tokens: sum("reasoningTokens"), answer_tokens: sum("answerTokens"), tool_tokens: sum("toolTokens") },
    });
  }
}
/** Nothing answers (no reason), the server is going away (DRAINING), or its engine is down (ENGINE_DOWN). */
export class Unavailable extends PenstockError {}
/** The caller is unknown, or not allowed to make the call. */
export class CallerRefused extends PenstockError {}
/** The call was cancelled, here or on the way. */
export class Cancelled extends PenstockError {}
/** The engine died several times while it ran this request; the server does not retry it. */
export class PoisonousRequest extends PenstockError {}
/** The service failed; its log has the cause. */
export class ServerFault extends PenstockError {}
/** The stream ended without its last event, or skipped one: what was received is not the whole reply. */
export class BrokenStream extends PenstockError {
  constructor(
    message: string,
    /** True if it ended too early; false if an event is missing inside it. */
    readonly isCutShort = false,
  ) {
    super(message);
  }
}

/** The model still calls tools in the last turn that `run` may make; `run` has all turns. The last calls were not executed. */
export class TurnLimitReached extends PenstockError {}
/** The answer does not fit `responseFormat`, for instance because maxOutputTokens cut it. */
export class UnparsableAnswer extends PenstockError {}

type Kind = new (message: string, failure?: Failure) => PenstockError;

const BY_REASON: Readonly<Record<string, Kind>> = {
  INVALID_FIELD: InvalidRequest,
  MISSING_FIELD: InvalidRequest,
  CONFLICTING_FIELDS: InvalidRequest,
  LIMIT_EXCEEDED: InvalidRequest,
  BUDGET_DOES_NOT_FIT: BudgetDoesNotFit,
  CONTEXT_OVERFLOW: ContextOverflow,
  FEATURE_OFF: FeatureOff,
  NOT_IMPLEMENTED: NotImplementedYet,
  MODEL_NOT_FOUND: ModelNotFound,
  GENERATION_NOT_FOUND: GenerationNotFound,
  OVERLOADED: Overloaded,
  MESSAGE_TOO_LARGE: MessageTooLarge,
  QUOTA_EXCEEDED: Overloaded,
  CLIENT_TOO_SLOW: Cancelled,
  DEADLINE_PASSED: DeadlineExceeded,
  DRAINING: Unavailable,
  ENGINE_DOWN: Unavailable,
  ENGINE_REFUSED: ServerFault,
  INTERNAL: ServerFault,
  CALLER_REFUSED: CallerRefused,
  POISONOUS_REQUEST: PoisonousRequest,
};

const BY_CODE: Readonly<Partial<Record<Code, Kind>>> = {
  [Code.INVALID_ARGUMENT]: InvalidRequest,
  [Code.UNIMPLEMENTED]: NotImplementedYet,
  [Code.RESOURCE_EXHAUSTED]: Overloaded,
  [Code.DEADLINE_EXCEEDED]: DeadlineExceeded,
  [Code.UNAVAILABLE]: Unavailable,
  [Code.UNAUTHENTICATED]: CallerRefused,
  [Code.PERMISSION_DENIED]: CallerRefused,
  [Code.CANCELLED]: Cancelled,
  [Code.INTERNAL]: ServerFault,
  [Code.UNKNOWN]: ServerFault,
  [Code.DATA_LOSS]: ServerFault,
};

/** Returns the typed error of a failed call. Other errors are returned unchanged. Invalid details are ignored. */
export function fromServiceError(error: unknown): unknown {
  if (!isServiceError(error)) return error;
  const details = detailsOf(error);
  const found = detail(details, ErrorInfoSchema);
  const info = found?.domain === DOMAIN ? found : undefined;
  const delay = detail(details, RetryInfoSchema)?.retryDelay;
  let kind = (info && BY_REASON[info.reason]) ?? BY_CODE[error.code] ?? PenstockError;
  // gRPC's own limit on message size has the code of overload, for which a retry would be wrong.
  if (kind === Overloaded && !info && /message larger than max/i.test(error.details)) kind = MessageTooLarge;
  return new kind(error.details || Code[error.code]?.toLowerCase().replaceAll("_", " ") || "failed", {
    code: error.code,
    reason: info?.reason ?? "",
    metadata: info?.metadata ?? {},
    violations: (detail(details, BadRequestSchema)?.fieldViolations ?? []).map((v) => ({
      field: v.field,
      description: v.description,
      reason: v.reason,
    })),
    retryAfterSeconds: delay && Number(delay.seconds) + delay.nanos / 1e9,
    rateLimits: rateLimitsOf(error.metadata),
  });
}

const RATE_LIMIT = "x-ratelimit-";

/** Returns the `x-ratelimit-*` trailers by the rest of their names. */
export function rateLimitsOf(trailers: Metadata | undefined): Record<string, string> {
  const found = Object.entries(trailers?.getMap() ?? {}).filter(([name]) => name.startsWith(RATE_LIMIT));
  return Object.fromEntries(found.map(([name, value]) => [name.slice(RATE_LIMIT.length), String(value)]));
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error && "details" in error;
}

function detailsOf(error: ServiceError): Status["details"] {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!(packed instanceof Uint8Array)) return [];
  try {
    return fromBinary(StatusSchema, packed).details;
  } catch {
    return []; // Details of a proxy or of another service.
  }
}

function detail<T extends DescMessage>(details: Status["details"], schema: T): MessageShape<T> | undefined {
  for (const packed of details) {
    const message = anyUnpack(packed, schema);
    if (message) return message;
  }
  return undefined;
}
