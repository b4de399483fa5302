"""Every call passes here: who it is from, bytes that are no message (INVALID_ARGUMENT), errors (statuses)."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from penstock.border import Border, Entry
from penstock.errors import BadRequest, FieldViolation, PenstockError, ServiceFault
from penstock.http2.call import Call
from penstock.http2.headers import Refused
from penstock.status import DETAILS_KEY, status_of

log = logging.getLogger(__name__)
# gRPC's Python client says INTERNAL where it hears of the end while it sends a message.
_PATIENCE_SECONDS = 0.1
_QUIET_SECONDS = 0.01
_OWN = "/penstock.v1."
_REFLECTION = "/grpc.reflection."
# grpc.RpcMethodHandler and GenericRpcHandler, whose published types are those of another server.
Handler: TypeAlias = Any
GenericHandler: TypeAlias = Any


class _Asked(NamedTuple):
    """What generated code wants to know to find a handler."""

    method: str


class Interceptor:
    """Answers the calls of the services that were added to it, as generated code adds them to a `grpc.Server`.

    This API and reflection stand behind the border; health is open to all.
    """

    def __init__(self, border: Border | None) -> None:
        self._border = border
        self._generic: list[GenericHandler] = []
        self._handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[GenericHandler]) -> None:
        self._generic += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The same handlers again, as generated code adds them for servers that look no further."""

    def _handler(self, method: str) -> Handler:
        handler = self._handlers.get(method)
        if handler is None:
            for generic in self._generic:
                handler = generic.service(_Asked(method))
                if handler is not None:
                    self._handlers[method] = handler
                    break
        return handler

    async def serve(self, call: Call) -> None:
        """Answers one call."""
        handler = self._handler(call.method)
        if handler is None:
            await call.heard(_PATIENCE_SECONDS)
            call.end(grpc.StatusCode.UNIMPLEMENTED, "there is no such method here")
        elif self._border is None or not call.method.startswith((_OWN, _REFLECTION)):
            await _answer(call, handler)
            call.end()
        else:
            await self._serve_behind(self._border, call, handler)

    async def _serve_behind(self, border: Border, call: Call, handler: Handler) -> None:
        # Before the message is read: who may not ask is not listened to.
        shown = await border.knock(call.method, call.invocation_metadata())
        entry = Entry(border, call.method, call)
        try:
            if isinstance(shown, PenstockError):
                raise shown
            await entry.admit(shown)
            await _answer(call, handler)
            trailers = tuple(await entry.trailers())
            entry.ended("OK")
            call.end(metadata=trailers)
        except Refused:
            raise
        except Exception as error:
            await _end(call, error, entry, streams=handler.request_streaming)
        except BaseException as cut:
            # The handler is cancelled for a passed deadline and for a client that left alike.
            code = grpc.StatusCode.DEADLINE_EXCEEDED if call.has_expired else grpc.StatusCode.CANCELLED
            entry.ended(code.name, cut)
            raise


async def _answer(call: Call, handler: Handler) -> None:
    """Everything but the status."""
    parse, pack = handler.request_deserializer, handler.response_serializer
    if handler.request_streaming:
        request = _parsed_stream(call, parse)
        behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        request = _parsed(await call.message(), parse)
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    if not handler.response_streaming:
        await call.send(pack(await behaviour(request, call)))
        return
    replies = behaviour(request, call)
    if inspect.isawaitable(replies):  # It writes by itself.
        await replies
        return
    async with aclosing(replies):
        async for reply in replies:
            await call.send(pack(reply))


def _parsed(message: bytes | None, parse: Any) -> Any:
    if message is None:
        raise BadRequest(FieldViolation("", "the call ends before its message", "MISSING_FIELD"))
    try:
        return parse(message)
    except DecodeError:
        raise BadRequest(
            FieldViolation("", "the bytes are not a valid message; strings must be UTF-8", "INVALID_FIELD")
        ) from None


async def _parsed_stream(call: Call, parse: Any) -> AsyncIterator[Any]:
    async for message in call.messages():
        yield _parsed(message, parse)


async def _end(call: Call, error: Exception, entry: Entry, *, streams: bool) -> None:
    code, message, status = status_of(error)
    entry.ended(code.name, error)
    if code is grpc.StatusCode.INTERNAL:
        # Never the exception's own text: it may hold prompt or output.
        cause = error.__cause__ if isinstance(error, ServiceFault) and error.__cause__ else error
        frames = "".join(traceback.format_tb(cause.__traceback__))
        log.error("%s failed with %s\n%s", call.method, type(cause).__name__, frames)
    await call.heard(_PATIENCE_SECONDS)
    if streams:
        await call.quiet(_QUIET_SECONDS, _PATIENCE_SECONDS)
    call.end(code, message, (*await entry.trailers(), (DETAILS_KEY, status)))
