"""`penstock serve` on the scripted engine, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


@asynccontextmanager
async def service(
    directory: Path, replies: Sequence[Mapping[str, Any]], settings: Mapping[str, object]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """(process, address); killed at the end. `settings` go by `section.key`; what is no text goes as JSON."""
    script, ready = directory / "replies.json", directory / "ready"
    script.write_text(json.dumps(list(replies)))
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--engine-kind", "scripted"]
    command += ["--model", str(script), "--ready-file", str(ready)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(60):
            while not ready.exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process, ready.read_text().strip()
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
