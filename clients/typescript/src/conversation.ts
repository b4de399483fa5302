import { toolMessage, type Message, type PlainMessage, type ToolResult } from "./messages.js";
import { checkValue } from "./options.js";
import type { Response } from "./response.js";

/**
 * The turns of a conversation, oldest first. It is an array of messages, so it can be sent as a prompt. It keeps answers
 * and tool calls; a thought only if the reply has tool calls, because the model needs it until it has answered.
 *
 *     const talk = new Conversation("Answer in one line.");
 *     talk.add(await client.generate(talk.ask("What is 48 + 27 + 36 + 15?")));
 *     talk.add(await client.generate(talk.ask("Which is larger, 53 or 25?")));
 */
export class Conversation extends Array<Message> {
  constructor(system?: string) {
    super();
    // Array.of and others give a length.
    if (system !== undefined && typeof system !== "number") checkValue("system", system, ["string"]);
    if (typeof system === "string") this.push({ role: "system", content: system });
  }

  /** Makes `map` and `slice` return a plain array. */
  static override get [Symbol.species](): ArrayConstructor {
    return Array;
  }

  /** Adds a user's turn. Returns the conversation as the prompt to send. */
  ask(text: string): this {
    checkValue("text", text, ["string"]);
    this.push({ role: "user", content: text });
    return this;
  }

  /** Adds the answer and the tool calls of a reply's first candidate, a message, or a text as the assistant's turn. */
  add(reply: Response | PlainMessage | string): this {
    checkValue("reply", reply, ["string", "object"]);
    if (typeof reply === "string") this.push({ role: "assistant", content: reply });
    else if ("role" in reply) this.push(reply);
    else this.push(reply.toolCalls.length > 0 ? reply.message : { role: "assistant", content: reply.answer });
    return this;
  }

  /** Adds the results of the last reply's tool calls, one for each. */
  addResults(...results: readonly ToolResult[]): this {
    this.push(toolMessage(...results));
    return this;
  }
}
