/** Tools, and the loop of `run`: ask, execute the calls, send the results, until the model answers. */
import { create } from "@bufbuild/protobuf";
import { DeadlineExceeded, TurnLimitReached, UnparsableAnswer, type PenstockError } from "./errors.js";
import type { Event } from "./events.js";
import { CostSchema, UsageSchema, type Cost, type Usage } from "./gen/penstock/v1/generation_pb.js";
import { checkOptions, describe, type Known } from "./options.js";
import { toolMessage, type Message, type ToolCall, type ToolResult } from "./messages.js";
import type { Response } from "./response.js";
import type { GenerationOptions, Prompt } from "./spec.js";

/**
 * A schema that describes and checks values: one of zod (4.2 or newer), ArkType or any library of the Standard JSON Schema
 * (https://standardschema.dev/json-schema); a JSON schema as a plain object, which checks nothing here; or both by hand.
 */
export type Schema<T> =
  | { readonly "~standard": { readonly types?: { readonly output: T } | undefined } }
  | { readonly jsonSchema: object; parse(value: unknown): T }
  | { readonly type: "object" };
/** What the schema's values are; unknown for a plain JSON schema. */
export type Output<S> = S extends { readonly "~standard": { readonly types?: { readonly output: infer T } | undefined } }
  ? T
  : S extends { parse(value: unknown): infer T }
    ? T
    : Record<string, unknown>;

/** A tool that the model may ask for. Without `execute` the program answers its calls itself. */
export interface Tool {
  /** Letters, digits, `_`, `-` and `.`, at most 64, the first a letter or `_`. */
  readonly name: string;
  /** What it does and when to use it, for the model. */
  readonly description?: string;
  /** Of the arguments; absent: a tool without arguments. */
  readonly parameters?: object;
  /** A grammar holds the arguments to the schema while the model writes them. */
  readonly strict?: boolean;
  /** Is given the arguments, checked by the schema. A string goes to the model as it is, other values as JSON. */
  execute?(args: never, context: ToolContext): unknown;
}
export interface ToolContext {
  readonly call: ToolCall;
  /** Aborted when the run ends. */
  readonly signal: AbortSignal;
}

/** Throw this in a tool: the call failed, and the message is for the model. Other errors' messages stay here. */
export class ToolError extends Error {
  override readonly name = "ToolError";
}

/**
 * A tool whose arguments have the type of its schema.
 *
 *     const weather = tool({
 *       name: "weather",
 *       description: "Return the temperature in a city.",
 *       parameters: z.object({ city: z.string() }),
 *       execute: async ({ city }) => ({ city, celsius: 21 }),
 *     });
 */
export function tool<const S extends object>(options: {
  readonly name: string;
  readonly description?: string;
  readonly parameters?: S & Schema<unknown>;
  readonly strict?: boolean;
  execute?(args: Output<S>, context: ToolContext): unknown;
}): Tool {
  checkTool(options, "tool");
  if (options.parameters) jsonSchemaOf(options.parameters); // what is no schema is refused here
  return options as Tool;
}

const TOOL = {
  name: ["string"],
  description: ["string"],
  parameters: ["object", "function"],
  strict: ["boolean"],
  execute: ["function"],
} as const satisfies Record<keyof Tool, Known[string]>;
/** Keys of other libraries: OpenAI's, Anthropic's and MCP's. */
const FOREIGN = { type: [["function", "custom"]], input_schema: ["object"], inputSchema: ["object"] } as const;

