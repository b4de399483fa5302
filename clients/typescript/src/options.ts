/** Checks options of plain JavaScript: refuses unknown names and wrong values, with a suggestion. */

type Kind = Name | readonly string[];
type Name =
  | "string" | "boolean" | "number" | "int32" | "integer" | "object" | "array" | "function" | "any"
  | "strings" | "tokens" | "texts" | "biases" | "signal";
export type Known = Readonly<Record<string, readonly Kind[]>>;

/** Names of options in other libraries, with ours. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  maxtokens: "maxOutputTokens",
  maxcompletiontokens: "maxOutputTokens",
  maxnewtokens: "maxOutputTokens",
  mintokens: "minOutputTokens",
  thinkingbudget: "budget",
  reasoningeffort: "effort",
  toolchoice: "toolMode",
  paralleltoolcalls: "parallel",
  functions: "tools",
  responsemodel: "responseFormat",
  maxsteps: "maxTurns",
  n: "candidates",
  candidatecount: "candidates",
  stopsequences: "stop",
  stopstrings: "stop",
  logprobs: "topLogprobs",
  key: "apiKey",
  token: "apiKey",
  deadline: "timeout",
  inputschema: "parameters",
  mime: "mimeType",
  mediatype: "mimeType",
  toolcallid: "callId",
  timeoutms: "timeout",
};

/** Throws TypeError for an unknown option or a wrong value. Undefined counts as absent, null does not. */
export function checkOptions(given: object, known: Known, place = "", each = "option"): void {
  if (!isPlain(given)) throw new TypeError(`${place || "options"} must be an object, got ${describe(given)}`);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    const kinds = known[name];
    if (!kinds || !Object.hasOwn(known, name)) throw new TypeError(unknown(each, name, Object.keys(known)));
    checkValue(place ? `${place}.${name}` : name, value, kinds);
  }
}

/** Throws TypeError for a value that is of none of the kinds; `name` is its place. */
export function checkValue(name: string, value: unknown, kinds: readonly Kind[]): void {
  if (!kinds.some((kind) => fits(kind, value))) throw new TypeError(wrong(name, value, kinds));
}

const INT32 = 2 ** 31;
const isInteger = (value: unknown) => typeof value === "number" && Number.isSafeInteger(value);
const isInt32 = (value: unknown) => isInteger(value) && Number(value) >= -INT32 && Number(value) < INT32;
const isText = (value: unknown) => typeof value === "string";
/** Not an array, a Map or Headers, whose entries are no properties. */
const isPlain = (value: unknown) => Object.prototype.toString.call(value) === "[object Object]";

/** What the elements of arrays and the values of objects must be. */
const ELEMENTS = {
  strings: { fits: isText, words: "a string" },
  tokens: { fits: isInt32, words: "an integer of 32 bits" },
  texts: { fits: isText, words: "a string" },
  biases: { fits: (value: unknown) => typeof value === "number" && !Number.isNaN(value), words: "a number" },
};

function fits(kind: Kind, value: unknown): boolean {
  switch (kind) {
    case "any":
      return true;
    case "int32":
      return isInt32(value);
    case "integer":
      return typeof value === "bigint" ? BigInt.asIntN(64, value) === value : isInteger(value);
    case "number":
      return typeof value === "number" && !Number.isNaN(value);
    case "array":
      return Array.isArray(value);
    case "strings":
    case "tokens":
      return Array.isArray(value) && value.every(ELEMENTS[kind].fits);
    case "texts":
    case "biases":
      return isPlain(value) && Object.entries(value as object).every((entry) => wrongEntry(kind, entry) === undefined);
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value);
    case "signal":
      return typeof value === "object" && value !== null && "aborted" in value && "addEventListener" in value;
    case "string":
    case "boolean":
    case "function":
      return typeof value === kind;
    default:
      return typeof value === "string" && kind.includes(value);
  }
}

/** Returns what is wrong with one entry of an object. */
function wrongEntry(kind: "texts" | "biases", [key, value]: [string, unknown]): string | undefined {
  if (kind === "biases" && !isInt32(Number(key || NaN))) return ` must have token ids as keys, got ${show(key)}`;
  const { fits, words } = ELEMENTS[kind];
  return fits(value) ? undefined : `.${key} must be ${words}, got ${seen(value)}`;
}

function wrong(name: string, value: unknown, kinds: readonly Kind[]): string {
  const values = kinds.flatMap((kind) => (typeof kind === "string" ? [] : kind));
  if (typeof value === "string" && values.length > 0) return unknown(`value of ${name}`, value, values);
  const inside = kinds.map((kind) => wrongInside(name, value, kind)).find((found) => found !== undefined);
  if (inside !== undefined) return inside;
  const allowed = kinds.map((kind) => (typeof kind === "string" ? IN_WORDS[kind] : kind.map((one) => `"${one}"`).join(", ")));
  const range = isInteger(value) && kinds.includes("int32") ? ` from ${-INT32} to ${INT32 - 1}` : "";
  return `${name} must be ${allowed.join(" or ")}${range}, got ${seen(value)}`;
}

function wrongInside(name: string, value: unknown, kind: Kind): string | undefined {
  if ((kind === "strings" || kind === "tokens") && Array.isArray(value)) {
    const at = value.findIndex((one) => !ELEMENTS[kind].fits(one));
    return `${name}[${at}] must be ${ELEMENTS[kind].words}, got ${seen(value[at])}`;
  }
  if ((kind === "texts" || kind === "biases") && isPlain(value)) {
    const why = Object.entries(value as object).map((entry) => wrongEntry(kind, entry)).find((found) => found !== undefined);
    return `${name}${why}`;
  }
  return undefined;
}

const IN_WORDS: Readonly<Record<Name, string>> = {
  any: "anything",
  array: "an array",
  biases: "an object of numbers by token id",
  boolean: "true or false",
  function: "a function",
  int32: "an integer",
  integer: "an integer",
  number: "a number",
  object: "an object",
  signal: "an AbortSignal",
  string: "a string",
  strings: "an array of strings",
  texts: "an object of strings",
  tokens: "an array of token ids",
};
const seen = (value: unknown) => (typeof value === "object" || typeof value === "function" ? describe(value) : show(value));
const show = (value: unknown) => (typeof value === "string" ? JSON.stringify(value) : String(value));
/** Returns in words what a value is, without its content. */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (Array.isArray(value)) return "an array";
  const made = typeof value === "object" ? (value.constructor?.name ?? "Object") : "Object";
  return made === "Object" ? `${typeof value === "object" ? "an" : "a"} ${typeof value}` : `a ${made}`;
}

/** Returns the message about a name that is not in `known`, with the one that was probably meant. */
export function unknown(what: string, name: string, known: readonly string[]): string {
  const meant = near(name, known);
  const hint = meant ? `did you mean "${meant}"?` : `known: ${known.join(", ")}`;
  return `unknown ${what} "${name}"; ${hint}`;
}

function near(name: string, known: readonly string[]): string | undefined {
  const plain = name.replaceAll(/[_-]/g, "").toLowerCase();
  const elsewhere = ELSEWHERE[plain];
  if (elsewhere && known.includes(elsewhere)) return elsewhere;
  const ranked = known.map((one) => ({ one, far: distance(plain, one.toLowerCase()) })).sort((a, b) => a.far - b.far);
  const best = ranked[0];
  return best && best.far <= Math.max(1, plain.length / 3) ? best.one : undefined;
}

/** Returns Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, change));
    }
    row = next;
  }
  return row[b.length]!;
}
