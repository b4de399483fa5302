"""Describe the machine, the time and the command of a result."""

from __future__ import annotations

import os
import platform
import random
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock_bench.load.machine import cpu_name

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT, _TRIES = 10_000, 100


def machine() -> dict[str, Any]:
    """Return the CPU's name, the cores that this process may use, and their load in the last minute."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "load_1min": os.getloadavg()[0],
    }


def about(module: str) -> dict[str, Any]:
    """Return the command, the date and the machine, for a result that is kept."""
    command = " ".join(["python -m", module, *sys.argv[1:]])
    return {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}


def free_port() -> int:
    """Return a free port of loopback, for a process that is about to listen there.

    It is below those that the kernel gives to outgoing connections: one of these could take the port first.
    """
    lowest = int(_PORT_RANGE.read_text().split()[0]) if _PORT_RANGE.exists() else 0
    for port in random.sample(range(_LOWEST_PORT, lowest), _TRIES) if lowest > _LOWEST_PORT + _TRIES else ():
        if _binds(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binds(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True
