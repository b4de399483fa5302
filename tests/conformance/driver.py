"""The Python clients' driver: runs a case through one of them and tells what user code saw."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import penstock_client as pc
from google.protobuf.json_format import ParseDict
from penstock_proto.v1 import generation_pb2 as pb

LEAVE_SECONDS = 60.0
"""What is waited for a generation to end after its stream was left; by itself it would run for 150."""

_KINDS = {
    pc.Started: "started",
    pc.ThoughtDelta: "thought",
    pc.ThinkingFinished: "thinking_finished",
    pc.AnswerDelta: "answer",
    pc.ToolCallStarted: "tool_call_started",
    pc.ToolCallArguments: "tool_call_arguments",
    pc.ToolCallFinished: "tool_call_finished",
    pc.Interrupted: "interrupted",
    pc.Continued: "continued",
    pc.Finished: "finished",
}


def run_sync(case: dict[str, Any], targets: dict[str, str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with pc.Client(**reached(case, targets)) as client:
        try:
            if case["call"] in _AGAIN:
                _AGAIN[case["call"]](client, case, seen, targets)
            else:
                _SYNC[case["call"]](client, case, seen)
        except pc.PenstockError as error:
            seen["error"] = error_of(error)
    return seen


def _stream(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    with client.stream(resumable=case.get("resumable"), **delivered(case)) as stream:
        time.sleep(case.get("late_seconds", 0))
        seen["events"] = [event_of(event) for event in stream]
        seen.update(reply=response_to_proto(stream.response), reconnections=stream.reconnections)


def _interact(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    with client.interact(**delivered(case)) as interaction:
        time.sleep(case.get("late_seconds", 0))
        seen["events"] = []
        for event in interaction:
            seen["events"].append(event_of(event))
            for step in steps(case, len(seen["events"])):
                getattr(interaction, step["do"])(*arguments(step))
        seen["reply"] = response_to_proto(interaction.response)


def _steer(client: pc.Client, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]) -> None:
    with client.stream(**delivered(case)) as stream:
        seen.update(events=[], steered=[])
        for event in stream:
            seen["events"].append(event_of(event))
            for step in steps(case, len(seen["events"])):
                if is_over_the_stream(step):
                    reply = getattr(stream, step["do"])(*arguments(step))
                else:
                    with pc.Client(**reached(case | step, targets)) as another:
                        reply = another.steer(*steered_place(step, stream), **action(step))
                seen["steered"].append(dataclasses.asdict(reply))
        seen["reply"] = response_to_proto(stream.response)


def _resume(client: pc.Client, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]) -> None:
    stream = client.stream(**delivered(case))
    for _ in range(case["read"]):
        next(stream)
    leave(case, stream)
    client.close()  # waits until the server knows
    with pc.Client(**reached_again(case, targets)) as another:
        resumed = another.resume(*place(case, stream))
        seen["events"] = [event_of(event) for event in resumed]
        seen["reply"] = response_to_proto(resumed.response)


def _generate(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["reply"] = response_to_proto(client.generate(**options(case)))


def _count(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen.update(count_to_proto(client.count(**options(case))))


def _model(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["model"] = model_of(client.model(case.get("model", "")))


def _experts(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["tokens"] = client.expert_load(**case.get("experts", {})).token_count


def _watch_experts(client: pc.Client, case: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["tokens"] = next(client.watch_expert_load(**case.get("experts", {}))).token_count


def _leave(client: pc.Client, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]) -> None:
    """Leaves a stream in the way that the case says; the client stays, and so does the name of the stream."""
    if case["how"].endswith("_reply"):
        _leave_reply(client, case, seen, targets)
        return
    stream = client.stream(**delivered(case))
    seen["running"] = running = Running(targets)
    match case["how"]:
        case "break":
            for event in stream:
                if event.sequence == 3:
                    running.is_there()
                    break
        case "text":
            _leave_texts(stream.text(), running)
        case "raise":
            with contextlib.suppress(ZeroDivisionError):
                for event in stream:
                    running.is_there()
                    _ = event.sequence / 0
        case "cancel":
            thread = threading.Timer(0.5, lambda: (running.is_there(), stream.cancel()))
            thread.start()
            try:
                list(stream)
            except pc.Cancelled as error:
                seen["error"] = error_of(error)
            thread.join()
        case "unread":
            running.is_there()
            stream.close()
        case how:
            assert next(stream).sequence == 1
            running.is_there()
            if how == "drop":
                del stream
            else:
                (client if how == "close_client" else stream).close()
    running.is_gone()


def _leave_texts(texts: pc.Texts, running: Running) -> None:
    for _ in texts:
        running.is_there()
        break
    running.is_gone()  # while the texts have their name


def _leave_reply(client: pc.Client, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]) -> None:
    """Close the client while another thread waits for a reply: the only way to leave a blocking call."""
    seen["running"] = running = Running(targets)

    def ask() -> None:
        try:
            client.generate(**options(case))
        except pc.PenstockError as error:
            seen["error"] = error_of(error)

    thread = threading.Thread(target=ask)
    thread.start()
    running.is_there()
    client.close()
    thread.join()
    running.is_gone()


class Running(dict[str, float]):
    """How many generations ran on the server before a stream was left, and when it was (soon 0, or what it stays)."""

    def __init__(self, targets: dict[str, str]) -> None:
        self._url = targets["leaving.metrics"]

    def is_there(self) -> None:
        self["before"] = self._wait_for(1)

    def is_gone(self) -> None:
        self["after"] = self._wait_for(0)

    def _wait_for(self, wanted: int) -> float:
        end = time.monotonic() + LEAVE_SECONDS
        while (count := self._count()) != wanted and time.monotonic() < end:
            time.sleep(0.05)
        return count

    def _count(self) -> float:
        with urllib.request.urlopen(self._url, timeout=60) as page:
            found = re.search(r"^penstock_sequences_running(?:{.*})? (\S+)", page.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0


_SYNC = {
    "stream": _stream,
    "interact": _interact,
    "generate": _generate,
    "count": _count,
    "model": _model,
    "experts": _experts,
    "watch_experts": _watch_experts,
}


_AGAIN = {"resume": _resume, "leave": _leave, "steer": _steer}


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


async def _leave_async(
    client: pc.AsyncClient, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]
) -> None:
    stream = client.stream(**delivered(case))
    seen["running"] = running = Running(targets)
    match case["how"]:
        case "break":
            async for event in stream:
                if event.sequence == 3:
                    await asyncio.to_thread(running.is_there)
                    break
        case "text":
            await _leave_texts_async(stream.text(), running)
        case "raise":
            with contextlib.suppress(ZeroDivisionError):
                async for event in stream:
                    await asyncio.to_thread(running.is_there)
                    _ = event.sequence / 0
        case "cancel":
            task = asyncio.create_task(_read_all(stream))
            await asyncio.to_thread(running.is_there)
            task.cancel()
            kept = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(kept[0], asyncio.CancelledError)
            try:  # the task has got asyncio's own; who reads on gets the client's
                await _read_all(stream)
            except pc.Cancelled as error:
                seen["error"] = error_of(error)
        case "unread":
            await asyncio.to_thread(running.is_there)
            stream.close()
        case how:
            assert (await anext(stream)).sequence == 1
            await asyncio.to_thread(running.is_there)
            if how == "drop":
                del stream
            elif how == "close_client":
                await client.close()
            else:
                stream.close()
    await asyncio.to_thread(running.is_gone)


async def _leave_texts_async(texts: pc.AsyncTexts, running: Running) -> None:
    async for _ in texts:
        await asyncio.to_thread(running.is_there)
        break
    await asyncio.to_thread(running.is_gone)  # while the texts have their name


async def _leave_reply_async(
    client: pc.AsyncClient, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]
) -> None:
    seen["running"] = running = Running(targets)
    task = asyncio.create_task(client.generate(**options(case)))
    await asyncio.to_thread(running.is_there)
    if case["how"] == "cancel_reply":
        task.cancel()
    else:
        await client.close()
    (kept,) = await asyncio.gather(task, return_exceptions=True)
    if case["how"] == "cancel_reply":
        assert isinstance(kept, asyncio.CancelledError)
        kept = pc.Cancelled("by asyncio, whose exception the task has got", code=grpc.StatusCode.CANCELLED)
    assert isinstance(kept, pc.PenstockError), repr(kept)
    seen["error"] = error_of(kept)
    await asyncio.to_thread(running.is_gone)


async def _read_all(stream: pc.AsyncStream) -> None:
    async for _ in stream:
        pass


async def _read_async(client: pc.AsyncClient, case: dict[str, Any], seen: dict[str, Any]) -> None:
    match case["call"]:
        case "generate":
            seen["reply"] = response_to_proto(await client.generate(**options(case)))
        case "count":
            seen.update(count_to_proto(await client.count(**options(case))))
        case "model":
            seen["model"] = model_of(await client.model(case.get("model", "")))
        case "experts":
            seen["tokens"] = (await client.expert_load(**case.get("experts", {}))).token_count
        case "watch_experts":
            seen["tokens"] = (await anext(client.watch_expert_load(**case.get("experts", {})))).token_count


async def _run_async(
    client: pc.AsyncClient, case: dict[str, Any], seen: dict[str, Any], targets: dict[str, str]
) -> None:
    match case["call"]:
        case "leave":
            how = _leave_reply_async if case["how"].endswith("_reply") else _leave_async
            await how(client, case, seen, targets)
            return
        case "generate" | "count" | "model" | "experts" | "watch_experts":
            await _read_async(client, case, seen)
            return
        case "stream" | "steer":
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
    await asyncio.sleep(case.get("late_seconds", 0))
    async for event in stream:
        seen["events"].append(event_of(event))
        for step in steps(case, len(seen["events"])):
            if case["call"] == "steer":
                reply = await _steered(stream, case, step, targets)
                seen.setdefault("steered", []).append(dataclasses.asdict(reply))
            else:
                getattr(stream, step["do"])(*arguments(step))
    seen.update(reply=response_to_proto(stream.response), reconnections=stream.reconnections)


async def _steered(
    stream: pc.AsyncStream, case: dict[str, Any], step: dict[str, Any], targets: dict[str, str]
) -> pc.Steered:
    if is_over_the_stream(step):
        return await getattr(stream, step["do"])(*arguments(step))
    async with pc.AsyncClient(**reached(case | step, targets)) as another:
        return await another.steer(*steered_place(step, stream), **action(step))


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {"spec": ParseDict(case["spec"], pb.GenerationSpec()), "timeout": case.get("timeout_seconds")}


def delivered(case: dict[str, Any]) -> dict[str, Any]:
    return {**options(case), "flush_interval_seconds": case.get("flush_interval_seconds")}


def steps(case: dict[str, Any], events: int) -> Iterator[dict[str, Any]]:
    """Return the steps that are due after so many events."""
    return (step for step in case.get("steps", ()) if step["after"] == events)


def arguments(step: dict[str, Any]) -> list[int]:
    return [step["budget"]] if "budget" in step else []


def is_over_the_stream(step: dict[str, Any]) -> bool:
    """Whether the stream's own methods take the step: they know one token, one caller, and not this cancel."""
    return step["do"] != "cancel" and not step.keys() & {"generation_id", "resume_token", "api_key"}


