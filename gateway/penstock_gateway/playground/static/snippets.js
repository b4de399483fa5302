// Writes a request as code that can be pasted. The API key is named, never written.

/** Returns the request as a command of curl. */
export function curl(origin, body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl --no-buffer ${origin}/v1/chat/completions \\`,
    `  -H "Authorization: Bearer $PENSTOCK_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${json}'`,
  ].join("\n");
}

// Fields that OpenAI's package has itself; others go into extra_body.
const OPENAI = new Set([
  "model", "messages", "stream", "stream_options", "tools", "temperature", "max_completion_tokens", "reasoning_effort",
]);

/** Returns the request as Python, for OpenAI's package. */
export function python(origin, body) {
  const fields = Object.entries(body);
  const own = fields.filter(([name]) => OPENAI.has(name)).map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  const extra = Object.fromEntries(fields.filter(([name]) => !OPENAI.has(name)));
  if (Object.keys(extra).length > 0) own.push(`    extra_body=${literal(extra, 4)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${origin}/v1`)}, api_key=os.environ.get("PENSTOCK_API_KEY", "none"))`,
    "stream = client.chat.completions.create(",
    ...own,
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    '        thought = getattr(choice.delta, "reasoning_content", None)',
    '        print(thought or choice.delta.content or "", end="", flush=True)',
  ].join("\n");
}

/** Returns a JSON value as a literal of Python. JSON's texts are Python's, too. */
function literal(value, indent = 0) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, indent + 4))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (items.length === 0) return open + close;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** Returns the request as Go, with the standard library. */
export function go(origin, body) {
  // In a JSON text a back quote may be written as an escape; in a raw string of Go it cannot stand.
  const json = JSON.stringify(body, null, 2).replaceAll("`", "\\u0060");
  return [
    "package main",
    "",
    "import (",
    '\t"io"',
    '\t"log"',
    '\t"net/http"',
    '\t"os"',
    '\t"strings"',
    ")",
    "",
    `const body = \`${json}\``,
    "",
    "func main() {",
    `\trequest, err := http.NewRequest("POST", ${JSON.stringify(`${origin}/v1/chat/completions`)}, strings.NewReader(body))`,
    "\tif err != nil {",
    "\t\tlog.Fatal(err)",
    "\t}",
    '\trequest.Header.Set("Authorization", "Bearer "+os.Getenv("PENSTOCK_API_KEY"))',
    '\trequest.Header.Set("Content-Type", "application/json")',
    "\tresponse, err := http.DefaultClient.Do(request)",
    "\tif err != nil {",
    "\t\tlog.Fatal(err)",
    "\t}",
    "\tdefer response.Body.Close()",
    "\tif _, err := io.Copy(os.Stdout, response.Body); err != nil {",
    "\t\tlog.Fatal(err)",
    "\t}",
    "}",
  ].join("\n");
}

/** Returns the request without the bytes of images, for reading. */
export function shortened(body) {
  return JSON.parse(
    JSON.stringify(body, (name, value) =>
      name === "url" && typeof value === "string" && value.length > 80 ? `${value.slice(0, 48)}...` : value,
    ),
  );
}
