// Reads the chunks of a streamed chat completion, as the gateway sends them, into the events that the page shows.

/** Yields what one chunk says: {kind: "started" | "thought" | "thought_ended" | "answer" | "call" | "finish" | "usage"}. */
export function* readChunk(chunk) {
  const { penstock, usage, choices = [] } = chunk;
  if (penstock?.settings && !penstock.candidates) yield { kind: "started", settings: penstock.settings };
  for (const { delta = {}, finish_reason: reason } of choices) {
    if (delta.reasoning_content) yield { kind: "thought", text: delta.reasoning_content };
    if (delta.content) yield { kind: "answer", text: delta.content };
    for (const { index, id = "", function: called = {} } of delta.tool_calls ?? []) {
      yield { kind: "call", index, id, name: called.name ?? "", arguments: called.arguments ?? "" };
    }
    if (reason) yield { kind: "finish", reason: penstock?.candidates?.[0]?.finish_reason ?? reason };
  }
  if (penstock?.thinking_finished) {
    const { outcome, reasoning_tokens: tokens } = penstock.thinking_finished;
    yield { kind: "thought_ended", outcome, tokens };
  }
  if (penstock?.candidates) {
    const [candidate] = penstock.candidates;
    yield {
      kind: "result",
      outcome: candidate.thinking_outcome,
      usd: penstock.cost ? Number(penstock.cost.usd) : undefined,
      seconds: penstock.timing?.total_seconds,
      first_seconds: penstock.timing?.first_token_seconds,
    };
  }
  if (usage) {
    const output = usage.completion_tokens;
    const thought = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    yield { kind: "usage", usage: { prompt: usage.prompt_tokens, cached, thought, answer: output - thought, output } };
  }
}

/** Returns where a stream is: the generation's id, which is a part of the id of each event, and that id. */
export function placeOf(eventId) {
  return { id: eventId.split(":")[3], event: eventId };
}
