"""Check what every answer keeps, whatever was asked: limits, stops, constraints, budgets, counts, whole characters.

`broken` compares a request and its reply, of any method, with what the proto says, and returns what differs.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import xgrammar
from penstock.engine.base import Engine
from penstock.engine.vllm.constraints.json_schema import rewritten
from penstock_proto.v1 import generation_pb2 as pb

from tests.engine.generated import GRAMMAR_AS_REGEX
from tests.unit.grammar_walks import compiled_schema, compiler

_ENDED = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_STOP_STRING, pb.FINISH_REASON_STOP_TOKEN)


def assembled(events: Sequence[pb.GenerationEvent]) -> pb.GenerateResponse:
    """Return a stream as the reply that Generate would give. Raise AssertionError where its events do not add up."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    finished = events[-1].finished
    reply = pb.GenerateResponse(
        usage=finished.usage,
        effective_settings=finished.effective_settings,
        candidates=[pb.Candidate(result=result) for result in finished.results],
    )
    counts = [{"thought": 0, "answer": 0} for _ in reply.candidates]
    ends = [list[pb.ThinkingFinished]() for _ in reply.candidates]
    for event, kind in zip(events[1:-1], kinds[1:-1], strict=True):
        assert kind in ("thought", "answer", "thinking_finished")
        one = getattr(event, kind)
        if kind == "thinking_finished":
            ends[one.candidate_index].append(one)
            continue
        candidate = reply.candidates[one.candidate_index]
        assert not (kind == "thought" and ends[one.candidate_index]), "a thought after its end"
        setattr(candidate, kind, getattr(candidate, kind) + one.text)
        getattr(candidate, f"{kind}_token_ids").extend(one.token_ids)
        getattr(candidate, f"{kind}_logprobs").extend(one.logprobs)
        counts[one.candidate_index][kind] += one.token_count
    for candidate, count, over in zip(reply.candidates, counts, ends, strict=True):
        result = candidate.result
        assert count["answer"] == result.usage.answer_tokens
        assert count["thought"] in (0, result.usage.reasoning_tokens)
        told = [(one.outcome, one.reasoning_tokens) for one in over]
        assert told in ([], [(result.thinking_outcome, result.usage.reasoning_tokens)])
        assert told or result.thinking_outcome == pb.THINKING_OUTCOME_DISABLED
    return reply


def broken(spec: pb.GenerationSpec, reply: pb.GenerateResponse, engine: Engine) -> list[str]:
    """Return what the reply does not keep of the request, of what the proto promises."""
    wrong = list(_of_call(spec, reply))
    for candidate in reply.candidates:
        wrong += _of_candidate(spec, candidate, reply.effective_settings, engine)
    return wrong


def _of_call(spec: pb.GenerationSpec, reply: pb.GenerateResponse) -> Iterator[str]:
    results = [candidate.result for candidate in reply.candidates]
    if [result.candidate_index for result in results] != list(range(max(1, spec.output.candidate_count))):
        yield f"candidates {[result.candidate_index for result in results]}"
    for usage in (reply.usage, *(result.usage for result in results)):
        yield from _sums(usage)
    for name in ("reasoning_tokens", "answer_tokens", "output_tokens", "marker_tokens", "tool_tokens"):
        if getattr(reply.usage, name) != sum(getattr(result.usage, name) for result in results):
            yield f"{name} of the call are not the sum of its candidates'"
    if {result.usage.prompt_tokens for result in results} != {reply.usage.prompt_tokens}:
        yield "prompt_tokens differ between call and candidates"


def _sums(usage: pb.Usage) -> Iterator[str]:
    if any(value < 0 for _, value in usage.ListFields()):
        yield "a negative count"
    if usage.output_tokens != usage.reasoning_tokens + usage.answer_tokens + usage.tool_tokens or usage.tool_tokens:
        yield "output_tokens are not those of thought and answer"
    if usage.total_tokens != usage.prompt_tokens + usage.output_tokens or usage.prompt_tokens < 1:
        yield "total_tokens are not prompt and output"
    if usage.cached_tokens > usage.prompt_tokens:
        yield "more tokens are cached than the prompt has"
    if usage.accepted_tokens > usage.drafted_tokens or usage.HasField("accepted_tokens") != usage.HasField(
        "drafted_tokens"
    ):
        yield "accepted_tokens without drafted_tokens"


