"""Addresses that a server listens on."""

from __future__ import annotations

import re

_MAX_PORT = 65535


def host_and_port(listen: str) -> tuple[str, int]:
    """Return the host of `host:port`, as it is written, and its port.

    Raises:
        ValueError: There is no port, or it is not a decimal number up to 65535.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > _MAX_PORT:
        raise ValueError(f"must be host:port with a port in [0, {_MAX_PORT}], got {listen!r}")
    return host, int(port)
