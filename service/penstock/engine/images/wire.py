"""Define what the service and the process that decodes write to each other.

A request is a head, the media type and the data; a reply is a head and pixels, or the text of a refusal.
"""

from __future__ import annotations

import struct

REQUEST = struct.Struct(">BI")
"""Bytes of the media type, and of the data."""
REPLY = struct.Struct(">BIII")
"""0 or the number of a `Fault`, width, height, bytes that follow."""
READY = b"\n"
"""Written once the process can decode. See `ChildProgram`."""
