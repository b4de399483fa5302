/**
 * Everything that a call can fail with. The reason decides, then the status code.
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
 *     └ BrokenStream                   (none)                             events are missing
 */
import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { status as Code, type Metadata, type ServiceError } from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema, type Status } from "./gen/google/rpc/status_pb.js";

const DOMAIN = "penstock.v1";

/** `field` is a proto path from the request's root, such as `spec.thinking.thinking_budget`. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
  readonly reason: string;
}

export interface Failure {
  /** Undefined where no status came. */
  readonly code?: Code;
  /** A value of `penstock.v1.ErrorReason` without its prefix; empty where the server named none. */
  readonly reason?: string;
  /** The numbers of the reason, as documented there. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly violations?: readonly FieldViolation[];
  readonly retryAfterSeconds?: number | undefined;
  /** The caller's limits and what is left of them, such as `remaining-requests`, where the server tells. */
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

/** The request is wrong as it stands; `violations` says where, by field path. */
export class InvalidRequest extends PenstockError {}
/** The thinking budget cannot hold beside maxOutputTokens and the answer reserve. */
export class BudgetDoesNotFit extends InvalidRequest {}
/** The prompt does not fit; `metadata` has the numbers. */
export class ContextOverflow extends InvalidRequest {}
/** The request asks for something that this server's profile has off. */
export class FeatureOff extends PenstockError {}
/** This version of the service does not do that. */
export class NotImplementedYet extends PenstockError {}
/** Another model than the served one was named. */
export class ModelNotFound extends PenstockError {}
/** The generation to resume is unknown, expired, or another caller's. */
export class GenerationNotFound extends PenstockError {}
/** No room now; `retryAfterSeconds` is the server's honest estimate. */
export class Overloaded extends PenstockError {}
/** A message is larger than the sender or the receiver allows. */
export class MessageTooLarge extends PenstockError {}
/**
 * The time given was not enough. `metadata` has thought_tokens and answer_tokens, which is what was made until then: as the
 * server counted it or, where this client's own clock was first, as much of it as has arrived.
 */
export class DeadlineExceeded extends PenstockError {
  /** This client's clock was first, or a proxy's: no word of the service has come. */
  readonly isOwn: boolean;

  constructor(message: string, failure: Failure = {}) {
    const own = !failure.reason;
    const metadata = { thought_tokens: "0", answer_tokens: "0", ...failure.metadata };
    super(message, own ? { ...failure, reason: "DEADLINE_PASSED", metadata } : failure);
    this.isOwn = own;
  }

  /** The same where it is the client's own, with what has arrived. */
  counted(candidates: readonly { reasoningTokens: number; answerTokens: number }[]): DeadlineExceeded {
    if (!this.isOwn) return this;
    const sum = (of: "reasoningTokens" | "answerTokens") => String(candidates.reduce((all, one) => all + one[of], 0));
    return new DeadlineExceeded(this.message, {
      ...(this.code !== undefined && { code: this.code }),
      metadata: { thought_tokens: sum("reasoningTokens"), answer_tokens: sum("answerTokens") },
    });
  }
}
/** Nothing answers (no reason), the server is going away (DRAINING), or its engine is down (ENGINE_DOWN). */
export class Unavailable extends PenstockError {}
/** Who the caller is, is not known or not allowed. */
export class CallerRefused extends PenstockError {}
/** The call was cancelled, here or on the way. */
export class Cancelled extends PenstockError {}
/** The request was in flight at several engine deaths and is not tried again. */
export class PoisonousRequest extends PenstockError {}
/** The service failed; its log has the cause. */
export class ServerFault extends PenstockError {}
/** The stream ended without its last event, or skipped one: what was received is not the whole reply. */
export class BrokenStream extends PenstockError {
  constructor(
    message: string,
    /** It ended too early; else an event is missing inside it. */
    readonly isCutShort = false,
  ) {
    super(message);
  }
}

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

/** The typed error of a failed call; what is no gRPC error comes back as it is. Details that do not parse are absent. */
export function fromServiceError(error: unknown): unknown {
  if (!isServiceError(error)) return error;
  const details = detailsOf(error);
  const found = detail(details, ErrorInfoSchema);
  const info = found?.domain === DOMAIN ? found : undefined;
  const delay = detail(details, RetryInfoSchema)?.retryDelay;
  let kind = (info && BY_REASON[info.reason]) ?? BY_CODE[error.code] ?? PenstockError;
  // gRPC's own limit on message size uses the code of overload, where trying again would be wrong.
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

/** The `x-ratelimit-*` trailers by the rest of their names. */
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
    return []; // a proxy's or another service's idea of details
  }
}

function detail<T extends DescMessage>(details: Status["details"], schema: T): MessageShape<T> | undefined {
  for (const packed of details) {
    const message = anyUnpack(packed, schema);
    if (message) return message;
  }
  return undefined;
}
