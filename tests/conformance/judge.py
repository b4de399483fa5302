"""Test what user code saw against what a case expects: the same eyes for every language."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

_STREAMS = ("stream", "interact", "resume", "steer")


def judge(case: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Everything that is wrong; empty where the case passes."""
    expected = case["expect"]
    wrong = _Wrong()
    if "error" in expected:
        _error(expected["error"], seen.get("error"), wrong)
        wrong.fields("running", expected.get("running"), seen.get("running"))
        return wrong.found
    if seen.get("error"):
        return [f"failed with {seen['error']}"]
    if case["call"] in _STREAMS:
        _stream(case, seen["events"], seen["reply"], wrong)
    if "reply" in seen:
        _reply(expected, seen["reply"], wrong)
    for name in ("count", "model", "running"):
        if name in expected:
            wrong.fields(name, expected[name], seen[name])
    for number, steered in enumerate(expected.get("steered", ())):
        wrong.fields(f"steered[{number}]", steered, seen["steered"][number])
    if "overflows" in expected:
        wrong.unless("overflow_tokens", seen["count"]["overflow_tokens"] > 0, True)
    if "effective" in expected and case["call"] == "count":
        wrong.fields("effective", expected["effective"], seen["effective"])
    if "reconnections_at_least" in expected:
        wrong.unless("reconnections", seen["reconnections"] >= expected["reconnections_at_least"], True)
    return wrong.found


class _Wrong:
    def __init__(self) -> None:
        self.found: list[str] = []

    def unless(self, what: str, seen: object, expected: object) -> None:
        if seen != expected:
            self.found.append(f"{what}: {seen!r}, not {expected!r}")

    def fields(self, what: str, expected: dict[str, Any] | None, seen: dict[str, Any] | None) -> None:
        if expected is None or seen is None:
            self.unless(what, seen, expected)
            return
        for name, value in expected.items():
            if isinstance(value, dict):
                self.fields(f"{what}.{name}", value, seen[name])
            else:
                self.unless(f"{what}.{name}", seen.get(name), value)


def _error(expected: dict[str, Any], seen: dict[str, Any] | None, wrong: _Wrong) -> None:
    if not seen:
        wrong.found.append(f"no error, not {expected}")
        return
    own = ("fields", "metadata_keys")
    wrong.fields("error", {name: value for name, value in expected.items() if name not in own}, seen)
    if "metadata_keys" in expected:
        wrong.unless("error.metadata", sorted(seen["metadata"]), expected["metadata_keys"])
    if "fields" in expected:
        wrong.unless("error.fields", sorted(seen["fields"]), expected["fields"])


def _stream(case: dict[str, Any], events: list[dict[str, Any]], reply: dict[str, Any], wrong: _Wrong) -> None:
    expected = case["expect"]
    sequences = [event["sequence"] for event in events]
    first = expected.get("first_sequence", 1)
    skipped = expected.get("skipped_sequences", ())
    numbers = range(first, first + len(events) + len(skipped))
    wrong.unless("sequences", sequences, [number for number in numbers if number not in skipped])
    wrong.unless("last event", events[-1]["kind"], "finished")
    if first == 1:
        wrong.unless("first event", events[0]["kind"], "started")
    if "kinds" in expected:
        wrong.unless("kinds", [kind for kind, _ in groupby(event["kind"] for event in events)], expected["kinds"])
    if "interruptions" in expected:
        told = [event["reason"] for event in events if event["kind"] == "interrupted"]
        wrong.unless("interruptions", told, expected["interruptions"])
    if "deltas" in expected:
        wrong.unless("deltas", sum("text" in event for event in events), expected["deltas"])
    _calls(events, reply, wrong, is_whole=first == 1)
    for index, candidate in enumerate(reply["candidates"]):
        for kind, counted in (("thought", "reasoning_tokens"), ("answer", "answer_tokens")):
            deltas = [event for event in events if event["kind"] == kind and event["candidate"] == index]
            wrong.unless(f"{kind} {index}", "".join(delta["text"] for delta in deltas), candidate[kind])
            if first == 1 and (deltas or kind == "answer"):
                wrong.unless(f"{kind} {index} tokens", sum(d["tokens"] for d in deltas), candidate[counted])


def _calls(events: list[dict[str, Any]], reply: dict[str, Any], wrong: _Wrong, *, is_whole: bool) -> None:
    """The pieces of each call join to its arguments, and the tokens of all its events sum to the usage."""
    of_calls = [event for event in events if event["kind"].startswith("tool_call")]
    for index, candidate in enumerate(reply["candidates"]):
        own = [event for event in of_calls if event["candidate"] == index]
        if is_whole:
            wrong.unless(f"tool {index} tokens", sum(event["tokens"] for event in own), candidate.get("tool_tokens", 0))
        for number, call in enumerate(candidate.get("tool_calls", ()) if is_whole else ()):
            mine = [event for event in own if event["call"] == number]
            wrong.unless(f"call {number} begins", mine[0]["kind"], "tool_call_started")
            wrong.unless(f"call {number} ends", mine[-1]["kind"], "tool_call_finished")
            wrong.unless(f"call {number} name", mine[0]["name"], call["name"])
            pieces = "".join(event["json"] for event in mine if event["kind"] == "tool_call_arguments")
            wrong.unless(f"call {number} arguments", pieces, call["arguments_json"])
            if call["status"] == "complete":
                wrong.unless(f"call {number} is JSON", isinstance(json.loads(call["arguments_json"]), dict), True)


def _same_calls(expected: list[dict[str, Any]], seen: list[dict[str, Any]], wrong: _Wrong) -> None:
    """`arguments` are compared as JSON, with types."""
    wrong.unless("tool calls", len(seen), len(expected))
    for number, (fields, call) in enumerate(zip(expected, seen, strict=False)):
        for name in ("name", "status"):
            wrong.unless(f"call {number} {name}", call[name], fields[name])
        if "arguments" in fields:
            arguments = json.loads(call["arguments_json"])
            wrong.unless(f"call {number} arguments", json.dumps(arguments), json.dumps(fields["arguments"]))


def _reply(expected: dict[str, Any], reply: dict[str, Any], wrong: _Wrong) -> None:
    candidates = reply["candidates"]
    of_the_first = ("thought", "answer", "finish_reason", "thinking_outcome", "matched_stop")
    for name in (*of_the_first, "thought_token_ids", "answer_token_ids"):
        if name in expected:
            wrong.unless(name, candidates[0][name], expected[name])
    if "tool_calls" in expected:
        for candidate in candidates:
            _same_calls(expected["tool_calls"], candidate["tool_calls"], wrong)
    if "candidates" in expected:
        wrong.unless("candidates", len(candidates), len(expected["candidates"]))
        for index, fields in enumerate(expected["candidates"]):
            wrong.fields(f"candidates[{index}]", fields, candidates[index])
    if expected.get("thought_is_cut"):
        thought = candidates[0]["thought"]
        wrong.unless("a cut thought", 0 < len(thought) < 70, True)
    if "cost_usd_ticks" in expected:
        wrong.unless("cost_usd_ticks", reply["cost_usd_ticks"], expected["cost_usd_ticks"])
    for name in ("usage", "effective"):
        if name in expected:
            wrong.fields(name, expected[name], reply[name])
    usage = reply["usage"]
    parts = usage["reasoning_tokens"] + usage["answer_tokens"] + usage.get("tool_tokens", 0)
    wrong.unless("output_tokens", usage["output_tokens"], parts)
