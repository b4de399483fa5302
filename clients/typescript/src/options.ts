/** Checks options of plain JavaScript: refuses unknown names and wrong values, with a suggestion. */

type Kind = "string" | "boolean" | "number" | "integer" | "object" | "array" | "function" | "any" | readonly string[];
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
  timeoutms: "timeout",
};

/** Throws TypeError for an unknown option or a wrong value. Undefined counts as absent, null does not. */
export function checkOptions(given: object, known: Known): void {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    const kinds = known[name];
    if (!kinds || !Object.hasOwn(known, name)) throw new TypeError(unknown("option", name, Object.keys(known)));
    if (!kinds.some((kind) => fits(kind, value))) throw new TypeError(wrong(name, value, kinds));
  }
}

function fits(kind: Kind, value: unknown): boolean {
  switch (kind) {
    case "any":
      return true;
    case "integer":
      return typeof value === "bigint" || Number.isSafeInteger(value);
    case "number":
      return typeof value === "number" && !Number.isNaN(value);
    case "array":
      return Array.isArray(value);
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value);
    case "string":
    case "boolean":
    case "function":
      return typeof value === kind;
    default:
      return typeof value === "string" && kind.includes(value);
  }
}

function wrong(name: string, value: unknown, kinds: readonly Kind[]): string {
  const values = kinds.flatMap((kind) => (typeof kind === "string" ? [] : kind));
  if (typeof value === "string" && values.length > 0) return unknown(`value of ${name}`, value, values);
  const allowed = kinds.map((kind) => (typeof kind === "string" ? IN_WORDS[kind] : kind.map((one) => `"${one}"`).join(", ")));
  const seen = typeof value === "object" || typeof value === "function" ? describe(value) : show(value);
  return `${name} must be ${allowed.join(" or ")}, got ${seen}`;
}

const IN_WORDS = {
  any: "anything",
  array: "an array",
  boolean: "true or false",
  function: "a function",
  integer: "an integer",
  number: "a number",
  object: "an object",
  string: "a string",
};
const show = (value: unknown) => (typeof value === "string" ? JSON.stringify(value) : String(value));
const describe = (value: unknown) => (value === null ? "null" : Array.isArray(value) ? "an array" : `a ${typeof value}`);

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
