"""Describe the machine, the time and the command of a result."""

from __future__ import annotations

import os
import platform
import socket
import sys
from datetime import UTC, datetime
from typing import Any

from penstock_bench.load.machine import cpu_name


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
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
