"""Handle every call: authentication, limits, invalid messages, errors and slow clients.

Every handler is registered with gRPC as stream to stream: such a stream is not read until its handler asks for a
message. So a caller is authenticated before its message is read, and a reply to a client that does not read can be
given up.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from penstock.admission.request_memory import RequestMemory
from penstock.config.schema import ServerSettings
from penstock.errors import (
    BadRequest,
    FieldViolation,
    MessageTooLarge,
    NotImplementedYet,
    RequestLost,
    ServiceFault,
)
from penstock.server.request_context import RequestContext
from penstock.server.rpc.call_limits import HEALTH_MESSAGE_BYTES, CallLimits
from penstock.server.rpc.call_record import CallMiddleware, CallRecord
from penstock.server.rpc.message_io import Incoming, Outgoing
from penstock.server.rpc.status import DETAILS_KEY, status_of
from penstock.server.service_context import Context

log = logging.getLogger(__name__)
# gRPC's Python client reports INTERNAL where a call ends while it still sends a message.
_GRACE_SECONDS = 0.1
_QUIET_SECONDS = 0.01
# gRPC ends a read and cancels the handler a moment later.
_LOST_SECONDS = 0.1
_OWN = "/penstock.v1."
_GENERATION = "/penstock.v1.GenerationService/"
_REFLECTION = "/grpc.reflection."
_UNKNOWN_METHOD = "unknown"  # The client's own name for it is not bounded, so it cannot be a label.
_SHOWN_METHOD_CHARACTERS = 100
_SMALL_MESSAGE_BYTES = 64 * 1024
# A grpc.RpcMethodHandler; its published types are those of the synchronous server.
Handler: TypeAlias = Any
Behaviour: TypeAlias = Callable[[Any, Any], Any]


class IncomingCall:
    """Hold one running call: its handler, its messages and its size limits."""

    def __init__(
        self, method: str, handler: Handler, context: Context, settings: ServerSettings, message_bytes: int
    ) -> None:
        self.asked_method = method
        self.method = _UNKNOWN_METHOD if handler is _NO_HANDLER else method
        self.handler = handler
        self.context = context
        # Read now: gRPC may crash when it is asked for the peer of a cancelled call.
        self.peer = str(context.peer())
        self.incoming = Incoming(context)
        self.outgoing = Outgoing(context, settings.slow_reader_seconds)
        self.message_bytes = (
            message_bytes
            if self.method.startswith(_GENERATION)
            else _SMALL_MESSAGE_BYTES
            if self.method.startswith((_OWN, _REFLECTION))
            else HEALTH_MESSAGE_BYTES
        )

    @property
    def behaviour(self) -> Behaviour:
        """Return the servicer's method."""
        handler = self.handler
        found: Behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        return found

    def check_size(self, size: int) -> None:
        """Raise MessageTooLarge for a first message above the size limit."""
        _check_size(size, self.message_bytes)

    def check_later_size(self, size: int) -> None:
        """Raise MessageTooLarge for a later message of a stream, which holds no prompt and has a smaller limit."""
        _check_size(size, min(self.message_bytes, _SMALL_MESSAGE_BYTES))

    @property
    def has_expired(self) -> bool:
        """Return whether the deadline has passed."""
        left = self.context.time_remaining()
        return left is not None and left <= 0

    def parse(self, message: bytes) -> Any:
        """Return the message. Raise BadRequest for bytes that are none."""
        try:
            return self.handler.request_deserializer(message)
        except DecodeError:
            raise BadRequest(
                FieldViolation(
                    "", f"{len(message)} bytes are not a valid message; strings must be UTF-8", "INVALID_FIELD"
                )
            ) from None


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Apply the middleware to this API and to reflection. Health checks need no authentication.

    Without a middleware every method is open: on the port for health checks.
    """

    def __init__(self, settings: ServerSettings, middleware: CallMiddleware | None, message_bytes: int) -> None:
        self._settings = settings
        self._middleware = middleware
        self._message_bytes = message_bytes
        self._limits = CallLimits(settings, message_bytes)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of a call."""
        handler, method = await continuation(handler_call_details), str(handler_call_details.method)
        middleware = self._middleware if method.startswith((_OWN, _REFLECTION)) else None
        if handler is None:
            handler, middleware = _NO_HANDLER, None

        async def answer(_: Any, context: Context) -> None:
            call = IncomingCall(method, handler, context, self._settings, self._message_bytes)
            try:
                await (self._serve_open(call) if middleware is None else self._serve_known(middleware, call))
            finally:
                call.incoming.close()
                call.outgoing.close()

        return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)

    async def _serve_open(self, call: IncomingCall) -> None:
        """Answer a call without authentication. The middleware records refused calls only."""
        try:
            with self._limits.open_call(call.peer):
                if call.method == _UNKNOWN_METHOD:
                    raise _unknown_method(call.asked_method)
                async with AsyncExitStack() as stack:
                    request = await self._request(call, self._limits.strangers, call.peer, stack)
                    await self._answer(call, request, call.context, stack)
        except Exception as error:
            record = None if self._middleware is None else CallRecord(self._middleware, call.method, call.context, None)
            await self._refuse(call, error, record, call.peer)

    async def _serve_known(self, middleware: CallMiddleware, call: IncomingCall) -> None:
        """Authenticate and authorize the caller, then answer."""
        shown = await middleware.authenticate(call.method, _metadata(call.context))
        record = CallRecord(middleware, call.method, call.context, shown.caller)
        try:
            if shown.refusal is not None:
                raise shown.refusal
            await record.authorize(shown.caller)
            key = record.caller.limit_key
            with self._limits.call(key):
                try:
                    async with AsyncExitStack() as stack:
                        request = await self._request(call, self._limits.requests, record.caller.id, stack)
                        await self._answer(call, request, record.request_context(), stack)
                except Exception as error:
                    await self._refuse(call, error, record, key)
                    return
            call.context.set_trailing_metadata(tuple(await record.trailers()))
            record.ended("OK")
        except Exception as error:
            await self._refuse(call, error, record, call.peer)
        except BaseException as cut:
            self._cut(call, record, cut)
            raise

    async def _answer(
        self, call: IncomingCall, request: Any, context: RequestContext | Context, stack: AsyncExitStack
    ) -> None:
        """Run the method and write its replies, but not the status. Health and reflection get gRPC's own context."""
        outcome = call.behaviour(request, context)
        if not call.handler.response_streaming:
            reply = await outcome
            if reply is not None:  # Else the method has set the status.
                await call.outgoing.write(reply)
            return
        replies = await stack.enter_async_context(aclosing(outcome))
        async for reply in replies:
            await call.outgoing.write(reply)

    async def _request(self, call: IncomingCall, memory: RequestMemory, key: str, stack: AsyncExitStack) -> Any:
        """Return the message, or an iterator over all of them. Room for the first one is held until `stack` ends."""
        seconds = self._settings.request_seconds
        reservation = await stack.enter_async_context(memory.reserve(key, seconds))
        message = await call.incoming.next(seconds, reservation.lost)
        size = 0 if message is None else len(message)
        memory.arrived(reservation, size)
        if size > call.message_bytes:
            message = b""  # The error's traceback keeps this frame alive.
        call.check_size(size)
        if message is None:
            await asyncio.sleep(_LOST_SECONDS)  # Cancelled here if the client left or gRPC refused the message.
            raise BadRequest(FieldViolation("", "the call ended without a message; send one", "MISSING_FIELD"))
        first = call.parse(message)
        if not call.handler.request_streaming:
            return first
        sending = stack.enter_context(ExitStack())
        sending.enter_context(self._limits.request_stream())
        return _stream(first, call, sending)

    async def _refuse(self, call: IncomingCall, error: Exception, record: CallRecord | None, key: str) -> None:
        """Set the status of `error`, which gRPC sends when the handler returns.

        `context.abort` would keep its exception with the call, and by its frames the request: a reference cycle that
        lives until Python's collector runs. A few hundred large refused requests held a gigabyte.
        """
        code, message, status = status_of(error)
        if record is not None:
            record.ended(code.name, error)
        if code is grpc.StatusCode.INTERNAL:
            # Never the exception's own text: it may contain prompt or output.
            cause = error.__cause__ if isinstance(error, ServiceFault) and error.__cause__ else error
            frames = "".join(traceback.format_tb(cause.__traceback__))
            log.error("%s failed with %s\n%s", call.method, type(cause).__name__, frames)
        if call.outgoing.is_stuck:
            with self._limits.unread_stream(key):
                await call.outgoing.until_taken()
        elif call.handler.request_streaming or call.method == _UNKNOWN_METHOD:  # which may stream requests
            await self._let_finish_sending(call, key)
        call.incoming.close()
        trailers = () if record is None else tuple(await record.trailers())
        _clear_frames(error)
        call.context.set_trailing_metadata((*trailers, (DETAILS_KEY, status)))
        call.context.set_details(message)
        call.context.set_code(code)

    async def _let_finish_sending(self, call: IncomingCall, key: str) -> None:
        memory = self._limits.strangers
        if memory.has_room:
            async with memory.reserve(key, _GRACE_SECONDS):
                await call.incoming.until_quiet(
                    _QUIET_SECONDS if call.incoming.count else _GRACE_SECONDS, _GRACE_SECONDS
                )

    def _cut(self, call: IncomingCall, record: CallRecord, cut: BaseException) -> None:
        """Record a cancelled call. gRPC cancels the handler alike for a passed deadline and for a client that left."""
        code = grpc.StatusCode.DEADLINE_EXCEEDED if call.has_expired else grpc.StatusCode.CANCELLED
        if not call.incoming.count:
            cut = RequestLost("the client left before its request was complete, or gRPC refused the request")
        record.ended(code.name, cut)


def _clear_frames(error: BaseException | None) -> None:
    """Free what the frames of an error and of its causes hold.

    contextlib's AsyncExitStack keeps an error that replaced another one in a frame of its own traceback: a cycle.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise MessageTooLarge(
            f"the message must have at most {most} bytes, got {size}; send a smaller one", bytes=size, max_bytes=most
        )


def _unknown_method(asked: str) -> NotImplementedYet:
    shown = asked[:_SHOWN_METHOD_CHARACTERS]
    return NotImplementedYet(
        f"the method must be one of the services in penstock.v1, got {shown!a}; check its name and the version",
        rpc=shown.removeprefix("/"),
    )


async def _unimplemented(request: bytes, context: Context) -> None:
    """Stand for methods that do not exist; never runs."""


_NO_HANDLER: Handler = grpc.unary_unary_rpc_method_handler(_unimplemented, bytes)


async def _stream(first: Any, call: IncomingCall, sending: ExitStack) -> AsyncIterator[Any]:
    """Yield the first message and those that follow; close `sending` once no more can come."""
    yield first
    async for message in call.incoming.all():
        call.check_later_size(len(message))
        yield call.parse(message)
    sending.close()


def _metadata(context: Context) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(context.invocation_metadata() or ())