def _of_candidate(
    spec: pb.GenerationSpec, candidate: pb.Candidate, effective: pb.EffectiveSettings, engine: Engine
) -> Iterator[str]:
    yield from _limits(spec, candidate.result, effective)
    yield from _thought(spec, candidate, effective)
    yield from _stops(spec, candidate, engine)
    yield from _texts(spec, candidate, engine)
    yield from _logprobs(spec, candidate)
    if not keeps_constraint(spec.output, candidate):
        yield f"the answer {candidate.answer!r} does not keep its constraint"


def _limits(spec: pb.GenerationSpec, result: pb.CandidateResult, effective: pb.EffectiveSettings) -> Iterator[str]:
    finish, tokens, most = result.finish_reason, result.usage.output_tokens, effective.max_output_tokens
    if finish not in (*_ENDED, pb.FINISH_REASON_MAX_OUTPUT_TOKENS):
        yield f"finish reason {finish}"
    if spec.output.max_output_tokens and most > spec.output.max_output_tokens:
        yield f"effective max_output_tokens {most}"
    if tokens > most or (finish == pb.FINISH_REASON_MAX_OUTPUT_TOKENS and tokens != most):
        yield f"{tokens} output tokens end at a maximum of {most}"
    if finish in _ENDED and tokens < spec.output.min_output_tokens:
        yield f"{tokens} output tokens, at least {spec.output.min_output_tokens} were asked for"


def _thought(spec: pb.GenerationSpec, candidate: pb.Candidate, effective: pb.EffectiveSettings) -> Iterator[str]:
    outcome, spent = candidate.result.thinking_outcome, candidate.result.usage.reasoning_tokens
    budget, asked = effective.thinking_budget, spec.thinking.thinking_budget
    if spec.thinking.HasField("thinking_budget") and 0 <= asked < budget:
        yield f"effective budget {budget}, asked for {asked}"
    if spent > budget or (outcome == pb.THINKING_OUTCOME_BUDGET_REACHED and spent != budget):
        yield f"{spent} thought tokens, a budget of {budget}, outcome {outcome}"
    if outcome == pb.THINKING_OUTCOME_DISABLED and spent:
        yield f"{spent} thought tokens where thinking is disabled"
    if spec.thinking.mode == pb.THINKING_MODE_FAST and outcome != pb.THINKING_OUTCOME_DISABLED:
        yield f"outcome {outcome} with mode FAST"
    hides = spec.thinking.HasField("include_thoughts") and not spec.thinking.include_thoughts
    if hides and (candidate.thought or candidate.thought_token_ids or candidate.thought_logprobs):
        yield "a thought was sent"
    if hides:
        return
    patterns = spec.thinking.stop_patterns
    shows = any(text in candidate.thought for text in patterns.strings)
    shows |= bool(patterns.regex) and re.search(patterns.regex, candidate.thought) is not None
    if shows != (outcome == pb.THINKING_OUTCOME_STOP_PATTERN):
        yield f"outcome {outcome}, and a pattern {'shows' if shows else 'does not show'}"


def _stops(spec: pb.GenerationSpec, candidate: pb.Candidate, engine: Engine) -> Iterator[str]:
    output, finish, matched = spec.output, candidate.result.finish_reason, candidate.result.matched_stop
    if (finish == pb.FINISH_REASON_STOP_STRING) != bool(matched) or (matched and matched not in output.stop_strings):
        yield f"finish reason {finish} with the stop string {matched!r}"
    # Text within the minimum is not searched.
    if not output.min_output_tokens and any(stop in candidate.answer for stop in output.stop_strings):
        yield f"a stop string in {candidate.answer!r}"
    if not output.return_token_ids:
        return
    ids, stops = list(candidate.answer_token_ids), {*output.stop_token_ids, *engine.card.eos_ids}
    if stops.intersection(ids[:-1]):
        yield f"a stop token inside {ids}"
    if finish in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_STOP_TOKEN):
        ends = engine.card.eos_ids if finish == pb.FINISH_REASON_STOP else set(output.stop_token_ids)
        if not ids or ids[-1] not in ends:
            yield f"finish reason {finish} after the tokens {ids}"
    elif ids and ids[-1] in stops:
        yield f"finish reason {finish} after the stop token {ids[-1]}"
    searched = ids[max(0, output.min_output_tokens - candidate.result.usage.reasoning_tokens) :]
    text = b"".join(map(engine.tokenizer.token_bytes, searched)).decode(errors="ignore")
    late = [stop for stop in output.stop_strings if stop in (text.lstrip("\n"))]
    if late and finish != pb.FINISH_REASON_STOP_STRING:
        yield f"finish reason {finish}, and {late} came"