/** Returns a tool as this or another library writes it as ours. Throws TypeError for what is no tool. */
export function checkTool(given: unknown, place: string): Tool {
  if (typeof given !== "object" || given === null) throw new TypeError(`${place} must be { name, ... }, got ${describe(given)}`);
  const isOpenAI = "function" in given;
  if (isOpenAI) checkOptions(given, { type: [["function"]], function: ["object"] }, place, `key of ${place}:`);
  const inner = (isOpenAI ? given.function : given) as Loose;
  if (typeof inner["name"] !== "string") {
    throw new TypeError(`${place}.name must be a string; hosted tools are not part of this service`);
  }
  const said = Object.fromEntries(Object.entries(inner).filter(([, value]) => value !== null));
  checkOptions(said, isOpenAI ? TOOL : { ...TOOL, ...FOREIGN }, place, `key of ${place}:`);
  const parameters = inner["parameters"] ?? inner["input_schema"] ?? inner["inputSchema"] ?? undefined;
  return { name: inner["name"], description: inner["description"], parameters, strict: inner["strict"] } as Tool;
}

type Loose = Readonly<Record<string, unknown>>;

/** The JSON schema of whatever describes values. Throws TypeError for what does not. */
export function jsonSchemaOf(schema: object): object {
  const loose = schema as Loose;
  if (typeof loose["jsonSchema"] === "object" && loose["jsonSchema"]) return loose["jsonSchema"];
  const standard = loose["~standard"] as { jsonSchema?: { input(options: object): object } } | undefined;
  if (standard?.jsonSchema) return standard.jsonSchema.input({ target: "draft-2020-12" });
  for (const method of ["toJSONSchema", "toJsonSchema"]) {
    if (typeof loose[method] === "function") return (loose[method] as () => object).call(schema);
  }
  if (standard) {
    throw new TypeError("this schema library gives no JSON schema: pass { jsonSchema, parse }, for zod 4.0 with z.toJSONSchema(schema)");
  }
  if (typeof loose["parse"] === "function") throw new TypeError("a schema with parse needs jsonSchema beside it");
  return schema;
}

/** A value checked by its schema. Throws an Error whose message says where it does not fit. */
export async function checked(schema: object, value: unknown): Promise<unknown> {
  const loose = schema as Loose;
  const standard = loose["~standard"] as { validate?(value: unknown): unknown } | undefined;
  if (standard?.validate) {
    const result = (await standard.validate(value)) as { value: unknown; issues?: readonly Issue[] };
    if (result.issues) throw new Error(result.issues.map(inWords).join("; "));
    return result.value;
  }
  return typeof loose["parse"] === "function" ? (loose["parse"] as (value: unknown) => unknown).call(schema, value) : value;
}

interface Issue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[];
}
const inWords = ({ message, path = [] }: Issue) =>
  `${path.map((one) => String(typeof one === "object" ? one.key : one)).join(".") || "value"}: ${message}`;

/** The answer as a value of a schema. Throws UnparsableAnswer where it is none; the message holds nothing of it. */
export async function parsed<S extends object>(schema: S, response: Response): Promise<Output<S>> {
  const why = response.finishReason ? `the output ended by ${response.finishReason}` : "the reply is not complete";
  let value: unknown;
  try {
    value = JSON.parse(response.answer);
  } catch {
    throw new UnparsableAnswer(`the answer is no JSON; ${why}`);
  }
  try {
    return (await checked(schema, value)) as Output<S>;
  } catch {
    throw new UnparsableAnswer(`the answer does not fit responseFormat; ${why}`);
  }
}

export interface RunOptions {
  /** Most replies; 8 if absent. */
  maxTurns?: number;
  /** Gets each event of each turn, and is waited for. */
  onEvent?(event: Event): void | Promise<void>;
  /** Gets each call with its result, and is waited for. */
  onResult?(call: ToolCall, result: ToolResult): void | Promise<void>;
  /** Gets what a tool threw, and returns the text for the model. What it throws itself ends the run. */
  onToolError?(call: ToolCall, error: unknown): string | Promise<string>;
}

/** One question to the model, and the results of the calls that it answered with. */
export interface Turn {
  readonly reply: Response;
  readonly results: readonly ToolResult[];
}

/** What `run` did. */
export class Run {
  readonly turns: Turn[] = [];
  /** The conversation: the prompt, then the replies and results of all turns. It can be continued. */
  readonly messages: Message[];