def steered_place(step: dict[str, Any], stream: pc.Stream | pc.AsyncStream) -> tuple[str, str]:
    response = stream.response
    return step.get("generation_id", response.generation_id), step.get("resume_token", response.resume_token)


def action(step: dict[str, Any]) -> dict[str, Any]:
    return {"budget": step["budget"]} if step["do"] == "change_budget" else {step["do"]: True}


def leave(case: dict[str, Any], stream: pc.Stream | pc.AsyncStream) -> None:
    getattr(stream, case.get("leave", "detach"))()


def place(case: dict[str, Any], stream: pc.Stream | pc.AsyncStream) -> tuple[str, str, int]:
    return (
        case.get("generation_id", stream.response.generation_id),
        case.get("resume_token", stream.response.resume_token),
        case.get("last_sequence", stream.last_sequence),
    )


def event_of(event: pc.Event) -> dict[str, Any]:
    seen: dict[str, Any] = {"kind": _KINDS[type(event)], "sequence": event.sequence}
    if isinstance(event, pc.Interrupted):
        seen["reason"] = event.reason
    if isinstance(event, pc.ThoughtDelta | pc.AnswerDelta):
        seen.update(candidate=event.candidate_index, text=event.text, tokens=event.token_count)
    if isinstance(event, pc.ToolCallStarted | pc.ToolCallArguments | pc.ToolCallFinished):
        seen.update(candidate=event.candidate_index, call=event.call_index, tokens=event.token_count)
    if isinstance(event, pc.ToolCallStarted):
        seen["name"] = event.name
    if isinstance(event, pc.ToolCallArguments):
        seen["json"] = event.json_fragment
    return seen


def response_to_proto(response: pc.Response) -> dict[str, Any]:
    names = ("thought", "answer", "finish_reason", "thinking_outcome", "matched_stop", "reasoning_tokens")
    names += ("answer_tokens", "tool_tokens", "thought_token_ids", "answer_token_ids")
    return {
        "candidates": [
            {name: getattr(candidate, name) for name in names} | {"tool_calls": calls_of(candidate)}
            for candidate in response.candidates
        ],
        "usage": dataclasses.asdict(response.usage) if response.usage else None,
        "effective": dataclasses.asdict(response.effective_settings) if response.effective_settings else None,
        "cost_usd_ticks": response.cost.total_usd_ticks if response.cost else None,
    }


def calls_of(candidate: pc.Candidate) -> list[dict[str, Any]]:
    return [
        {"name": call.name, "arguments_json": call.arguments_json, "status": call.status}
        for call in candidate.tool_calls
    ]


def count_to_proto(count: pc.TokenCount) -> dict[str, Any]:
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
