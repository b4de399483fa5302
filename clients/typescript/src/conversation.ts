import type { Response } from "./response.js";
import type { Message } from "./spec.js";

/**
 * The turns so far, oldest first; it is an array of messages, and so a prompt. Only answers are kept: a thought is no
 * part of the history.
 *
 *     const talk = new Conversation("Answer in one line.");
 *     talk.add(await client.generate(talk.ask("What is 48 + 27 + 36 + 15?")));
 *     talk.add(await client.generate(talk.ask("Which is larger, 53 or 52?")));
 */
export class Conversation extends Array<Message> {
  constructor(system?: string) {
    super();
    if (typeof system === "string") this.push({ role: "system", content: system });
  }

  /** What `map` and `slice` make is a plain array. */
  static override get [Symbol.species](): ArrayConstructor {
    return Array;
  }

  /** Adds a user's turn; returns the conversation, to be sent. */
  ask(text: string): this {
    this.push({ role: "user", content: text });
    return this;
  }

  /** Adds the answer of a reply's first candidate, or a text, as the assistant's turn. */
  add(reply: Response | string): this {
    this.push({ role: "assistant", content: typeof reply === "string" ? reply : reply.answer });
    return this;
  }
}