  /** @internal */
  constructor(messages: readonly Message[]) {
    this.messages = [...messages];
  }

  /** The last one. */
  get reply(): Response {
    const last = this.turns.at(-1);
    if (!last) throw new RangeError("there is no reply yet");
    return last.reply;
  }
  get answer(): string {
    return this.reply.answer;
  }
  /** Of all turns together: each turn's prompt counts, as it is billed. */
  get usage(): Usage {
    return added(create(UsageSchema), this.turns.map(({ reply }) => reply.usage));
  }
  /** Of all turns together; undefined where the server has no price list. */
  get cost(): Cost | undefined {
    const costs = this.turns.map(({ reply }) => reply.cost);
    return costs.some(Boolean) ? added(create(CostSchema), costs) : undefined;
  }
}

/** Without halves of surrogate pairs, which no message can hold. */
const wellFormed = (text: string) => Buffer.from(text).toString();

function added<T extends object>(sum: T, parts: readonly (T | undefined)[]): T {
  const total = sum as Record<string, number | bigint>;
  for (const part of parts) {
    for (const [name, value] of Object.entries(part ?? {})) {
      if (typeof value === "number") total[name] = Number(total[name] ?? 0) + value;
      else if (typeof value === "bigint") total[name] = BigInt(total[name] ?? 0) + value;
    }
  }
  return sum;
}

/** One run: what the client streams next, and what it does with the reply. @internal */
export class ToolLoop {
  readonly run: Run;
  private readonly tools = new Map<string, Tool & Required<Pick<Tool, "execute">>>();
  private readonly allowed: ReadonlySet<string>;
  private readonly grows: Message[] | undefined;

  constructor(
    prompt: Prompt,
    private readonly options: GenerationOptions & RunOptions,
    private readonly deadline: number | undefined,
    private readonly signal: AbortSignal,
  ) {
    const { maxTurns = 8, candidates = 1, tools = [] } = options;
    if (!(maxTurns >= 1)) throw new TypeError(`maxTurns must be at least 1, got ${maxTurns}`);
    if (candidates !== 1) throw new TypeError("run follows one candidate: remove candidates");
    if (typeof prompt !== "string" && !Array.isArray(prompt)) throw new TypeError("run needs messages, not text or tokenIds");
    this.run = new Run(typeof prompt === "string" ? [{ role: "user", content: prompt }] : (prompt as readonly Message[]));
    this.grows = typeof prompt !== "string" && "addResults" in prompt ? (prompt as Message[]) : undefined;
    for (const one of tools) {
      if (!("execute" in one) || typeof one.execute !== "function") {
        throw new TypeError(`run executes functions, and the tool "${"name" in one ? one.name : one.function.name}" has no execute`);
      }
      if (this.tools.has(one.name)) throw new TypeError(`two tools have the name "${one.name}"`);
      this.tools.set(one.name, one as Tool & Required<Pick<Tool, "execute">>);
    }
    const names = options.allowedTools?.length ? options.allowedTools : [...this.tools.keys()];
    this.allowed = new Set(options.toolMode === "none" ? [] : names);
  }

  /** Of the next turn. "required" is for the first one: a model that must call never answers. */
  get generation(): GenerationOptions {
    const { maxTurns: _, onEvent: __, onResult: ___, onToolError: ____, ...generation } = this.options;
    const again = this.run.turns.length > 0 && generation.toolMode === "required";
    return again ? { ...generation, toolMode: "validated" } : generation;
  }

  /** Seconds until the deadline of the run. Throws DeadlineExceeded after it. */
  get timeout(): { timeout?: number } {
    if (this.deadline === undefined) return {};
    const left = this.deadline - Date.now();
    if (left > 0) return { timeout: left / 1000 };
    const { reasoningTokens, answerTokens, toolTokens } = this.run.usage;
    throw new DeadlineExceeded("the deadline of the run passed").counted([{ reasoningTokens, answerTokens, toolTokens }]);
  }

