"""Decode images from stdin, one after the other, until it ends.

Run as `python -m penstock.engine.images.decoder_process LIMITS`, with `ImageLimits` as JSON. The bytes are defined in
`wire`. A signal ends the process where an image takes too much of the processor's time; more memory than its limit is
a refusal.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import BinaryIO

from PIL import Image, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin

from penstock.engine.images.decoding import Fault, ImageLimits, Refused, decode
from penstock.engine.images.wire import READY, REPLY, REQUEST

_PLUGINS = (JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin)
"""Imported at once: the process may open no file later."""


def main() -> int:
    """Decode until stdin ends. Return the exit status."""
    limits = ImageLimits(**json.loads(sys.argv[1]))
    asked, replies = sys.stdin.buffer, sys.stdout.buffer
    assert all(_PLUGINS)
    Image.preinit()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    _bound(limits)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)
    replies.write(READY)
    replies.flush()
    while head := asked.read(REQUEST.size):
        type_bytes, data_bytes = REQUEST.unpack(head)
        mime_type, data = asked.read(type_bytes).decode(), asked.read(data_bytes)
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)
        _reply(replies, mime_type, data, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return 0


def _bound(limits: ImageLimits) -> None:
    """Bound memory; let the process write no file and open none beside those it has."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + limits.memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _reply(replies: BinaryIO, mime_type: str, data: bytes, limits: ImageLimits) -> None:
    try:
        width, height, pixels = decode(data, mime_type, limits)
    except Refused as refused:
        text = refused.text.encode()
        replies.write(REPLY.pack(refused.fault, 0, 0, len(text)) + text)
    except MemoryError:
        text = b"must be decoded within the memory that is allowed, needs more"
        replies.write(REPLY.pack(Fault.LIMIT, 0, 0, len(text)) + text)
    else:
        replies.write(REPLY.pack(0, width, height, len(pixels)))
        replies.write(pixels)
    replies.flush()


if __name__ == "__main__":
    sys.exit(main())
