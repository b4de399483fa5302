"""Memory of this machine's GPUs, as nvidia-smi tells it: the driver's own tool, so that nothing needs its libraries."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass

_TOOL = "nvidia-smi"
_QUERY = ("--query-gpu=index,name,memory.used", "--format=csv,noheader,nounits")
_SECONDS = 10.0
_MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and the memory that is in use on it."""

    index: int
    name: str
    used_gib: float
    """By all processes together: in a container the driver does not tell whose it is."""


async def read() -> list[Gpu]:
    """All that the driver shows; none where there is no tool, or it fails."""
    tool = shutil.which(_TOOL)
    if tool is None:
        return []
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(tool, *_QUERY, stdout=asyncio.subprocess.PIPE, stderr=quiet)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    except TimeoutError:
        return []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return parse(out.decode(errors="replace")) if process.returncode == 0 else []


def parse(text: str) -> list[Gpu]:
    """Lines such as `0, NVIDIA H200, 71842`; a card that does not tell its memory (`[N/A]`) is left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdigit() and parts[2].isdigit():
            found.append(Gpu(int(parts[0]), parts[1], int(parts[2]) / _MIB_PER_GIB))
    return found
