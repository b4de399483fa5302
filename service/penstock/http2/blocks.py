"""Header blocks: collected from HEADERS and CONTINUATION, then read by HPACK's table of this connection."""

from __future__ import annotations

import logging
from typing import cast

import hpack

from penstock.http2.frames import PADDED, WITH_PRIORITY, ConnectionFault, ErrorCode, unpadded

# It writes header fields, credentials among them, at DEBUG.
logging.getLogger("hpack").setLevel(logging.WARNING)
# Decoded headers beyond the limit are refused by call; beyond this multiple the connection ends while decoding.
_MOST_TIMES_METADATA = 4
_MOST_FRAMES = 64


class Blocks:
    """`metadata_bytes` is what the headers of a call may hold, decoded."""

    def __init__(self, metadata_bytes: int) -> None:
        self._most_bytes = _MOST_TIMES_METADATA * metadata_bytes
        self._decoder = hpack.Decoder(self._most_bytes)
        self._pieces: list[bytes] = []
        self.stream = 0
        """Whose headers are not whole yet; 0 where there are none."""
        self.flags = 0
        """Of the frame they began with."""

    def begin(self, stream: int, flags: int, payload: bytes) -> None:
        """Raises ConnectionFault."""
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "half a priority")
            payload = payload[5:]
        self.stream, self.flags, self._pieces = stream, flags, [payload]

    def go_on(self, payload: bytes) -> None:
        """Raises ConnectionFault."""
        if self.stream == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        self._pieces.append(payload)
        if len(self._pieces) > _MOST_FRAMES or sum(map(len, self._pieces)) > self._most_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "headers without an end")

    def whole(self) -> list[tuple[bytes, bytes]]:
        """The fields. To be read even where nobody wants them, so that both tables stay in step. Raises
        ConnectionFault."""
        block, self._pieces, self.stream = b"".join(self._pieces), [], 0
        try:
            return cast("list[tuple[bytes, bytes]]", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "headers beyond all limits") from None
        except hpack.HPACKError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "headers that cannot be read") from None
