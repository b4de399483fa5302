"""Which machine a result was taken on."""

from __future__ import annotations

import os
import platform
from typing import Any

from penstock.load.machine import cpu_name


def machine() -> dict[str, Any]:
    """CPU by its own name, cores that this process may use, and how busy they were just before."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "load_1min": os.getloadavg()[0],
    }
