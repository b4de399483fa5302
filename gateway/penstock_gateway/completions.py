"""`POST /v1/completions`: text that goes on where a prompt ends, without the model's chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, cast

import penstock_client
from penstock_client import AsyncStream, PenstockError
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway import replies
from penstock_gateway.bodies import decode, decoding, read_body
from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.completion_replies import CompletionChunks, completion
from penstock_gateway.completion_request import CompletionRequest, echo_of, to_calls
from penstock_gateway.errors import ParamOf, rate_limit_headers
from penstock_gateway.fields import COMPLETIONS, param_of
from penstock_gateway.json_response import JsonResponse
from penstock_gateway.options import ServiceCall
from penstock_gateway.sse import EventId
from penstock_gateway.streams import merged, open_stream, pieces_of, send_stream, send_streams


async def completions(request: Request) -> Response:
    """Answer the request."""
    settings, held = request.state.settings, request.state.held
    body = await read_body(request, settings, held)
    with decoding(body, settings, held):
        given = decode(body, CompletionRequest)
        request.state.param_of = param_of(COMPLETIONS, given)
        calls = to_calls(given, settings.max_prompts)
    if given.stream:
        return await _stream(request, given, calls)
    with trace_context(request.headers):
        made = await while_connected(request, _generate_all(request, calls))
    echoed = [echo_of(given, call) for call in calls]
    held.add(sum(len(text) * len(one.candidates) for text, one in zip(echoed, made, strict=True)))
    reply = completion(made, echoed, request.state.request_id)
    return JsonResponse(reply, headers=rate_limit_headers(made[-1].rate_limits))


async def _generate_all(request: Request, calls: Sequence[ServiceCall]) -> list[penstock_client.Response]:
    """Return the replies to all prompts. Where one fails, the others are cancelled, and its error is raised."""
    client = client_of(request)

    async def generate(index: int, call: ServiceCall) -> penstock_client.Response:
        with _naming_the_prompt(request, index, len(calls)):
            return await client.generate(timeout=timeout_of(request, call.timeout), **cast(Any, call.options))

    tasks = [asyncio.ensure_future(generate(index, call)) for index, call in enumerate(calls)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stream(request: Request, given: CompletionRequest, calls: Sequence[ServiceCall]) -> Response:
    include_usage = bool(given.stream_options and given.stream_options.include_usage)
    choices = given.n or 1
    is_single = len(calls) == 1
    chunks = [
        CompletionChunks(
            include_usage=include_usage,
            has_logprobs=given.logprobs is not None,
            candidates=choices,
            first_index=choices * index,
            echoed=echo_of(given, call),
            part_of="" if is_single else request.state.request_id,
        )
        for index, call in enumerate(calls)
    ]
    streams = [open_stream(request, call) for call in calls]
    if is_single:
        pattern = EventId("completion", include_usage=include_usage, has_logprobs=given.logprobs is not None)
        return await send_stream(request, streams[0], chunks[0], pattern if given.resumable else None)
    pieces = _pieces_of_all(request, streams, chunks, include_usage=include_usage)
    return await send_streams(request, streams, pieces, chunks[0])


async def _pieces_of_all(
    request: Request, streams: Sequence[AsyncStream], chunks: Sequence[CompletionChunks], *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of all prompts' chunks as they come, then those of the usage of all."""

    async def pieces(index: int) -> AsyncGenerator[bytes, None]:
        with _naming_the_prompt(request, index, len(streams)):
            async for piece in pieces_of(streams[index], chunks[index]):
                yield piece

    async with aclosing(merged([pieces(index) for index in range(len(streams))])) as all_pieces:
        async for piece in all_pieces:
            yield piece
    if include_usage:
        counts = [stream.response.usage for stream in streams if stream.response.usage is not None]
        yield chunks[0].encode(chunks[0].usage_chunk(replies.usage_of(*counts)))


@contextmanager
def _naming_the_prompt(request: Request, index: int, prompts: int) -> Iterator[None]:
    """Make the first error about a prompt name its place in the list, where there are several."""
    try:
        yield
    except PenstockError:
        if prompts > 1 and not hasattr(request.state, "failed_prompt"):
            request.state.failed_prompt = index
            request.state.param_of = _with_index(request.state.param_of, index)
        raise


def _with_index(find: ParamOf, index: int) -> ParamOf:
    def of(path: str) -> str | None:
        name = find(path)
        if name is None or name.partition("[")[0] != "prompt":
            return name
        return f"prompt[{index}]{name.removeprefix('prompt')}"

    return of
