"""Every call passes here: who it is from, bytes that are no message (INVALID_ARGUMENT), errors (statuses)."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from penstock.border import Border, Entry
from penstock.callers.caller import Caller
from penstock.errors import BadRequest, FieldViolation, PenstockError
from penstock.house import Context
from penstock.slow_clients import SlowReaders, SlowSenders
from penstock.status import DETAILS_KEY, status_of

log = logging.getLogger(__name__)
_OWN = "/penstock.v1."
_REFLECTION = "/grpc.reflection."
# A grpc.RpcMethodHandler; its published types are those of the synchronous server.
Handler: TypeAlias = Any


class _Malformed:
    """Stands for a request that could not be parsed, until it can be answered."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    # gRPC answers INTERNAL where a deserializer raises; a caller's bad bytes are the caller's mistake.
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed()

    return parse


def _parsed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise BadRequest(
            FieldViolation("", "the bytes are not a valid message; strings must be UTF-8", "INVALID_FIELD")
        )
    return request


async def _parsed_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request)


async def _abort(context: Context, method: str, error: Exception, entry: Entry) -> None:
    code, message, status = status_of(error)
    entry.ended(code.name, error)
    if code is grpc.StatusCode.INTERNAL:
        # Never the exception's own text: it may hold prompt or output.
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s failed with %s\n%s", method, type(error).__name__, frames)
    trailers: tuple[tuple[str, str | bytes], ...] = (*await entry.trailers(), (DETAILS_KEY, status))
    await context.abort(code, message, trailing_metadata=trailers)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of this API; reflection only meets the gate, health is open to all. No request may take
    its time to arrive."""

    def __init__(self, slow_readers: SlowReaders, slow_senders: SlowSenders, border: Border) -> None:
        self._slow_readers = slow_readers
        self._slow_senders = slow_senders
        self._border = border

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._slow_senders.hold(task)
        handler = handler._replace(request_deserializer=self._arriving(handler.request_deserializer))
        if not method.startswith((_OWN, _REFLECTION)):
            return handler
        shown = await self._border.knock(method, handler_call_details.invocation_metadata or ())
        if isinstance(shown, PenstockError):
            return _turned_away(shown, method, self._border)
        if method.startswith(_REFLECTION):
            return _behind(handler, shown, method, self._border)
        tolerant = _tolerant(handler.request_deserializer)
        if handler.response_streaming:
            wrapped = _streaming(handler, method, self._slow_readers, self._border, shown)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(wrapped, tolerant, handler.response_serializer)
        unary = _unary(handler, method, self._border, shown)
        return grpc.unary_unary_rpc_method_handler(unary, tolerant, handler.response_serializer)

    def _arriving(self, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def parse(data: bytes) -> Any:
            self._slow_senders.arrived()
            return deserialize(data)

        return parse


def _turned_away(error: PenstockError, method: str, border: Border) -> Handler:
    """Ends the call before a byte of its message is read: a stream is not read unless somebody asks."""

    async def refuse(requests: Any, context: Context) -> AsyncIterator[Any]:
        await _abort(context, method, error, Entry(border, method, context))
        yield  # Makes this a stream; never reached.

    return grpc.stream_stream_rpc_method_handler(refuse)


def _behind(handler: Handler, shown: Caller | None, method: str, border: Border) -> Handler:
    """A streaming handler that is not ours, for known callers."""

    async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
        entry = Entry(border, method, context)
        try:
            await entry.admit(shown)
        except PenstockError as error:
            await _abort(context, method, error, entry)
        async with aclosing(handler.stream_stream(requests, context)) as replies:
            async for reply in replies:
                yield reply
        entry.ended("OK")

    return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _code_of_cut(context: Context) -> str:
    """gRPC cancels the handler for a passed deadline and for a client that left alike."""
    left = context.time_remaining()
    cut = grpc.StatusCode.CANCELLED if left is None or left > 0 else grpc.StatusCode.DEADLINE_EXCEEDED
    return cut.name


def _unary(handler: Handler, method: str, border: Border, shown: Caller | None) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        entry = Entry(border, method, context)
        try:
            await entry.admit(shown)
            reply = await handler.unary_unary(_parsed(request), context)
            context.set_trailing_metadata(tuple(await entry.trailers()))
        except Exception as error:
            await _abort(context, method, error, entry)
        except BaseException as cut:
            entry.ended(_code_of_cut(context), cut)
            raise
        else:
            entry.ended("OK")
            return reply

    return call


def _streaming(
    handler: Handler, method: str, slow_readers: SlowReaders, border: Border, shown: Caller | None
) -> Callable[..., Any]:
    behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        task = asyncio.current_task()
        assert task is not None
        entry = Entry(border, method, context)
        try:
            await entry.admit(shown)
            argument = _parsed_stream(request) if handler.request_streaming else _parsed(request)
            async with aclosing(behaviour(argument, context)) as replies:
                async for reply in replies:
                    slow_readers.hold(task)
                    yield reply
                    slow_readers.release(task)
            context.set_trailing_metadata(tuple(await entry.trailers()))
            entry.ended("OK")
        except Exception as error:
            await _abort(context, method, error, entry)
        except BaseException as cut:
            entry.ended(_code_of_cut(context), cut)
            raise
        finally:
            slow_readers.release(task)

    return call
