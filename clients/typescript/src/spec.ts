/** Builds a `GenerationSpec` from options: the only place that builds requests. */
import { create } from "@bufbuild/protobuf";
import { checkOptions, describe, type Known } from "./options.js";
import {
  GenerationSpecSchema,
  EarlyExit,
  OverflowPolicy,
  Priority,
  Effort,
  ThinkingMode,
  ThoughtHistory,
  ToolMode,
  type GenerationSpec,
} from "./gen/penstock/v1/generation_pb.js";
import { messagesOf, type Message } from "./messages.js";
import { checkTool, jsonSchemaOf, type Tool } from "./tools.js";

/** A tool as OpenAI's library takes it. */
export interface OpenAITool {
  readonly type: "function";
  readonly function: Omit<Tool, "execute">;
}
/** A string is one user message; an array is a conversation, oldest first; `text` and `tokenIds` are sent unchanged. */
export type Prompt =
  | string
  | readonly Message[]
  | { readonly text: string }
  | { readonly tokenIds: readonly number[] };

/**
 * Options of a generation. An absent option has the server's default, which `model()` returns. Ranges are those of
 * `penstock.v1.GenerationSpec`; the server checks them and names the wrong field.
 */
export interface GenerationOptions {
  /** Name of the model; the served one if absent. */
  model?: string;
  thinking?: "fast" | "thinking" | "auto";
  /** Largest number of thought tokens; -1 is no limit, 0 is no thought. */
  budget?: number;
  includeThoughts?: boolean;
  /** How hard to think; the server's table makes it a budget. A `budget` wins. */
  effort?: "none" | "low" | "medium" | "high";
  /** Which earlier thoughts the model is given again. Default: those since the last user message. */
  history?: "current_turn" | "all_turns" | "none";
  /** Tools that the model may ask for. */
  tools?: readonly (Tool | OpenAITool)[];
  /** Default: the model decides. "validated" and "required" hold each call to its schema. */
  toolMode?: "auto" | "required" | "none" | "validated";
  /** Names of the only tools that may be called. */
  allowedTools?: readonly string[];
  /** May one output have several calls. */
  parallel?: boolean;
  /** Most calls of one output. */
  maxToolCalls?: number;
  /** Output tokens kept back for the answer. */
  answerReserve?: number;
  /** Text that the server adds to the thought before it closes it at the budget. */
  closingMessage?: string;
  /** The thought ends where one of these texts shows. */
  thoughtStop?: string | readonly string[];
  /** The thought ends where this regular expression matches. */
  thoughtStopRegex?: string;
  /** What ends the thought before its budget, where more of it would not change the answer. */
  earlyExit?: "off" | "marker" | "probe";
  /** Probability from which on it ends: of the closing marker, or of the answer's first tokens with "probe". */
  earlyExitProbability?: number;
  /** Largest number of tokens of prompt plus output. */
  maxContextTokens?: number;
  overflow?: "error" | "drop_oldest_turns" | "truncate_left" | "truncate_middle";
  cacheSalt?: string;
  sessionId?: string;
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  repetitionPenalty?: number;
  seed?: number | bigint;
  logitBias?: Readonly<Record<number, number>>;
  /** Largest number of output tokens, thought plus answer. */
  maxOutputTokens?: number;
  minOutputTokens?: number;
  /** Texts before which the answer ends. */
  stop?: string | readonly string[];
  stopTokenIds?: readonly number[];
  candidates?: number;
  topLogprobs?: number;
  returnTokenIds?: boolean;
  /** A schema as for a tool's parameters: its JSON schema constrains the answer, and `reply.parsed()` checks it. */
  responseFormat?: object;
  /** At most one of these four and `responseFormat`. */
  jsonSchema?: string | object;
  regex?: string;
  grammar?: string;
  choices?: readonly string[];
  priority?: "low" | "normal" | "high";
}

export const GENERATION_OPTIONS = {
  model: ["string"],
  thinking: [["fast", "thinking", "auto"]],
  budget: ["int32"],
  includeThoughts: ["boolean"],
  effort: [["none", "low", "medium", "high"]],
  history: [["current_turn", "all_turns", "none"]],
  tools: ["array"],
  toolMode: [["auto", "required", "none", "validated"]],
  allowedTools: ["strings"],
  parallel: ["boolean"],
  maxToolCalls: ["int32"],
  answerReserve: ["int32"],
  closingMessage: ["string"],
  thoughtStop: ["string", "strings"],
  thoughtStopRegex: ["string"],
  earlyExit: [["off", "marker", "probe"]],
  earlyExitProbability: ["number"],
  maxContextTokens: ["int32"],
  overflow: [["error", "drop_oldest_turns", "truncate_left", "truncate_middle"]],
  cacheSalt: ["string"],
  sessionId: ["string"],
  temperature: ["number"],
  topP: ["number"],
  topK: ["int32"],
  minP: ["number"],
  presencePenalty: ["number"],
  frequencyPenalty: ["number"],
  repetitionPenalty: ["number"],
  seed: ["integer"],
  logitBias: ["biases"],
  maxOutputTokens: ["int32"],
  minOutputTokens: ["int32"],
  stop: ["string", "strings"],
  stopTokenIds: ["tokens"],
  candidates: ["int32"],
  topLogprobs: ["int32"],
  returnTokenIds: ["boolean"],
  responseFormat: ["object", "function"],
  jsonSchema: ["string", "object"],
  regex: ["string"],
  grammar: ["string"],
  choices: ["strings"],
  priority: [["low", "normal", "high"]],
} as const satisfies Record<keyof GenerationOptions, Known[string]>;

const upper = <T extends string>(name: T) => name.toUpperCase() as Uppercase<T>;

