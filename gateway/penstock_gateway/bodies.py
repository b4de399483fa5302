"""Read the bodies of requests under bounds, and decode them with the path of what is wrong."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.requests import Request

from penstock_gateway.errors import REQUEST, SERVER, GatewayError, Kind
from penstock_gateway.settings import Settings
from penstock_gateway.timers import ClientTimer

T = TypeVar("T")
_BYTES_PER_ITEM = 200
"""What one item of a list or an object may become in memory while a request is read; a number needs 40."""
_TOO_LARGE = Kind(413, REQUEST, "request_too_large")
_WRONG_TYPE = Kind(415, REQUEST, "unsupported_media_type")
_TOO_SLOW = Kind(408, REQUEST, "request_timeout", retry=False)
_FULL = Kind(503, SERVER, "overloaded")
_PATH = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_MAX_NAME = 64


@dataclass(slots=True)
class BodyMemory:
    """Count the bytes of requests that are held, over all requests.

    Attributes:
        max_bytes: Most bytes.
        held_bytes: Bytes that are held now.
    """

    max_bytes: int
    held_bytes: int = 0


class Held:
    """Count what one request holds, until `release`.

    Attributes:
        size: Bytes.
    """

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.size = 0

    def add(self, size: int) -> None:
        """Count more bytes; fewer where `size` is negative. Raises GatewayError where all requests hold too many."""
        memory = self._memory
        if size > 0 and memory.held_bytes + size > memory.max_bytes:
            text = f"the gateway holds {memory.held_bytes} bytes of requests, of at most {memory.max_bytes}: try again"
            raise GatewayError(text, kind=_FULL, reason="OVERLOADED", retry_after_seconds=1.0)
        memory.held_bytes += size
        self.size += size

    def release(self) -> None:
        """Count nothing any more."""
        self.add(-self.size)


async def read_body(request: Request, settings: Settings, held: Held) -> bytes:
    """Return the whole body, counted in `held`.

    Raises:
        GatewayError: The body is no JSON by its type, too large or too slow, or there is no memory for it.
        ClientDisconnect: The client left.
    """
    _check_headers(request, settings)
    chunks: list[bytes] = []
    try:
        async with _client_timeout(settings.request_seconds):
            async for chunk in request.stream():
                if held.size + len(chunk) > settings.max_body_bytes:
                    raise _too_large(settings)
                held.add(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        text = f"the body did not arrive within {settings.request_seconds:g} s"
        raise GatewayError(text, kind=_TOO_SLOW, reason="CLIENT_TOO_SLOW") from None
    return b"".join(chunks)


@asynccontextmanager
async def _client_timeout(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError where the block takes the client longer."""
    async with asyncio.timeout(None) as limit:
        timer = ClientTimer(seconds, lambda: limit.reschedule(asyncio.get_running_loop().time()))
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def decoding(body: bytes, settings: Settings, held: Held) -> Iterator[None]:
    """Count what the items of JSON become in memory while they are converted.

    Raises:
        GatewayError: There are too many, or there is no memory for them.
    """
    items = sum(body.count(one) for one in (b"[", b"{", b","))
    if items > settings.max_json_items:
        text = f"the body must have at most {settings.max_json_items} commas and opening brackets, got {items}"
        raise GatewayError(text, kind=_TOO_LARGE, reason="LIMIT_EXCEEDED")
    size = _BYTES_PER_ITEM * items
    held.add(size)
    try:
        yield
    finally:
        held.add(-size)


def _check_headers(request: Request, settings: Settings) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another origin may send text/plain unasked. For JSON its browser asks first, and gets no permission.
    if kind != "application/json":
        raise GatewayError("content-type must be application/json", kind=_WRONG_TYPE)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise GatewayError("content-encoding must be absent: send the body as it is", kind=_WRONG_TYPE)
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > settings.max_body_bytes:
        raise _too_large(settings)


def _too_large(settings: Settings) -> GatewayError:
    text = f"the body must have at most {settings.max_body_bytes} bytes"
    return GatewayError(text, kind=_TOO_LARGE, reason="MESSAGE_TOO_LARGE")


def decode(data: bytes | msgspec.Raw, kind: type[T], path: str = "") -> T:
    """Return JSON as a value of a type.

    Args:
        data: JSON.
        kind: A type that msgspec can decode.
        path: Where the data is in the request, for errors; empty: the whole request.

    Raises:
        GatewayError: It is no JSON, or no such value. The text names the field and never shows text of the caller
            but unknown names.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_value(str(error), path, kind) from None
    except RecursionError:
        raise GatewayError("the JSON is nested too deep", param=path or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise GatewayError("the body is no valid JSON in UTF-8", param=path or None) from None


def _wrong_value(text: str, path: str, kind: object) -> GatewayError:
    found = _PATH.fullmatch(text)
    what, inside = (found[1], found[2]) if found else (text, "")
    place = ".".join(part for part in (path, inside) if part).replace(".[", "[")
    unknown, missing = _UNKNOWN_FIELD.fullmatch(what), _MISSING_FIELD.fullmatch(what)
    if unknown:
        names = getattr(kind, "__struct_fields__", ()) if not inside else ()
        return _unknown_field(place, unknown[1], names)
    if missing:
        name = f"{place}.{missing[1]}".lstrip(".")
        return GatewayError(f"{name} is required", param=name, reason="MISSING_FIELD")
    return GatewayError(f"{place or 'the body'}: {what[:1].lower()}{what[1:]}", param=place or None)


def _unknown_field(place: str, name: str, allowed: Sequence[str]) -> GatewayError:
    shown = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."
    near = difflib.get_close_matches(shown, allowed, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    param = f"{place}.{shown}".lstrip(".")
    text = f"unknown field {param!r}: it is refused, not ignored{hint}"
    return GatewayError(text, kind=Kind(400, REQUEST, "unknown_parameter"), param=param)
