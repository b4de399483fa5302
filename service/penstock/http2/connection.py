"""One connection: frames in, calls out, and the limits that hold against a peer who means harm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from penstock.http2 import frames as h2
from penstock.http2.blocks import Blocks
from penstock.http2.call import Call
from penstock.http2.frames import ConnectionFault, ErrorCode, Setting, StreamFault
from penstock.http2.headers import RESPONSE, Head, Malformed, Refused, head_of, no_grpc, trailers
from penstock.http2.incoming import RECEIVE_WINDOW
from penstock.http2.patience import RESET_WEIGHT, Patience
from penstock.http2.peers import names_of

if TYPE_CHECKING:
    from penstock.http2.endpoint import Endpoint

Serve = Callable[[Call], Awaitable[None]]
_RECEIVE_WINDOW = 4 * 1024 * 1024
_MOST_UNSENT_BYTES = 1024 * 1024  # of receipts, for a peer that does not read them
_MOST_GATHERED_BYTES = 64 * 1024  # before it is sent, and may be held
_CLOSING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection, each call on it, and all of them."""

    message_bytes: int
    metadata_bytes: int
    streams: int
    connections: int
    request_seconds: float
    """To greet, and to send the whole of a request."""
    slow_reader_seconds: float
    idle_seconds: float = 30 * 60.0
    """Without a call."""
    keepalive_seconds: float = 60.0
    """Of silence, until it is asked whether the peer is there; it has a third of that to say so."""
    age_seconds: float | None = None
    age_grace_seconds: float = 600.0


