"""Choose what a process that reads callers' bytes gets to know of the service's environment."""

from __future__ import annotations

import os

ALLOWED = frozenset(
    {
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8"),
    }
)
"""What Python needs to start and to find its packages. All else stays behind: keys, tokens, addresses."""


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of such a process: what is `ALLOWED`, and `more`."""
    return {name: value for name, value in os.environ.items() if name in ALLOWED} | more
