"""The Python clients' driver: runs a case through one of them and tells what user code saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import penstock_client as pc
from google.protobuf.json_format import ParseDict
from penstock_client.v1 import generation_pb2 as pb

_KINDS = {
    pc.Started: "started",
    pc.ThoughtDelta: "thought",
    pc.ThinkingFinished: "thinking_finished",
    pc.AnswerDelta: "answer",
    pc.Finished: "finished",
}


def run_sync(case: dict[str, Any], targets: dict[str, str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with pc.Client(**reached(case, targets)) as client:
        try:
            if case["call"] == "resume":
                _resume(client, case, seen, targets)
            else:
                _SYNC[case["call"]](client, case, seen)
        except pc.PenstockError as error:
            seen["error"] = error_of(error)
    return seen


def _stream(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    with client.stream(resumable=case.get("resumable"), **delivered(case)) as stream:
        seen["events"] = [event_of(event) for event in stream]
        seen.update(reply=reply_of(stream.response), reconnections=stream.reconnections)


def _interact(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    with client.interact(**delivered(case)) as interaction:
        seen["events"] = []
        for event in interaction:
            seen["events"].append(event_of(event))
            for step in due(case, len(seen["events"])):
                step(interaction)
        seen["reply"] = reply_of(interaction.response)


def _resume(client: pc.Client, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]) -> None:
    stream = client.stream(**delivered(case))
    for _ in range(case["read"]):
        next(stream)
    leave(case, stream)
    client.close()  # waits until the server knows
    with pc.Client(**reached_again(case, targets)) as another:
        resumed = another.resume(*place(case, stream))
        seen["events"] = [event_of(event) for event in resumed]
        seen["reply"] = reply_of(resumed.response)


def _generate(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["reply"] = reply_of(client.generate(**options(case)))


def _count(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen.update(count_of(client.count(**options(case))))


def _model(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["model"] = model_of(client.model(case.get("model", "")))


def _experts(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["tokens"] = client.expert_load(**case.get("experts", {})).token_count


def _watch_experts(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["tokens"] = next(client.watch_expert_load(**case.get("experts", {}))).token_count


_SYNC = {
    "stream": _stream,
    "interact": _interact,
    "generate": _generate,
    "count": _count,
    "model": _model,
    "experts": _experts,
    "watch_experts": _watch_experts,
}


def reached(case: dict[str, Any], targets: dict[str, str]) -> dict[str, Any]:
    server = case.get("server", "default")
    return {"target": targets[server], "api_key": case.get("api_key"), "tls": targets.get(f"{server}.ca")}


def reached_again(case: dict[str, Any], targets: dict[str, str]) -> dict[str, Any]:
    return reached({**case, "api_key": case.get("resume_api_key", case.get("api_key"))}, targets)


async def run_async(case: dict[str, Any], targets: dict[str, str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    async with pc.AsyncClient(**reached(case, targets)) as client:
        try:
            await _run_async(client, case, seen, targets)
        except pc.PenstockError as error:
            seen["error"] = error_of(error)
    return seen


async def _run_async(
    client: pc.AsyncClient, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]
) -> None:
    match case["call"]:
        case "generate":
            seen["reply"] = reply_of(await client.generate(**options(case)))
            return
        case "count":
            seen.update(count_of(await client.count(**options(case))))
            return
        case "model":
            seen["model"] = model_of(await client.model(case.get("model", "")))
            return
        case "experts":
            seen["tokens"] = (await client.expert_load(**case.get("experts", {}))).token_count
            return
        case "watch_experts":
            seen["tokens"] = (await anext(client.watch_expert_load(**case.get("experts", {})))).token_count
            return
        case "stream":
            stream = client.stream(resumable=case.get("resumable"), **delivered(case))
        case "interact":
            stream = client.interact(**delivered(case))
        case "resume":
            first = client.stream(**delivered(case))
            for _ in range(case["read"]):
                await anext(first)
            leave(case, first)
            await client.close()  # waits until the server knows
            stream = pc.AsyncClient(**reached_again(case, targets)).resume(*place(case, first))
    seen["events"] = []
    async for event in stream:
        seen["events"].append(event_of(event))
        for step in due(case, len(seen["events"])):
            step(stream)
    seen.update(reply=reply_of(stream.response), reconnections=stream.reconnections)


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {"spec": ParseDict(case["spec"], pb.GenerationSpec()), "timeout": case.get("timeout_seconds")}


def delivered(case: dict[str, Any]) -> dict[str, Any]:
    return {**options(case), "flush_interval_seconds": case.get("flush_interval_seconds")}


def due(case: dict[str, Any], events: int) -> Iterator[Any]:
    for step in case.get("steps", ()):
        if step["after"] == events:
            arguments = [step["budget"]] if "budget" in step else []
            yield lambda stream, step=step, arguments=arguments: getattr(stream, step["do"])(*arguments)


def leave(case: dict[str, Any], stream: pc.Stream | pc.AsyncStream) -> None:
    getattr(stream, case.get("leave", "detach"))()


def place(case: dict[str, Any], stream: pc.Stream | pc.AsyncStream) -> tuple[str, str, int]:
    return (
        case.get("generation_id", stream.response.generation_id),
        case.get("resume_token", stream.response.resume_token),
        case.get("last_sequence", stream.last_sequence),
    )


def event_of(event: pc.Event) -> dict[str, Any]:
    seen = {"kind": _KINDS[type(event)], "sequence": event.sequence}
    if isinstance(event, pc.ThoughtDelta | pc.AnswerDelta):
        seen.update(candidate=event.candidate_index, text=event.text, tokens=event.token_count)
    return seen


def reply_of(response: pc.Response) -> dict[str, Any]:
    names = ("thought", "answer", "finish_reason", "thinking_outcome", "matched_stop", "reasoning_tokens")
    names += ("answer_tokens", "thought_token_ids", "answer_token_ids")
    return {
        "candidates": [{name: getattr(candidate, name) for name in names} for candidate in response.candidates],
        "usage": dataclasses.asdict(response.usage) if response.usage else None,
        "effective": dataclasses.asdict(response.effective_settings) if response.effective_settings else None,
        "cost_usd_ticks": response.cost.total_usd_ticks if response.cost else None,
    }


def count_of(count: pc.TokenCount) -> dict[str, Any]:
    names = ("prompt_tokens", "effective_prompt_tokens", "window_tokens", "window_left_tokens", "dropped_tokens")
    effective = count.effective_settings
    return {
        "count": {name: getattr(count, name) for name in (*names, "dropped_messages", "overflow_tokens")},
        "effective": dataclasses.asdict(effective) if effective else None,
    }


def model_of(card: pc.ModelCard) -> dict[str, Any]:
    return {
        "model": card.model,
        "context_window_tokens": card.context_window_tokens,
        "thinking_modes": sorted(card.thinking_modes),
        "default_thinking_mode": card.default_thinking_mode,
        "limits": dict(card.limits),
    }


def error_of(error: pc.PenstockError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "code": error.code.name if error.code else None,
        "reason": error.reason,
        "fields": [violation.field for violation in error.violations],
        "metadata": dict(error.metadata),
        "retry_after_seconds": error.retry_after_seconds,
    }
