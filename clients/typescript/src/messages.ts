/** Messages of a conversation and their parts, also as OpenAI's and Anthropic's libraries write them. */
import { checkOptions, checkValue, describe, unknown, type Known } from "./options.js";
import { Role, ToolCallStatus, type ToolCall as ToolCallProto } from "./gen/penstock/v1/generation_pb.js";

/** A call of a tool that the model asks for. Execute it only if its status is "complete". */
export interface ToolCall {
  readonly id: string;
  /** As the model wrote it: without a grammar it may be the name of no tool. */
  readonly name: string;
  /** The text of a JSON object; a part of one where the call is incomplete. */
  readonly argumentsJson: string;
  readonly status: "complete" | "incomplete";
}
/** What a tool returned for the call with this id. */
export interface ToolResult {
  readonly callId: string;
  /** The text for the model, or texts and images in order. */
  readonly content: string | readonly (string | TextPart | ImagePart)[];
  /** The tool failed, and `content` says how. */
  readonly isError?: boolean;
}
export interface TextPart {
  readonly type: "text";
  readonly text: string;
}
/** An earlier thought; the option `history` decides whether the model is given it again. */
export interface ThoughtPart {
  readonly type: "thought";
  readonly text: string;
}
/** Inline: the service fetches no addresses. Servers that read text only refuse it with `FeatureOff`. */
export interface ImagePart {
  readonly type: "image";
  readonly data: Uint8Array;
  readonly mimeType: string;
}
const SIGNATURES: readonly [string, number, readonly number[]][] = [
  ["image/png", 0, [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ["image/jpeg", 0, [0xff, 0xd8, 0xff]],
  ["image/webp", 8, [0x57, 0x45, 0x42, 0x50]],
];
/** Returns the image in `data`: PNG, JPEG or WebP, as its first bytes say. */
export function imagePart(data: Uint8Array): ImagePart {
  const found = SIGNATURES.find(([, at, bytes]) => bytes.every((byte, n) => data[at + n] === byte));
  if (!found) throw new TypeError("must be a PNG, JPEG or WebP image, got something else");
  return { type: "image", data, mimeType: found[0] };
}
export interface ToolCallPart extends Omit<ToolCall, "status"> {
  readonly type: "tool_call";
  readonly status?: ToolCall["status"];
}
export interface ToolResultPart extends ToolResult {
  readonly type: "tool_result";
}
export type Part = TextPart | ThoughtPart | ImagePart | ToolCallPart | ToolResultPart;

/** A turn: text, or parts in order. */
export interface PlainMessage {
  readonly role: "system" | "user" | "assistant" | "tool";
  readonly content: string | readonly (string | Part)[];
}
/** A turn as OpenAI's library takes it. */
export interface OpenAIToolMessage {
  readonly role: "tool";
  readonly tool_call_id: string;
  readonly content: string;
}
export interface OpenAIAssistantMessage {
  readonly role: "assistant";
  readonly content?: string | null;
  readonly tool_calls: readonly {
    readonly id: string;
    readonly type?: "function";
    readonly function: { readonly name: string; readonly arguments: string };
  }[];
}
/** A turn as Anthropic's library takes it: blocks of text, thinking, tool_use, tool_result or image. */
export interface AnthropicMessage {
  readonly role: "user" | "assistant";
  readonly content: readonly AnthropicBlock[];
}
interface AnthropicImage {
  readonly type: "image";
  readonly source: { readonly type: "base64"; readonly media_type: string; readonly data: string };
}
export type AnthropicBlock =
  | TextPart
  | { readonly type: "thinking"; readonly thinking: string; readonly signature?: string }
  | { readonly type: "tool_use"; readonly id: string; readonly name: string; readonly input: unknown }
  | {
      readonly type: "tool_result";
      readonly tool_use_id: string;
      readonly content?: string | readonly (TextPart | AnthropicImage)[];
      readonly is_error?: boolean;
    }
  | AnthropicImage
  | { readonly type: "image_url"; readonly image_url: { readonly url: string } };
export type Message = PlainMessage | OpenAIToolMessage | OpenAIAssistantMessage | AnthropicMessage;

/** The message of a role, where its parts are the only thing to say. */
export const toolMessage = (...results: readonly ToolResult[]): PlainMessage => ({
  role: "tool",
  content: results.map((result) => ({ type: "tool_result", ...result })),
});

export const toolCallOf = (call: ToolCallProto): ToolCall => ({
  id: call.id,
  name: call.name,
  argumentsJson: call.argumentsJson,
  status: call.status === ToolCallStatus.COMPLETE ? "complete" : "incomplete",
});

type Given = Readonly<Record<string, unknown>>;
type Made = { case: string; value: unknown };

/** What goes over the wire for one turn: one message, or two where Anthropic's form mixes tool results and text. */
export function messagesOf(turn: Message, at: number): object[] {
  const place = `messages[${at}]`;
  if (typeof turn !== "object" || turn === null) throw new TypeError(`${place} must be { role, content }, got ${describe(turn)}`);
  const given = turn as unknown as Given;
  const surplus = Object.keys(given).find((key) => !KEYS.includes(key) && given[key] !== null && given[key] !== undefined);
  if (surplus !== undefined) throw new TypeError(`${place}: ${unknown("key", surplus, KEYS)}`);
  const role = String(given["role"]);
  if (!ROLES.includes(role)) {
    const hint = role === "developer" ? '; did you mean "system"?' : role === "function" ? '; did you mean "tool"?' : "";
    throw new TypeError(`${place}.role: ${hint ? `unknown role "${role}"${hint}` : unknown("role", role, ROLES)}`);
  }
  const { content } = given;
  if (given["tool_call_id"] !== undefined) {
    if (role !== "tool") throw new TypeError(`${place}: tool_call_id belongs to the role "tool", got "${role}"`);
    checkValue(`${place}.tool_call_id`, given["tool_call_id"], ["string"]);
    const result = { type: "tool_result", callId: given["tool_call_id"], content };
    return [{ role: Role.TOOL, parts: [{ part: partOf(result, `${place}.content`) }] }];
  }
  const calls = given["tool_calls"];
  if (calls !== undefined && calls !== null) {
    if (role !== "assistant") throw new TypeError(`${place}: tool_calls belong to the role "assistant", got "${role}"`);
    const texts = content === undefined || content === null ? [] : partsOf(content, `${place}.content`);
    checkValue(`${place}.tool_calls`, calls, ["array"]);
    const parts = (calls as Given[]).map((call, n) => {
      const at = `${place}.tool_calls[${n}]`;
      checkValue(at, call, ["object"]);
      return partOf({ type: "tool_call", ...call }, at);
    });
    return [{ role: Role.ASSISTANT, parts: [...texts, ...parts].map((part) => ({ part })) }];
  }
  if (typeof content === "string") return [{ role: Role[role.toUpperCase() as "USER"], content }];
  if (!Array.isArray(content)) {
    throw new TypeError(`${place}.content must be a string or an array of parts, got ${describe(content)}`);
  }
  const parts = partsOf(content, `${place}.content`);
  const results = parts.filter((part) => part.case === "toolResult");
  if (role !== "user" || results.length === 0) return [{ role: Role[role.toUpperCase() as "USER"], parts: wrapped(parts) }];
  const others = parts.filter((part) => part.case !== "toolResult");
  const told = { role: Role.TOOL, parts: wrapped(results) };
  return others.length ? [told, { role: Role.USER, parts: wrapped(others) }] : [told];
}

const KEYS = ["role", "content", "tool_calls", "tool_call_id"];
const ROLES = ["system", "user", "assistant", "tool"];
const wrapped = (parts: readonly Made[]) => parts.map((part) => ({ part }));

function partsOf(content: unknown, place: string): Made[] {
  if (typeof content === "string") return content ? [{ case: "text", value: content }] : [];
  if (!Array.isArray(content)) throw new TypeError(`${place} must be a string or an array of parts, got ${describe(content)}`);
  return content.map((part, at) => partOf(part, `${place}[${at}]`));
}

const TEXT = { text: ["string"] } as const;
const CALL = { id: ["string"], name: ["string"], argumentsJson: ["string"], arguments: ["string", "object"], status: [["complete", "incomplete"]] } as const;
/** The keys of each type of a part, ours and those of other libraries. */
const PARTS: Readonly<Record<string, Known>> = {
  text: TEXT,
  thought: TEXT,
  image: { data: ["any"], mimeType: ["string"], source: ["object"] },
  tool_call: { ...CALL, function: ["object"] },
  tool_result: { callId: ["string"], tool_use_id: ["string"], content: ["any"], isError: ["boolean"], is_error: ["boolean"] },
  thinking: { thinking: ["string"], signature: ["string"] },
  tool_use: { id: ["string"], name: ["string"], input: ["object"] },
  image_url: { image_url: ["string", "object"] },
  input_text: TEXT,
  output_text: TEXT,
};

function partOf(given: unknown, place: string): Made {
  if (typeof given === "string") return { case: "text", value: given };
  if (typeof given !== "object" || given === null) throw new TypeError(`${place} must be a string or a part, got ${describe(given)}`);
  const part = given as Given;
  const type = part["type"] === "function" ? "tool_call" : String(part["type"]); // OpenAI's calls are functions
  const known = Object.hasOwn(PARTS, type) ? PARTS[type] : undefined;
  if (!known) throw new TypeError(`${place}.type: ${unknown("type of a part", type, Object.keys(PARTS))}`);
  checkOptions({ ...part, type: undefined }, known, place, `key of ${place}:`);
  const string = (key: string): string => {
    checkValue(`${place}.${key}`, part[key], ["string"]);
    return part[key] as string;
  };
  switch (type) {
    case "text":
    case "input_text":
    case "output_text":
      return { case: "text", value: string("text") };
    case "thought":
      return { case: "thought", value: string("text") };
    case "thinking":
      return { case: "thought", value: string("thinking") };
    case "tool_use":
      checkValue(`${place}.input`, part["input"], ["object"]);
      return { case: "toolCall", value: { id: string("id"), name: string("name"), argumentsJson: JSON.stringify(part["input"]) } };
    case "tool_call":
      return { case: "toolCall", value: callOf(part, place) };
    case "tool_result": {
      const callId = string(part["tool_use_id"] === undefined ? "callId" : "tool_use_id");
      const content = wrapped(partsOf(part["content"] ?? "", `${place}.content`));
      return { case: "toolResult", value: { callId, content, isError: part["isError"] ?? part["is_error"] ?? false } };
    }
    default:
      return { case: "image", value: imageOf(part, place) };
  }
}

function callOf(part: Given, place: string): object {
  const inner = (part["function"] ?? part) as Given;
  if (part["function"] !== undefined) {
    checkOptions(inner, { name: CALL.name, arguments: CALL.arguments }, `${place}.function`, `key of ${place}.function:`);
  }
  const { id } = part;
  const { name } = inner;
  const given = inner["argumentsJson"] ?? inner["arguments"] ?? "{}";
  if (typeof id !== "string" || typeof name !== "string") throw new TypeError(`${place}: a tool call needs id, name and argumentsJson`);
  const status = part["status"] === "incomplete" ? ToolCallStatus.INCOMPLETE : ToolCallStatus.COMPLETE;
  return { id, name, argumentsJson: typeof given === "string" ? given : JSON.stringify(given), status };
}

function imageOf(part: Given, place: string): object {
  if (part["data"] instanceof Uint8Array) {
    checkValue(`${place}.mimeType`, part["mimeType"], ["string"]);
    return { data: part["data"], mimeType: part["mimeType"] };
  }
  const source = part["source"] as Given | undefined;
  if (typeof source?.["data"] === "string") {
    const keys = { type: [["base64"]], data: ["string"], media_type: ["string"] } as const;
    checkOptions(source, keys, `${place}.source`, `key of ${place}.source:`);
    checkValue(`${place}.source.media_type`, source["media_type"], ["string"]);
    return { data: new Uint8Array(Buffer.from(source["data"], "base64")), mimeType: source["media_type"] };
  }
  const url = part["image_url"] as Given | string | undefined;
  if (typeof url === "object") {
    checkOptions(url, { url: ["string"], detail: ["string"] }, `${place}.image_url`, `key of ${place}.image_url:`);
  }
  const text = typeof url === "string" ? url : String(url?.["url"]);
  const found = /^data:([^;,]+);base64,(.*)$/s.exec(text);
  if (!found) throw new TypeError(`${place}: the service fetches no addresses: give data and mimeType, or a base64 data: URL`);
  return { data: new Uint8Array(Buffer.from(found[2]!, "base64")), mimeType: found[1] };
}
