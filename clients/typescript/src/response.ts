/** Replies, complete or growing. */
import {
  Effort,
  FinishReason,
  GenerationPhase,
  InterruptionReason,
  ThinkingMode,
  ThinkingOutcome,
  ToolMode,
  type Candidate as CandidateProto,
  type CandidateResult,
  type Cost,
  type Delta,
  type EffectiveSettings,
  type GenerateResponse,
  type GenerationFinished,
  type Timing,
  type TokenLogprobs,
  type ToolCallArguments,
  type ToolCallFinished,
  type ToolCallStarted,
  type Usage,
} from "./gen/penstock/v1/generation_pb.js";
import { toolCallOf, type Part, type PlainMessage, type ToolCall } from "./messages.js";
import { parsed, type Output } from "./tools.js";

export type FinishReasonName =
  | "stop"
  | "stop_string"
  | "stop_token"
  | "max_output_tokens"
  | "cancelled"
  | "drained"
  | "tool_calls"
  | "unknown";
export type ThinkingOutcomeName =
  | "disabled"
  | "natural_end"
  | "budget_reached"
  | "finished_by_client"
  | "deadline"
  | "max_output_tokens"
  | "cancelled"
  | "stop_pattern"
  | "converged"
  | "unknown";
export type InterruptionReasonName = "engine_died" | "engine_hung" | "unknown";
export type GenerationPhaseName = "waiting" | "thinking" | "answering" | "unknown";
export type ThinkingModeName = "fast" | "thinking" | "auto" | "unknown";
export type ToolModeName = "auto" | "required" | "none" | "validated" | "unknown";
export type EffortName = "none" | "low" | "medium" | "high" | "unknown";

/** Returns the short name of an enum's value. An unset value, or one of a newer server, is "unknown". */
function nameOf(names: Record<number, string>, value: number): string {
  return value === 0 ? "unknown" : (names[value]?.toLowerCase() ?? "unknown");
}
export const finishReasonName = (value: FinishReason) => nameOf(FinishReason, value) as FinishReasonName;
export const thinkingOutcomeName = (value: ThinkingOutcome) => nameOf(ThinkingOutcome, value) as ThinkingOutcomeName;
export const interruptionReasonName = (value: InterruptionReason) =>
  nameOf(InterruptionReason, value) as InterruptionReasonName;
export const generationPhaseName = (value: GenerationPhase) => nameOf(GenerationPhase, value) as GenerationPhaseName;
export const toolModeName = (value: ToolMode) => nameOf(ToolMode, value) as ToolModeName;
export const effortName = (value: Effort) => nameOf(Effort, value) as EffortName;
export const thinkingModeName = (value: ThinkingMode) => nameOf(ThinkingMode, value) as ThinkingModeName;

/** One output. It grows in a stream; `finishReason` and `usage` come with the last event. */
export class Candidate {
  thought = "";
  answer = "";
  reasoningTokens = 0;
  answerTokens = 0;
  toolTokens = 0;
  private readonly calls: ToolCall[] = [];
  thoughtTokenIds: number[] = [];
  answerTokenIds: number[] = [];
  thoughtLogprobs: TokenLogprobs[] = [];
  answerLogprobs: TokenLogprobs[] = [];
  thinkingOutcome: ThinkingOutcomeName | undefined;
  finishReason: FinishReasonName | undefined;
  matchedStop = "";
  usage: Usage | undefined;
  /** Probes of early exit that read the answer's beginning. */
  probes = 0;
  /** Estimate of the thought tokens that early exit saved; undefined if it saved none, or too little is known. */
  savedReasoningTokens: number | undefined;

  constructor(readonly index: number) {}

  /** The tool calls so far, in order. Execute only those whose status is "complete". */
  get toolCalls(): readonly ToolCall[] {
    return this.calls;
  }

  /**
   * The output as a message of the history, with its thought and its tool calls. An incomplete call is in it with empty
   * arguments, because no request can hold half of one: answer it with an error result.
   */
  get message(): PlainMessage {
    const parts: Part[] = [];
    if (this.thought) parts.push({ type: "thought", text: this.thought });
    if (this.answer) parts.push({ type: "text", text: this.answer });
    for (const call of this.calls) {
      const { id, name, argumentsJson } = call;
      parts.push({ type: "tool_call", id, name: name || "unknown", argumentsJson: call.status === "complete" ? argumentsJson : "{}" });
    }
    const plain = !this.thought && this.calls.length === 0;
    return { role: "assistant", content: plain ? this.answer : parts };
  }

  /** @internal */
  startCall({ callIndex, id, name, tokenCount }: ToolCallStarted): void {
    this.setCall(callIndex, { id, name, argumentsJson: "", status: "incomplete" }, tokenCount);
  }

  /** @internal */
  addArguments({ callIndex, jsonFragment, tokenCount }: ToolCallArguments): void {
    const call = this.calls[callIndex] ?? { id: "", name: "", argumentsJson: "", status: "incomplete" };
    this.setCall(callIndex, { ...call, argumentsJson: call.argumentsJson + jsonFragment }, tokenCount);
  }

  /** @internal */
  finishCall({ callIndex, call, tokenCount }: ToolCallFinished): ToolCall {
    const whole: ToolCall = call ? toolCallOf(call) : { id: "", name: "", argumentsJson: "", status: "incomplete" };
    this.setCall(callIndex, whole, tokenCount);
    return whole;
  }

  private setCall(index: number, call: ToolCall, tokens: number): void {
    this.calls[Math.min(index, this.calls.length)] = call;
    this.toolTokens += tokens;
  }

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
    this.probes = result.earlyExit?.probes ?? 0;
    this.savedReasoningTokens = result.earlyExit?.savedReasoningTokens;
    this.reasoningTokens = result.usage?.reasoningTokens ?? 0;
    this.answerTokens = result.usage?.answerTokens ?? 0;
    this.toolTokens = result.usage?.toolTokens ?? 0;
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
    made.calls.push(...proto.toolCalls.map(toolCallOf));
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

  /** @internal The schema that the request asked the answer to have. */
  responseFormat: object | undefined;

  /** Of the first candidate, as are all that follow. */
  get thought(): string {
    return this.candidate(0).thought;
  }
  get answer(): string {
    return this.candidate(0).answer;
  }
  get toolCalls(): readonly ToolCall[] {
    return this.candidate(0).toolCalls;
  }
  get message(): PlainMessage {
    return this.candidate(0).message;
  }

  /**
   * The answer as a value of a schema: of the one given, or of the request's `responseFormat`. Fails with
   * `UnparsableAnswer` where it is none, for instance because it was cut.
   */
  async parsed(): Promise<unknown>;
  async parsed<S extends object>(schema: S): Promise<Output<S>>;
  async parsed(schema: object | undefined = this.responseFormat): Promise<unknown> {
    if (!schema) throw new TypeError("the request had no responseFormat: pass the schema");
    return parsed(schema, this);
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
