// The example of a tool: arithmetic, read by hand. Nothing that the model writes is ever run as code.

const MAX_CHARACTERS = 500;
const MAX_DEPTH = 50;

export const TOOL = {
  type: "function",
  function: {
    name: "calculator",
    description: "Compute an arithmetic expression of numbers, + - * / % ** and parentheses.",
    parameters: {
      type: "object",
      properties: { expression: { type: "string", description: "For instance (48 + 27) * 3" } },
      required: ["expression"],
      additionalProperties: false,
    },
  },
};

/** Returns the value of an expression. Throws an Error that says what is wrong with it. */
export function calculate(expression) {
  if (typeof expression !== "string") throw new Error("expression must be a text");
  if (expression.length > MAX_CHARACTERS) throw new Error(`expression must have at most ${MAX_CHARACTERS} characters`);
  const parts = expression.match(/\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+|\*\*|[-+*/%()]|\S/g) ?? [];
  let at = 0;
  let depth = 0;
  const take = (...wanted) => (wanted.includes(parts[at]) ? parts[at++] : undefined);

  function sum() {
    let value = product();
    for (let sign; (sign = take("+", "-")); ) value = sign === "+" ? value + product() : value - product();
    return value;
  }
  function product() {
    let value = signed();
    for (let sign; (sign = take("*", "/", "%")); ) {
      const other = signed();
      if (sign !== "*" && other === 0) throw new Error("division by zero");
      value = sign === "*" ? value * other : sign === "/" ? value / other : value % other;
    }
    return value;
  }
  function signed() {
    if (++depth > MAX_DEPTH) throw new Error("expression is nested too deeply");
    const sign = take("+", "-");
    const value = sign ? signed() * (sign === "-" ? -1 : 1) : power();
    depth -= 1;
    return value;
  }
  function power() {
    const base = atom();
    return take("**") ? base ** signed() : base;
  }
  function atom() {
    if (take("(")) {
      const value = sum();
      if (!take(")")) throw new Error("a parenthesis is not closed");
      return value;
    }
    const part = parts[at++];
    const value = part === undefined ? NaN : Number(part);
    if (Number.isNaN(value)) throw new Error(`expected a number, got ${part ?? "the end"}`);
    return value;
  }

  const value = sum();
  if (at < parts.length) throw new Error(`expected the end, got ${parts[at]}`);
  if (!Number.isFinite(value)) throw new Error("the result is not a finite number");
  return value;
}

/** Returns what the tool answers to a call, as text for the model. */
export function answer(name, argumentsJson) {
  try {
    if (name !== "calculator") throw new Error(`there is no tool ${name}`);
    const { expression } = JSON.parse(argumentsJson);
    return String(Math.round(calculate(expression) * 1e12) / 1e12);
  } catch (error) {
    return `error: ${error.message}`;
  }
}