  /** Adds a reply; the calls to answer, none at the end. Throws TurnLimitReached where no turn is left for them. */
  callsOf(reply: Response): readonly ToolCall[] {
    this.run.turns.push({ reply, results: [] });
    const { maxTurns = 8 } = this.options;
    const ended = reply.finishReason === "cancelled" || reply.finishReason === "drained";
    const calls = ended ? [] : reply.toolCalls;
    if (calls.length === 0) this.add(reply.message, reply);
    else if (this.run.turns.length >= maxTurns) {
      throw new TurnLimitReached(`the model still calls tools after ${maxTurns} turns (maxTurns): see .run for what there is`);
    }
    return calls;
  }

  answer(reply: Response, results: readonly ToolResult[]): void {
    this.run.turns[this.run.turns.length - 1] = { reply, results };
    this.add(reply.message, reply);
    this.add(toolMessage(...results));
  }

  private add(message: Message, reply?: Response): void {
    this.run.messages.push(message);
    if (!this.grows) return;
    if (reply) (this.grows as unknown as { add(reply: Response): void }).add(reply);
    else this.grows.push(message);
  }

  /** Executes calls at once, each that may be; results in their order. Ends early at the deadline and the signal. */
  async execute(calls: readonly ToolCall[]): Promise<ToolResult[]> {
    const { timeout } = this.timeout;
    const over = new AbortController();
    const timer = timeout === undefined ? undefined : setTimeout(() => over.abort(), timeout * 1000);
    const signal = AbortSignal.any([this.signal, over.signal]);
    const aborted = new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error)));
    aborted.catch(() => undefined); // at the end, nobody waits for it
    try {
      return await Promise.race([Promise.all(calls.map((call) => this.executeOne(call, signal))), aborted]);
    } catch (error) {
      if (!this.signal.aborted) void this.timeout; // the deadline has an error of its own
      throw error;
    } finally {
      clearTimeout(timer);
      over.abort();
    }
  }

  private async executeOne(call: ToolCall, signal: AbortSignal): Promise<ToolResult> {
    const result = await this.resultOf(call, signal);
    if (!signal.aborted) await this.options.onResult?.(call, result);
    return result;
  }

  private async resultOf(call: ToolCall, signal: AbortSignal): Promise<ToolResult> {
    const failed = (content: string) => ({ callId: call.id, content: wellFormed(content), isError: true });
    if (call.status !== "complete") return failed("the call was cut before its end, and was not executed");
    const tool = this.tools.get(call.name);
    if (!tool || !this.allowed.has(call.name)) {
      return failed(`no such tool, not executed; the tools are: ${[...this.allowed].sort().join(", ") || "none"}`);
    }
    let args: unknown;
    try {
      args = JSON.parse(call.argumentsJson || "{}");
      if (typeof args !== "object" || args === null || Array.isArray(args)) throw new Error("they are no JSON object");
      if (tool.parameters) args = await checked(tool.parameters, args);
    } catch (error) {
      return failed(`invalid arguments, not executed: ${(error as Error).message}`);
    }
    try {
      const value = await tool.execute(args as never, { call, signal });
      const content = typeof value === "string" ? value : (JSON.stringify(value) ?? "null");
      return { callId: call.id, content: wellFormed(content) };
    } catch (error) {
      if (error instanceof ToolError) return failed(error.message);
      if (this.options.onToolError && !signal.aborted) return failed(await this.options.onToolError(call, error));
      // The message may hold paths, addresses or secrets, and what the model is given it may repeat to the user.
      return failed(`the tool failed: ${error instanceof Error ? error.name : typeof error}`);
    }
  }

  /** The same error, with the turns until then. */
  failed(error: PenstockError): PenstockError {
    return Object.assign(error, { run: this.run });
  }
}