def _texts(spec: pb.GenerationSpec, candidate: pb.Candidate, engine: Engine) -> Iterator[str]:
    """Compare the texts with what their tokens spell, decoded at once."""
    usage, hides = candidate.result.usage, not spec.thinking.include_thoughts
    hides &= spec.thinking.HasField("include_thoughts")
    for name, count in (("thought", usage.reasoning_tokens), ("answer", usage.answer_tokens)):
        text, ids = getattr(candidate, name), getattr(candidate, f"{name}_token_ids")
        is_sent = spec.output.return_token_ids and not (hides and name == "thought")
        if len(ids) != (count if is_sent else 0):
            yield f"{len(ids)} ids of {count} {name} tokens"
        if not is_sent:
            continue
        ends = {*spec.output.stop_token_ids, *engine.card.eos_ids}
        spelled = spelling(ids[:-1] if name == "answer" and ids and ids[-1] in ends else ids, engine)
        if name == "thought" and text != spelled:
            yield f"the thought is {text!r}, its tokens spell {spelled!r}"
        structured = spec.output.WhichOneof("structured_output") is not None
        starts = (spelled, spelled if structured else spelled.lstrip("\n"))
        stopped = candidate.result.matched_stop
        if name == "answer" and not (text in starts or (stopped and any(s.startswith(text + stopped) for s in starts))):
            yield f"the answer is {text!r}, its tokens spell {spelled!r}"


def spelling(ids: Sequence[int], engine: Engine) -> str:
    """Return what tokens spell: U+FFFD for bytes that are no character, nothing for a last one that is incomplete."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(map(engine.tokenizer.token_bytes, ids)))


def _logprobs(spec: pb.GenerationSpec, candidate: pb.Candidate) -> Iterator[str]:
    asked, usage = spec.output.HasField("top_logprobs"), candidate.result.usage
    lists = [(candidate.answer_logprobs, usage.answer_tokens)]
    if not spec.thinking.HasField("include_thoughts") or spec.thinking.include_thoughts:
        lists.append((candidate.thought_logprobs, usage.reasoning_tokens))
    for logprobs, count in lists:
        if len(logprobs) != (count if asked else 0):
            yield f"{len(logprobs)} log probabilities of {count} tokens"
        for one in logprobs:
            if len(one.top) != spec.output.top_logprobs:
                yield f"{len(one.top)} alternatives, {spec.output.top_logprobs} were asked for"
            values = [one.sampled.logprob, *(top.logprob for top in one.top)]
            if any(math.isnan(value) or value > 0 for value in values) or values[1:] != sorted(values[1:])[::-1]:
                yield f"log probabilities {values}"


def keeps_constraint(output: pb.OutputConfig, candidate: pb.Candidate) -> bool:
    """Return whether the answer is whole, where the model ended it, else the start of one that is allowed."""
    whole, answer = candidate.result.finish_reason == pb.FINISH_REASON_STOP, candidate.answer
    match output.WhichOneof("structured_output"):
        case "json_schema":
            schema = output.json_schema
            return is_valid(schema, answer) if whole else _begins(compiled_schema(rewritten(schema)), answer)
        case "choices":
            choices = output.choices.choices
            return answer in choices if whole else any(choice.startswith(answer) for choice in choices)
        case "regex" | "grammar":
            regex = output.regex or GRAMMAR_AS_REGEX[output.grammar]
            return bool(re.fullmatch(regex, answer)) if whole else _begins(compiler().compile_regex(regex), answer)
        case _:
            return True


def is_valid(schema: str, answer: str) -> bool:
    """Return whether the answer is a document of the schema."""
    try:
        document: Any = json.loads(answer)
    except ValueError:
        return False
    return bool(jsonschema.Draft202012Validator(json.loads(schema)).is_valid(document))


def _begins(grammar: Any, answer: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar)
    return all(matcher.accept_token(byte) for byte in answer.encode())
