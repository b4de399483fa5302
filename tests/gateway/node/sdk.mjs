// OpenAI's official package for Node against a gateway: `node sdk.mjs URL CASE`. It fails where an expectation does.
import assert from "node:assert/strict";
import OpenAI, { BadRequestError, InternalServerError, NotFoundError, RateLimitError } from "openai";

const [url, name] = process.argv.slice(2);
const MODEL = "scripted";
const HELLO = [{ role: "user", content: "hello" }];
const PARAMETERS = { type: "object", properties: { city: { type: "string" }, days: { type: "integer" } } };
const FUNCTION = { name: "weather", description: "Return the weather in a city.", parameters: PARAMETERS };
const SUM = { type: "object", properties: { value: { type: "integer" } }, required: ["value"] };
const PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
const DAMAGED = "data:image/png;base64,iVBORw0KGgo=";

const clientWith = (options = {}) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, ...options });
const client = clientWith();
const thinking = { thinking_mode: "thinking" };

const CASES = {
  async chat() {
    const reply = await client.chat.completions.create({ model: MODEL, messages: HELLO, ...thinking });
    assert.equal(reply.choices[0].message.content, "It is é 75.");
    assert.equal(reply.choices[0].message.reasoning_content, "hm");
    assert.equal(reply.usage.completion_tokens_details.reasoning_tokens, 2);
    const models = await client.models.list();
    assert.deepEqual(models.data.map((model) => model.id), [MODEL]);
  },

  async chat_stream() {
    const stream = client.chat.completions.stream({
      model: MODEL,
      messages: HELLO,
      stream_options: { include_usage: true },
      ...thinking,
    });
    let content = "";
    stream.on("content", (delta) => (content += delta));
    const reply = await stream.finalChatCompletion();
    assert.equal(content, "It is é 75.");
    assert.equal(reply.choices[0].message.content, content);
    assert.equal((await stream.totalUsage()).completion_tokens, reply.usage.completion_tokens);
  },

  async completions() {
    const asked = { model: MODEL, prompt: ["a", "b"], max_tokens: 50 };
    const reply = await client.completions.create(asked);
    assert.deepEqual(reply.choices.map((choice) => choice.text), ["It is é 75.", "It is é 75."]);
    const texts = ["", ""];
    for await (const chunk of await client.completions.create({ ...asked, stream: true })) {
      for (const choice of chunk.choices) texts[choice.index] += choice.text;
    }
    assert.deepEqual(texts, ["It is é 75.", "It is é 75."]);
  },

  async responses() {
    const reply = await client.responses.create({ model: MODEL, input: "hello", ...thinking });
    assert.equal(reply.output_text, "It is é 75.");
    assert.deepEqual([reply.status, reply.store], ["completed", false]);
    assert.equal(reply.usage.output_tokens_details.reasoning_tokens, 2);
    const stream = client.responses.stream({ model: MODEL, input: "hello", ...thinking });
    let thought = "";
    for await (const event of stream) {
      if (event.type === "response.reasoning_text.delta") thought += event.delta;
    }
    const final = await stream.finalResponse();
    assert.deepEqual([thought, final.output_text], ["hm", "It is é 75."]);
    await assert.rejects(client.responses.retrieve(reply.id), NotFoundError);
  },

  async tools() {
    const seen = [];
    const run = client.chat.completions.runTools({
      model: MODEL,
      messages: [{ role: "user", content: "How is the weather in Oslo?" }],
      tools: [
        {
          type: "function",
          function: {
            ...FUNCTION,
            parse: JSON.parse,
            function: (given) => {
              seen.push(given);
              return `${given.city}: ${given.days} days of sun`;
            },
          },
        },
      ],
      ...thinking,
    });
    assert.equal(await run.finalContent(), "Sunny.");
    assert.deepEqual(seen, [{ city: "Oslo", days: 3 }]);
  },

  async tools_of_responses() {
    const tools = [{ type: "function", strict: false, ...FUNCTION }];
    const input = [{ role: "user", content: "How is the weather in Oslo?" }];
    const asked = await client.responses.create({ model: MODEL, input, tools, ...thinking });
    const call = asked.output.find((item) => item.type === "function_call");
    assert.deepEqual([call.name, JSON.parse(call.arguments)], ["weather", { city: "Oslo", days: 3 }]);
    input.push(...asked.output, { type: "function_call_output", call_id: call.call_id, output: "sun" });
    const reply = await client.responses.create({ model: MODEL, input, tools, ...thinking });
    assert.equal(reply.output_text, "Sunny.");
  },

  async structured() {
    const reply = await client.chat.completions.parse({
      model: "",
      messages: HELLO,
      response_format: { type: "json_schema", json_schema: { name: "sum", schema: SUM, strict: true } },
    });
    assert.deepEqual(JSON.parse(reply.choices[0].message.content), { value: 75 });
    const format = { type: "json_schema", name: "sum", schema: SUM, strict: true };
    const response = await client.responses.create({ model: "", input: "hello", text: { format } });
    assert.deepEqual(JSON.parse(response.output_text), { value: 75 });
  },

  async images() {
    const text = "What is it?";
    const chat = (url) =>
      client.chat.completions.create({
        model: MODEL,
        messages: [{ role: "user", content: [{ type: "text", text }, { type: "image_url", image_url: { url } }] }],
      });
    const respond = (image_url) =>
      client.responses.create({
        model: MODEL,
        input: [{ role: "user", content: [{ type: "input_text", text }, { type: "input_image", image_url, detail: "auto" }] }],
      });
    assert.equal((await chat(PICTURE)).choices[0].message.content, (await respond(PICTURE)).output_text);
    const calls = [
      ["messages[0].content[1]", () => chat(DAMAGED)],
      ["input[0].content[1]", () => respond(DAMAGED)],
    ];
    for (const [param, call] of calls) {
      await assert.rejects(call, (error) => {
        assert.ok(error instanceof BadRequestError);
        assert.deepEqual([error.code, error.param, error.error.penstock.reason], ["invalid_value", param, "INVALID_FIELD"]);
        return true;
      });
    }
  },

  async errors() {
    const refused = client.chat.completions.create({ model: MODEL, messages: HELLO, temperature: 9 });
    await assert.rejects(refused, (error) => {
      assert.ok(error instanceof BadRequestError);
      assert.deepEqual([error.param, error.code, error.type], ["temperature", "invalid_value", "invalid_request_error"]);
      assert.ok(error.requestID);
      return true;
    });
    await assert.rejects(client.chat.completions.create({ model: "gpt-9", messages: HELLO }), NotFoundError);
    const unknown = client.responses.create({ model: MODEL, input: "hello", thinking_bugdet: 3 });
    await assert.rejects(unknown, /unknown field 'thinking_bugdet'.*did you mean thinking_budget/);
  },

  // The service refuses each first call, and takes the second.
  async retries() {
    const patient = clientWith({ maxRetries: 1 });
    for (let round = 0; round < 2; round += 1) {
      const stream = await patient.chat.completions.create({ model: "", messages: HELLO, stream: true });
      let chunks = 0;
      for await (const _ of stream) chunks += 1;
      assert.ok(chunks > 0);
    }
  },

  async refusals() {
    const ask = () => client.chat.completions.create({ model: "", messages: HELLO, stream: true });
    await assert.rejects(ask(), (error) => {
      assert.ok(error instanceof RateLimitError);
      assert.equal(error.headers.get("retry-after"), "2");
      return true;
    });
    await assert.rejects(ask(), (error) => {
      assert.ok(error instanceof InternalServerError);
      assert.deepEqual([error.status, error.code, error.headers.get("retry-after")], [503, "overloaded", "2"]);
      return true;
    });
  },

  async cancellation() {
    const asked = { model: MODEL, messages: HELLO };
    const stream = await client.chat.completions.create({ ...asked, stream: true });
    for await (const _ of stream) break;
    const events = await client.responses.create({ model: MODEL, input: "hello", stream: true });
    for await (const event of events) if (event.type === "response.output_text.delta") break;
    const leaving = new AbortController();
    const reply = client.chat.completions.create(asked, { signal: leaving.signal });
    setTimeout(() => leaving.abort(), 300);
    await assert.rejects(reply, OpenAI.APIUserAbortError);
  },
};

await CASES[name]();
