"""Find the GPUs of this machine by nvidia-smi, the driver's own tool, or say in one line what is missing.

It needs the standard library alone: `make ENGINE=gpu` runs it before it installs anything.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass

MIN_CAPABILITY = (8, 0)
NEEDED = "an NVIDIA GPU of compute capability 8.0 or above and its driver"
_QUERY = ("--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits")
_SECONDS = 30.0
_MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, as its driver describes it."""

    name: str
    driver: str
    memory_gib: float
    compute_capability: str


class NoGpu(Exception):
    """Report in one line what is needed, and what was found instead."""


def find() -> tuple[Card, ...]:
    """Return this machine's GPUs that vLLM can use. Raises NoGpu."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise NoGpu(f"needed: {NEEDED}; found: no nvidia-smi on PATH")
    try:
        done = subprocess.run([tool, *_QUERY], capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGpu(f"needed: {NEEDED}; found: nvidia-smi, which failed ({type(error).__name__})") from None
    cards = parse(done.stdout) if done.returncode == 0 else ()
    if not cards:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        raise NoGpu(f"needed: {NEEDED}; found: no GPU, nvidia-smi says: {said[0]}")
    usable = tuple(card for card in cards if _capability(card) >= MIN_CAPABILITY)
    if not usable:
        raise NoGpu(f"needed: {NEEDED}; found: {cards[0].name} of compute capability {cards[0].compute_capability}")
    return usable


def parse(text: str) -> tuple[Card, ...]:
    """Parse lines such as `NVIDIA H200, 570.133.20, 143771, 9.0`. A line of another form is left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[2].isdigit() and parts[3].replace(".", "", 1).isdigit():
            found.append(Card(parts[0], parts[1], round(int(parts[2]) / _MIB_PER_GIB, 1), parts[3]))
    return tuple(found)


def _capability(card: Card) -> tuple[int, int]:
    major, _, minor = card.compute_capability.partition(".")
    return int(major), int(minor or 0)


def main() -> int:
    """Print the GPUs. Return 2, with one line on stderr, where there is none."""
    try:
        cards = find()
    except NoGpu as error:
        print(f"ENGINE=gpu: {error}", file=sys.stderr)
        return 2
    for card in cards:
        print(
            f"{card.name}, {card.memory_gib:g} GiB, compute capability {card.compute_capability}, driver {card.driver}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
