"""Read the memory of this machine's GPUs from nvidia-smi, the driver's own tool, so that no library is needed."""

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
    """Memory in use by all processes: in a container the driver does not say which ones."""


async def read() -> list[Gpu]:
    """Return all GPUs that the driver shows; none if there is no nvidia-smi, or it fails."""
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
    """Parse lines such as `0, NVIDIA H200, 71842`. A card without a figure (`[N/A]`) is left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdigit() and parts[2].isdigit():
            found.append(Gpu(int(parts[0]), parts[1], int(parts[2]) / _MIB_PER_GIB))
    return found