/** Returns one text or several as a list; undefined where there is none. */
const listOf = (texts?: string | readonly string[]) => (typeof texts === "string" ? [texts] : texts && [...texts]);

/** Returns the fields that are set; undefined if none is. */
function section<T extends object>(fields: T): { [K in keyof T]-?: Exclude<T[K], undefined> } | undefined {
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  return given.length ? (Object.fromEntries(given) as never) : undefined;
}

/** Returns the request for a prompt and options. Throws TypeError for wrong types. */
export function buildSpec(prompt: Prompt, o: GenerationOptions = {}): GenerationSpec {
  checkOptions(o, GENERATION_OPTIONS);
  const thinking = section({
    mode: o.thinking && ThinkingMode[upper(o.thinking)],
    thinkingBudget: o.budget,
    includeThoughts: o.includeThoughts,
    answerReserve: o.answerReserve,
    closingMessage: o.closingMessage,
    effort: o.effort && Effort[upper(o.effort)],
    history: o.history && ThoughtHistory[upper(o.history)],
    earlyExit: o.earlyExit && EarlyExit[upper(o.earlyExit)],
    earlyExitProbability: o.earlyExitProbability,
    stopPatterns: section({ strings: listOf(o.thoughtStop), regex: o.thoughtStopRegex }),
  });
  const toolConfig = section({
    mode: o.toolMode && ToolMode[upper(o.toolMode)],
    allowedNames: o.allowedTools && [...o.allowedTools],
    parallel: o.parallel,
    maxCalls: o.maxToolCalls,
  });
  const context = section({
    maxContextTokens: o.maxContextTokens,
    overflow: o.overflow && OverflowPolicy[upper(o.overflow)],
    cacheSalt: o.cacheSalt,
    sessionId: o.sessionId,
  });
  const sampling = section({
    temperature: o.temperature,
    topP: o.topP,
    topK: o.topK,
    minP: o.minP,
    presencePenalty: o.presencePenalty,
    frequencyPenalty: o.frequencyPenalty,
    repetitionPenalty: o.repetitionPenalty,
    seed: o.seed === undefined ? undefined : BigInt(o.seed),
    logitBias: o.logitBias && { ...o.logitBias },
  });
  const output = section({
    maxOutputTokens: o.maxOutputTokens,
    minOutputTokens: o.minOutputTokens,
    stopStrings: listOf(o.stop),
    stopTokenIds: o.stopTokenIds && [...o.stopTokenIds],
    candidateCount: o.candidates,
    topLogprobs: o.topLogprobs,
    returnTokenIds: o.returnTokenIds,
    structuredOutput: structured(o),
  });
  return create(GenerationSpecSchema, {
    input: inputOf(prompt),
    ...(o.model !== undefined && { model: o.model }),
    ...(o.priority && { priority: Priority[upper(o.priority)] }),
    ...(thinking && { thinking }),
    ...(context && { context }),
    ...(sampling && { sampling }),
    ...(output && { output }),
    ...(o.tools && { tools: o.tools.map(toolOf) }),
    ...(toolConfig && { toolConfig }),
  } as never);
}

function inputOf(prompt: Prompt) {
  if (typeof prompt !== "string" && (typeof prompt !== "object" || prompt === null)) {
    throw new TypeError(`prompt must be a string, messages, { text } or { tokenIds }, got ${describe(prompt)}`);
  }
  if (typeof prompt === "object" && "text" in prompt) {
    checkOptions(prompt, { text: ["string"] }, "prompt", "key beside text");
    return { case: "text", value: prompt.text };
  }
  if (typeof prompt === "object" && "tokenIds" in prompt) {
    checkOptions(prompt, { tokenIds: ["tokens"] }, "prompt", "key beside tokenIds");
    return { case: "tokenIds", value: { ids: [...prompt.tokenIds] } };
  }
  const turns: readonly Message[] = typeof prompt === "string" ? [{ role: "user", content: prompt }] : prompt;
  if (!Array.isArray(turns)) {
    throw new TypeError(`prompt as an object must have the key text or tokenIds, got ${Object.keys(turns).join(", ")}`);
  }
  return { case: "messages", value: { messages: turns.flatMap(messagesOf) } };
}

function toolOf(given: Tool | OpenAITool, at: number) {
  const { name, description, parameters, strict } = checkTool(given, `tools[${at}]`);
  const parametersJsonSchema = parameters === undefined ? "" : JSON.stringify(jsonSchemaOf(parameters));
  return { name, description: description ?? "", parametersJsonSchema, strict: strict ?? false };
}

/** Types of a response format in OpenAI's API. */
const FORMATS = ["json_schema", "json_object", "text"];

function structured({ jsonSchema, responseFormat, regex, grammar, choices }: GenerationOptions) {
  if (responseFormat && FORMATS.includes(String((responseFormat as { type?: unknown }).type))) {
    throw new TypeError("responseFormat is a schema itself, such as one of zod; for a JSON schema use jsonSchema");
  }
  const given = [
    responseFormat !== undefined && { case: "jsonSchema", value: JSON.stringify(jsonSchemaOf(responseFormat)) },
    jsonSchema !== undefined && {
      case: "jsonSchema",
      value: typeof jsonSchema === "string" ? jsonSchema : JSON.stringify(jsonSchema),
    },
    regex !== undefined && { case: "regex", value: regex },
    grammar !== undefined && { case: "grammar", value: grammar },
    choices !== undefined && { case: "choices", value: { choices: [...choices] } },
  ].filter((form) => form !== false);
  if (given.length > 1) throw new TypeError("at most one of responseFormat, jsonSchema, regex, grammar and choices");
  return given[0];
}