class Connection(asyncio.Protocol):
    """`serve` answers each call, in a task of its own."""

    def __init__(self, endpoint: Endpoint, serve: Serve, limits: Limits) -> None:
        self._endpoint = endpoint
        self._serve = serve
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.peer = "unknown"
        """As gRPC writes it: `ipv4:127.0.0.1:50051`, `ipv6:%5B::1%5D:50051`."""
        self.tls_peer: Mapping[str, Sequence[bytes]] = {}
        self._rest = b""
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._blocks = Blocks(limits.metadata_bytes)
        self._calls: dict[int, Call] = {}
        self._last_stream = self._last_taken = 0
        """The last one that began, and the last one that is answered: another one after a farewell."""
        self.window = h2.DEFAULT_WINDOW
        """Bytes that the client would still take, of all calls together."""
        self._stream_window = h2.DEFAULT_WINDOW
        self._receive_window = _RECEIVE_WINDOW
        self.is_writable = True
        self.blocked: dict[Call, None] = {}
        """Calls that wait for room."""
        self._has_greeted = False
        self._began = self._heard_at = self._idle_since = time.monotonic()
        self._asked_at: float | None = None
        self._closing_since: float | None = None
        self._is_leaving = False
        self.sent_frames = 0
        """DATA frames that went out."""
        self._patience = Patience(self._began)

    # The socket's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.peer = _address(transport.get_extra_info("peername"))
        tls = transport.get_extra_info("ssl_object")
        self.tls_peer = {} if tls is None else names_of(tls.getpeercert())
        if not self._endpoint.joined(self):
            self._transport.abort()
            return
        greeting = {
            Setting.MAX_CONCURRENT_STREAMS: self._limits.streams,
            Setting.INITIAL_WINDOW_SIZE: RECEIVE_WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: self._limits.metadata_bytes,
        }
        self.write(h2.settings(greeting) + h2.window_update(0, _RECEIVE_WINDOW - h2.DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing_since = self._closing_since or time.monotonic()
        self._transport = None
        for call in list(self._calls.values()):
            call.gone()
        self._endpoint.left(self)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._wake()

    def write(self, data: bytes) -> None:
        """Sends it when the event loop comes round: what the calls of one engine step say is one system call then,
        and so are a call's last message and its status."""
        if self._closing_since is None:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(data)
            self._unsent_bytes += len(data)
            if self._unsent_bytes > _MOST_GATHERED_BYTES:
                self._flush()

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if self._transport is not None and unsent:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def write_data(self, stream: int, piece: bytes) -> None:
        self.sent_frames += 1
        self.write(h2.frame(h2.DATA, 0, stream, piece))

    def _reply(self, data: bytes) -> None:
        """To a frame that asks for one. Who asks and does not read is not worth the memory."""
        if self._transport is not None and self._transport.get_write_buffer_size() > _MOST_UNSENT_BYTES:
            self._transport.abort()
        else:
            self.write(data)

    def _wake(self) -> None:
        for call in list(self.blocked):
            call.look_again()

    # Frames.

    def data_received(self, data: bytes) -> None:
        if self._closing_since is not None:
            return
        self._heard_at = time.monotonic()
        self._asked_at = None
        try:
            self._rest = self._read(self._rest + data if self._rest else data)
        except ConnectionFault as fault:
            self.close(fault.code, str(fault))

    def _read(self, data: bytes) -> bytes:
        """Takes every whole frame; what is left."""
        at, size = 0, len(data)
        if not self._has_greeted:
            if data[: len(h2.PREFACE)] != h2.PREFACE[:size]:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this is an HTTP/2 server")
            if size < len(h2.PREFACE):
                return data
            self._has_greeted, at = True, len(h2.PREFACE)
        while size - at >= h2.HEAD_BYTES:
            length = int.from_bytes(data[at : at + 3], "big")
            if length > h2.MAX_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame of more than 16,384 bytes")
            end = at + h2.HEAD_BYTES + length
            if end > size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
            try:
                self._take(data[at + 3], data[at + 4], stream, data[at + h2.HEAD_BYTES : end])
            except StreamFault as fault:
                self._reset(fault.stream, fault.code)
            if self._closing_since is not None:
                return b""
            at = end
        return data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._blocks.stream and (kind != h2.CONTINUATION or stream != self._blocks.stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "something else inside of headers")
        if kind == h2.DATA:
            self._on_data(flags, stream, payload)
        elif kind == h2.HEADERS:
            self._on_headers(flags, stream, payload)
        elif kind == h2.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == h2.WINDOW_UPDATE:
            self._on_window_update(stream, payload)
        elif kind == h2.RST_STREAM:
            self._on_reset(stream, payload)
        elif kind == h2.SETTINGS:
            self._on_settings(flags, stream, payload)
        elif kind == h2.PING:
            self._on_ping(flags, stream, payload)
        elif kind == h2.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "clients do not push")
        elif kind == h2.GOAWAY:
            _must(stream == 0 and len(payload) >= 8, "a farewell that is none")
        else:  # Priorities mean nothing here, and what is unknown is passed over, as the RFC wants it.
            self._patience.idle_frame()

    def _on_data(self, flags: int, stream: int, payload: bytes) -> None:
        weight = len(payload)
        call = self._calls.get(stream)
        if call is None and (stream == 0 or stream > self._last_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "data of a call that did not begin")
        self._receive_window -= weight
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than there was room for")
        if self._receive_window <= _RECEIVE_WINDOW // 2:
            self._reply(h2.window_update(0, _RECEIVE_WINDOW - self._receive_window))
            self._receive_window = _RECEIVE_WINDOW
        if not weight and not flags & h2.END_STREAM:
            self._patience.idle_frame()
        if flags & h2.PADDED:
            payload = h2.unpadded(payload)
        if call is not None:  # else it has ended here while this was on its way
            call.take(payload, weight, ends=bool(flags & h2.END_STREAM))
            if call.has_arrived:
                self._endpoint.arrived(call)
            else:
                self._endpoint.grew(call, weight)

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        _must(stream % 2 == 1, "headers of no client's stream")
        self._blocks.begin(stream, flags, payload)
        if flags & h2.END_HEADERS:
            self._headers_are_whole()

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        self._blocks.go_on(payload)
        if flags & h2.END_HEADERS:
            self._headers_are_whole()

    def _headers_are_whole(self) -> None:
        stream, flags = self._blocks.stream, self._blocks.flags
        pairs = self._blocks.whole()
        ends = bool(flags & h2.END_STREAM)
        if (call := self._calls.get(stream)) is not None:
            if not ends:
                raise StreamFault(stream, ErrorCode.PROTOCOL_ERROR)
            call.end_of_input()
            self._endpoint.arrived(call)
        elif stream > self._last_stream:
            self._last_stream = stream
            if self._is_leaving:
                return  # The farewell said that it would not be looked at: the client may ask elsewhere.
            self._last_taken = stream
            self._begin(stream, pairs, ends=ends)

    def _begin(self, stream: int, pairs: list[tuple[bytes, bytes]], *, ends: bool) -> None:
        if len(self._calls) >= self._limits.streams:
            raise StreamFault(stream, ErrorCode.REFUSED_STREAM)
        try:
            head = head_of(pairs, self._limits.metadata_bytes)
        except Malformed:
            raise StreamFault(stream, ErrorCode.PROTOCOL_ERROR) from None
        except Refused as refused:
            self._turn_away(stream, refused, ends=ends)
            return
        self._open(stream, head, ends=ends)

    def _open(self, stream: int, head: Head, *, ends: bool) -> None:
        call = Call(self, stream, head, self._stream_window, self._limits.message_bytes)
        self._calls[stream] = call
        if ends:
            call.end_of_input()
        else:
            self._endpoint.awaited(call)
        call.start(self._loop.create_task(self._serve(call)))  # type: ignore[arg-type]

    def _turn_away(self, stream: int, refused: Refused, *, ends: bool) -> None:
        status = RESPONSE if refused.http_status == 200 else no_grpc(refused.http_status)
        self.write(h2.header_frames(stream, status + trailers(refused.code, refused.said), ends=True))
        if not ends:
            self.write(h2.reset(stream, ErrorCode.NO_ERROR))

    def _on_window_update(self, stream: int, payload: bytes) -> None:
        _must(len(payload) == 4, "half a window", ErrorCode.FRAME_SIZE_ERROR)
        self._patience.idle_frame()
        size = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if stream == 0:
            _must(size > 0, "a window that does not open")
            self.window += size
            _must(self.window <= h2.MOST_WINDOW, "a window beyond 2^31-1", ErrorCode.FLOW_CONTROL_ERROR)
            self._wake()
        elif (call := self._calls.get(stream)) is not None:
            if size == 0:
                raise StreamFault(stream, ErrorCode.PROTOCOL_ERROR)
            call.window += size
            if call.window > h2.MOST_WINDOW:
                raise StreamFault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            call.look_again()
        else:
            _must(stream <= self._last_stream, "a window of a call that did not begin")

    def _on_reset(self, stream: int, payload: bytes) -> None:
        _must(len(payload) == 4, "half a reset", ErrorCode.FRAME_SIZE_ERROR)
        _must(0 < stream <= self._last_stream, "a reset of a call that did not begin")
        call = self._calls.get(stream)
        self._patience.idle_frame(RESET_WEIGHT if call is not None and not call.has_answered else 1)
        if call is not None:
            call.gone()

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:
        _must(stream == 0, "settings of a stream")
        if flags & h2.ACK:
            _must(not payload, "settings in a receipt", ErrorCode.FRAME_SIZE_ERROR)
            return
        self._patience.idle_frame()
        for key, value in h2.settings_in(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                    _must(call.window <= h2.MOST_WINDOW, "a window beyond 2^31-1", ErrorCode.FLOW_CONTROL_ERROR)
                self._stream_window = value
                self._wake()
        self._reply(h2.frame(h2.SETTINGS, h2.ACK, 0))

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        _must(stream == 0, "a ping of a stream")
        _must(len(payload) == 8, "half a ping", ErrorCode.FRAME_SIZE_ERROR)
        if flags & h2.ACK:
            return
        self._patience.pinged(time.monotonic(), self.sent_frames)
        self._reply(h2.frame(h2.PING, h2.ACK, 0, payload))

    # Its life.

    def is_over(self, call: Call) -> None:
        """A call has ended."""
        self._calls.pop(call.stream, None)
        self._endpoint.arrived(call)
        if not self._calls:
            self._idle_since = time.monotonic()
            if self._is_leaving:
                self._close()

    def _reset(self, stream: int, code: ErrorCode) -> None:
        call = self._calls.get(stream)
        if call is not None:
            call.cut(code)
        else:
            self.write(h2.reset(stream, code))

    def leave(self) -> None:
        """Takes no more calls, and ends with the last one."""
        if not self._is_leaving:
            self._is_leaving = True
            self.write(h2.goaway(self._last_taken, ErrorCode.NO_ERROR))
        if not self._calls:
            self._close()

    def close(self, code: ErrorCode, said: str) -> None:
        """Ends it, and every call on it, once what was written is out."""
        self.write(h2.goaway(self._last_taken, code, said))
        self._close()
        for call in list(self._calls.values()):
            call.gone()

    def _close(self) -> None:
        if self._closing_since is None:
            self._flush()
            self._closing_since = time.monotonic()
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def look(self, now: float) -> None:
        """Every second: who is late, who has been silent, what is forgiven."""
        limits = self._limits
        self._patience.forgive(now, self.sent_frames)
        for call in [call for call in self.blocked if now - (call.blocked_since or now) > limits.slow_reader_seconds]:
            self._endpoint.is_late("took no message", limits.slow_reader_seconds)
            call.cut(ErrorCode.CANCEL)
        if self._closing_since is not None:
            if now - self._closing_since > _CLOSING_SECONDS:
                self.abort()
        elif not self._has_greeted:
            if now - self._began > limits.request_seconds:
                self.abort()
        elif not self._calls and now - self._idle_since > limits.idle_seconds:
            self.leave()
        else:
            self._look_at_age(now)
            self._look_for_life(now)

    def _look_at_age(self, now: float) -> None:
        most = self._limits.age_seconds
        if most is None:
            return
        # Connections that came together need not go together.
        age = now - self._began - most * (0.9 + 0.2 * (id(self) % 64) / 64)
        if age > self._limits.age_grace_seconds:
            self.close(ErrorCode.NO_ERROR, "max_age")
        elif age > 0:
            self.leave()

    def _look_for_life(self, now: float) -> None:
        silent = self._limits.keepalive_seconds
        if self._asked_at is not None:
            if now - self._asked_at > silent / 3:
                self.abort()
        elif now - self._heard_at > silent:
            self._asked_at = now
            self._reply(h2.frame(h2.PING, 0, 0, b"penstock"))


def _address(peername: object) -> str:
    if not isinstance(peername, tuple):
        return "unknown"
    host, port = peername[:2]
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _must(holds: bool, said: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
    if not holds:
        raise ConnectionFault(code, said)
