/**
 * The events of a stream, and the reader that makes them.
 *
 *     started → thought* → thinking_finished → (answer* | tool call)* → finished     (per candidate; candidates interleave)
 *     a tool call: tool_call_started → tool_call_arguments* → tool_call_finished
 *
 * If the server's engine is restarted, `interrupted` and later `continued` come between them.
 */
import { BrokenStream } from "./errors.js";
import type {
  Cost,
  Delta,
  EffectiveSettings,
  GenerationEvent,
  Timing,
  TokenLogprobs,
  Usage,
} from "./gen/penstock/v1/generation_pb.js";
import type { ToolCall } from "./messages.js";
import {
  interruptionReasonName,
  Response,
  thinkingOutcomeName,
  type InterruptionReasonName,
  type ThinkingOutcomeName,
} from "./response.js";

interface Common {
  /** Number of the event, from 1; it grows by one. */
  readonly sequence: number;
  /** The reply so far: one object, which grows with the stream. */
  readonly response: Response;
  /** The received event. */
  readonly proto: GenerationEvent;
}
export interface Started extends Common {
  readonly kind: "started";
  readonly generationId: string;
  readonly model: string;
  readonly effectiveSettings: EffectiveSettings | undefined;
}
/** New text only; may be empty. */
export interface TextDelta extends Common {
  readonly kind: "thought" | "answer";
  readonly candidateIndex: number;
  readonly text: string;
  readonly tokenCount: number;
  readonly tokenIds: readonly number[];
  readonly logprobs: readonly TokenLogprobs[];
}
export interface ThinkingFinished extends Common {
  readonly kind: "thinking_finished";
  readonly candidateIndex: number;
  readonly outcome: ThinkingOutcomeName;
  readonly reasoningTokens: number;
}
/** The model began a tool call. */
export interface ToolCallStarted extends Common {
  readonly kind: "tool_call_started";
  readonly candidateIndex: number;
  readonly callIndex: number;
  readonly id: string;
  readonly name: string;
  readonly tokenCount: number;
}
/** New text of a call's arguments: a piece of JSON. The pieces concatenate to `argumentsJson`. */
export interface ToolCallArguments extends Common {
  readonly kind: "tool_call_arguments";
  readonly candidateIndex: number;
  readonly callIndex: number;
  readonly jsonFragment: string;
  readonly tokenCount: number;
}
/** A call is over. The stream goes on: wait for its end before you execute calls. */
export interface ToolCallFinished extends Common {
  readonly kind: "tool_call_finished";
  readonly candidateIndex: number;
  readonly callIndex: number;
  readonly call: ToolCall;
  readonly tokenCount: number;
}
/** A candidate stands still while the server's engine is restarted. It goes on by itself: no text is lost. */
export interface Interrupted extends Common {
  readonly kind: "interrupted";
  readonly candidateIndex: number;
  readonly reason: InterruptionReasonName;
  /** Expected seconds until it continues; undefined if the server does not know. */
  readonly expectedSeconds: number | undefined;
}
/** A candidate continues, with the seconds since its interruption. */
export interface Continued extends Common {
  readonly kind: "continued";
  readonly candidateIndex: number;
  readonly interruptedSeconds: number;
}
/** The last event; everything in `response` is final. */
export interface Finished extends Common {
  readonly kind: "finished";
  readonly usage: Usage | undefined;
  readonly cost: Cost | undefined;
  readonly timing: Timing | undefined;
}
export type Event =
  | Started
  | TextDelta
  | ThinkingFinished
  | ToolCallStarted
  | ToolCallArguments
  | ToolCallFinished
  | Interrupted
  | Continued
  | Finished;

/** Converts the protos of one stream to events, each exactly once and in order, and extends `response`. */
export class EventReader {
  readonly response = new Response();
  lastSequence = 0;
  finished = false;

  /** Returns the event; undefined for a repeated one and for a kind that this client does not know. */
  read(proto: GenerationEvent): Event | undefined {
    const sequence = Number(proto.sequence);
    if (sequence <= this.lastSequence) return undefined;
    if (sequence !== this.lastSequence + 1) {
      throw new BrokenStream(`event ${this.lastSequence + 1} is missing: the next one was ${sequence}`);
    }
    this.lastSequence = sequence;
    const common: Common = { sequence, response: this.response, proto };
    const { event } = proto;
    switch (event.case) {
      case "started": {
        const { generationId, model, resumeToken, effectiveSettings } = event.value;
        Object.assign(this.response, { generationId, model, resumeToken, effectiveSettings });
        return { ...common, kind: "started", generationId, model, effectiveSettings };
      }
      case "thought":
      case "answer":
        return this.delta(common, event.case, event.value);
      case "thinkingFinished": {
        const { candidateIndex, reasoningTokens } = event.value;
        const outcome = thinkingOutcomeName(event.value.outcome);
        Object.assign(this.response.candidate(candidateIndex), { thinkingOutcome: outcome, reasoningTokens });
        return { ...common, kind: "thinking_finished", candidateIndex, outcome, reasoningTokens };
      }
      case "toolCallStarted": {
        const { candidateIndex, callIndex, id, name, tokenCount } = event.value;
        this.response.candidate(candidateIndex).startCall(event.value);
        return { ...common, kind: "tool_call_started", candidateIndex, callIndex, id, name, tokenCount };
      }
      case "toolCallArguments": {
        const { candidateIndex, callIndex, jsonFragment, tokenCount } = event.value;
        this.response.candidate(candidateIndex).addArguments(event.value);
        return { ...common, kind: "tool_call_arguments", candidateIndex, callIndex, jsonFragment, tokenCount };
      }
      case "toolCallFinished": {
        const { candidateIndex, callIndex, tokenCount } = event.value;
        const call = this.response.candidate(candidateIndex).finishCall(event.value);
        return { ...common, kind: "tool_call_finished", candidateIndex, callIndex, call, tokenCount };
      }
      case "interrupted": {
        const { candidateIndex, expectedSeconds } = event.value;
        const reason = interruptionReasonName(event.value.reason);
        return { ...common, kind: "interrupted", candidateIndex, reason, expectedSeconds };
      }
      case "continued": {
        const { candidateIndex, interruptedSeconds } = event.value;
        return { ...common, kind: "continued", candidateIndex, interruptedSeconds };
      }
      case "finished": {
        for (const result of event.value.results) this.response.candidate(result.candidateIndex).finish(result);
        this.response.finish(event.value);
        this.finished = true;
        const { usage, cost, timing } = event.value;
        return { ...common, kind: "finished", usage, cost, timing };
      }
      default:
        return undefined;
    }
  }

  private delta(common: Common, kind: "thought" | "answer", delta: Delta): TextDelta {
    this.response.candidate(delta.candidateIndex).addDelta(kind, delta);
    const { candidateIndex, text, tokenCount, tokenIds, logprobs } = delta;
    return { ...common, kind, candidateIndex, text, tokenCount, tokenIds, logprobs };
  }
}
