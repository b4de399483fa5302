/** Replies, complete or growing. */
import {
  FinishReason,
  InterruptionReason,
  ThinkingMode,
  ThinkingOutcome,
  type Candidate as CandidateProto,
  type CandidateResult,
  type Cost,
  type Delta,
  type EffectiveSettings,
  type GenerateResponse,
  type GenerationFinished,
  type Timing,
  type TokenLogprobs,
  type Usage,
} from "./gen/penstock/v1/generation_pb.js";

export type FinishReasonName =
  | "stop"
  | "stop_string"
  | "stop_token"
  | "max_output_tokens"
  | "cancelled"
  | "drained"
  | "unknown";
export type ThinkingOutcomeName =
  | "disabled"
  | "natural_end"
  | "budget_reached"
  | "finished_by_client"
  | "deadline"
  | "max_output_tokens"
  | "cancelled"
  | "unknown";
export type InterruptionReasonName = "engine_died" | "engine_hung" | "unknown";
export type ThinkingModeName = "fast" | "thinking" | "auto" | "unknown";

/** Returns the short name of an enum's value. An unset value, or one of a newer server, is "unknown". */
function nameOf(names: Record<number, string>, value: number): string {
  return value === 0 ? "unknown" : (names[value]?.toLowerCase() ?? "unknown");
}
export const finishReasonName = (value: FinishReason) => nameOf(FinishReason, value) as FinishReasonName;
export const thinkingOutcomeName = (value: ThinkingOutcome) => nameOf(ThinkingOutcome, value) as ThinkingOutcomeName;
export const interruptionReasonName = (value: InterruptionReason) =>
  nameOf(InterruptionReason, value) as InterruptionReasonName;
export const thinkingModeName = (value: ThinkingMode) => nameOf(ThinkingMode, value) as ThinkingModeName;

/** One output. It grows in a stream; `finishReason` and `usage` come with the last event. */
export class Candidate {
  thought = "";
  answer = "";
  reasoningTokens = 0;
  answerTokens = 0;
  thoughtTokenIds: number[] = [];
  answerTokenIds: number[] = [];
  thoughtLogprobs: TokenLogprobs[] = [];
  answerLogprobs: TokenLogprobs[] = [];
  thinkingOutcome: ThinkingOutcomeName | undefined;
  finishReason: FinishReasonName | undefined;
  matchedStop = "";
  usage: Usage | undefined;

  constructor(readonly index: number) {}

  /** @internal */
  addDelta(kind: "thought" | "answer", delta: Delta): void {
    if (kind === "thought") {
      this.thought += delta.text;
      this.reasoningTokens += delta.tokenCount;
      this.thoughtTokenIds.push(...delta.tokenIds);
      this.thoughtLogprobs.push(...delta.logprobs);
    } else {
      this.answer += delta.text;
      this.answerTokens += delta.tokenCount;
      this.answerTokenIds.push(...delta.tokenIds);
      this.answerLogprobs.push(...delta.logprobs);
    }
  }

  /** @internal */
  finish(result: CandidateResult): void {
    this.finishReason = finishReasonName(result.finishReason);
    this.thinkingOutcome = thinkingOutcomeName(result.thinkingOutcome);
    this.matchedStop = result.matchedStop;
    this.usage = result.usage;
    this.reasoningTokens = result.usage?.reasoningTokens ?? 0;
    this.answerTokens = result.usage?.answerTokens ?? 0;
  }

  /** @internal */
  static fromProto(proto: CandidateProto): Candidate {
    const made = new Candidate(proto.result?.candidateIndex ?? 0);
    made.thought = proto.thought;
    made.answer = proto.answer;
    made.thoughtTokenIds = proto.thoughtTokenIds;
    made.answerTokenIds = proto.answerTokenIds;
    made.thoughtLogprobs = proto.thoughtLogprobs;
    made.answerLogprobs = proto.answerLogprobs;
    if (proto.result) made.finish(proto.result);
    return made;
  }
}

/**
 * A reply. From `generate` it is complete; in a `stream` it grows, and each event has the same one.
 *
 * `usage`, `cost` and `timing` are undefined until the end. `cost` stays undefined if the server has no price list.
 */
export class Response {
  generationId = "";
  model = "";
  resumeToken = "";
  candidates: Candidate[] = [];
  usage: Usage | undefined;
  cost: Cost | undefined;
  timing: Timing | undefined;
  effectiveSettings: EffectiveSettings | undefined;
  /** The caller's limits and the rest of them, such as `remaining-requests`; at the end, if the server sends them. */
  rateLimits: Readonly<Record<string, string>> = {};

  /** Returns the candidate with this index. Makes it, and those before it, if the stream has not named it yet. */
  candidate(index: number): Candidate {
    while (this.candidates.length <= index) this.candidates.push(new Candidate(this.candidates.length));
    return this.candidates[index] as Candidate;
  }

  /** The first candidate's thought. The next three properties are the first candidate's, too. */
  get thought(): string {
    return this.candidate(0).thought;
  }
  get answer(): string {
    return this.candidate(0).answer;
  }
  get finishReason(): FinishReasonName | undefined {
    return this.candidate(0).finishReason;
  }
  get thinkingOutcome(): ThinkingOutcomeName | undefined {
    return this.candidate(0).thinkingOutcome;
  }

  /** @internal */
  finish(proto: GenerationFinished | GenerateResponse): void {
    this.usage = proto.usage;
    this.cost = proto.cost;
    this.timing = proto.timing;
    this.effectiveSettings = proto.effectiveSettings;
  }

  /** @internal */
  static fromProto(reply: GenerateResponse): Response {
    const made = new Response();
    made.generationId = reply.generationId;
    made.model = reply.model;
    made.candidates = reply.candidates.map(Candidate.fromProto);
    made.finish(reply);
    return made;
  }
}
