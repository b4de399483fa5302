// Reads a response of the type text/event-stream, piece by piece.

const MAX_EVENT_CHARACTERS = 8 * 1024 * 1024;

/** Splits text into server-sent events. Feed it pieces of any size. */
export class EventParser {
  #rest = "";
  #id = "";
  #data = [];

  /** Returns the events that a further piece of text completes: {id, data}. */
  push(text) {
    const found = [];
    this.#rest += text;
    if (this.#rest.length > MAX_EVENT_CHARACTERS) throw new Error("an event of the stream is too large");
    // A carriage return at the end may be the first half of a line break.
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0) found.push({ id: this.#id, data: this.#data.join("\n") });
        this.#data = [];
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") this.#data.push(value);
      if (field === "id" && !value.includes("\0")) this.#id = value;
    }
    return found;
  }
}

/** Yields the events of a response's body as they come. */
export async function* eventsOf(response) {
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
