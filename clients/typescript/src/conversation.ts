import type { Response } from "./response.js";
import type { Message } from "./spec.js";

/**
 * The turns of a conversation, oldest first. It is an array of messages, so it can be sent as a prompt. It keeps
 * answers only, because a thought is not a part of the history.
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

  /** Makes `map` and `slice` return a plain array. */
  static override get [Symbol.species](): ArrayConstructor {
    return Array;
  }

  /** Adds a user's turn. Returns the conversation as the prompt to send. */
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
