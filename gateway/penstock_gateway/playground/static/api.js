// What the page asks of the gateway: OpenAI's chat API, the resumable stream, Steer, and the facts of the playground.
import { placeOf } from "./chunks.js";
import { eventsOf } from "./sse.js";

const FIRST_WAIT_MS = 100;
const MAX_WAIT_MS = 5_000;
const MAX_OFFLINE_MS = 50_000; // Longer than this the service does not keep a stream, as it is set by default.

/** A refusal of the gateway or of the service. */
export class ApiError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super(typeof error.message === "string" ? error.message : `the gateway answered with the status ${status}`);
    this.status = status;
    this.code = error.code ?? "";
  }
}

/** The gateway that this page came from. `key` is sent with every request, if there is one. */
export class Api {
  key = "";

  async json(path, options = {}) {
    const response = await this.#fetch(path, options);
    return response.json();
  }

  model() {
    return this.json("/playground/api/model");
  }

  load() {
    return this.json("/playground/api/load");
  }

  /**
   * Steers a running generation: {action: "finish_thinking"}, {action: "change_budget", thinking_budget} or
   * {action: "cancel"}. The id of an event of its stream proves that the caller may.
   */
  steer(place, action) {
    return this.json(`/v1/generations/${encodeURIComponent(place.id)}/steer`, {
      method: "POST",
      headers: { "Last-Event-ID": place.event },
      body: action,
    });
  }

  async #fetch(path, { method = "GET", body, signal, headers = {} } = {}) {
    const all = { ...headers };
    if (this.key) all.Authorization = `Bearer ${this.key}`;
    if (body !== undefined) all["Content-Type"] = "application/json";
    const response = await fetch(path, {
      method,
      signal,
      headers: all,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
    });
    if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => undefined));
    return response;
  }

  /**
   * Yields the chunks of a streamed chat completion, each with the place at which another connection would go on. A connection that drops is followed by another one, which goes on
   * after the last event that came. `onLost` is told when a connection drops, with the number of the attempt, and with 0
   * when the stream goes on. The body must ask for the usage, which the last chunk has.
   */
  async *chat(body, { signal, onLost }) {
    let place;
    let attempt = 0;
    let lostAt = 0;
    let isWhole = false;
    for (;;) {
      try {
        const response =
          place === undefined
            ? await this.#fetch("/v1/chat/completions", { method: "POST", body, signal })
            : await this.#fetch(`/v1/generations/${encodeURIComponent(place.id)}/events`, {
                signal,
                headers: { "Last-Event-ID": place.event },
              });
        for await (const { id, data } of eventsOf(response)) {
          if (attempt > 0) onLost(0);
          attempt = 0;
          if (data === "[DONE]") return;
          const chunk = JSON.parse(data);
          if (chunk.error) throw new ApiError(0, chunk);
          if (id) place = placeOf(id);
          isWhole = Boolean(chunk.usage);
          yield { chunk, place };
        }
        throw new TypeError("the stream ended before its last event");
      } catch (error) {
        if (isWhole) return; // The connection was cut after all that matters.
        const isCut = error instanceof TypeError || (error instanceof ApiError && [502, 503, 504].includes(error.status));
        if (signal.aborted || !isCut || place === undefined) throw error;
        if (attempt === 0) lostAt = Date.now();
        if (Date.now() - lostAt > MAX_OFFLINE_MS) throw error;
        onLost(++attempt);
        await pause(Math.min(MAX_WAIT_MS, FIRST_WAIT_MS * 2 ** attempt), signal);
      }
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
    // The browser knows at once that the network is back.
    addEventListener("online", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
