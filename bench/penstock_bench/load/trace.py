"""Read and write trace files: recorded arrivals, one JSON object per line, to be replayed at any speed.

    {"at_seconds": 0.0, "prompt_tokens": 812, "output_tokens": 64, "mode": "thinking", "budget_tokens": 256,
     "prefix": "support", "prefix_tokens": 400, "deadline_seconds": 10}
    {"at_seconds": 0.8, "prompt": "What is 48 + 27?", "output_tokens": 128}

`at_seconds` (>= 0, rising) and either `prompt_tokens` or `prompt` are required. The other keys are optional; their
defaults are the server's. `prompt` is the original text; without it, made-up text of the given length is sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from penstock_bench.load import json_lines
from penstock_bench.load.arrivals import ScheduledCall
from penstock_bench.load.workload import MODES, Work

_NAMES = {field.name for field in fields(Work)}
_WHOLE = {
    "prompt_tokens": 1, "output_tokens": 1, "budget_tokens": -1, "prefix_tokens": 0, "block_tokens": 0,
    "turns": 1, "turn_tokens": 0, "images": 0, "image_width": 0, "image_height": 0, "tool_calls": 0,
    "tool_result_tokens": 0,
}  # fmt: skip
_PLAIN = {field.name: field.default for field in fields(Work) if field.name != "prompt_tokens"}


def read(path: Path) -> list[ScheduledCall]:
    """Return all calls of a file. Raises ValueError with the wrong line, and OSError if it cannot be read."""
    last_at = 0.0

    def arrival(entry: object) -> ScheduledCall:
        """Return the call of one line. Raises ValueError."""
        nonlocal last_at
        made = _arrival(entry)
        if made.at_seconds < last_at:
            raise ValueError("at_seconds must not fall")
        last_at = made.at_seconds
        return made

    return json_lines.read(path, arrival, "calls")


def write(path: Path, arrivals: Iterable[ScheduledCall]) -> None:
    """Write a trace that `read` reads."""
    lines = []
    for arrival in arrivals:
        work = {name: value for name, value in asdict(arrival.work).items() if value != _PLAIN.get(name)}
        lines.append(json.dumps({"at_seconds": round(arrival.at_seconds, 6), **work}))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _arrival(entry: object) -> ScheduledCall:
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    if unknown := set(entry) - _NAMES - {"at_seconds"}:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    at = entry.pop("at_seconds", None)
    if not _is_number(at) or at < 0:
        raise ValueError("at_seconds must be a number of seconds, 0 or more")
    for name, least in _WHOLE.items():
        value = entry.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} must be a whole number, {least} or more")
    if not isinstance(entry.get("prompt", ""), str) or not entry.keys() & {"prompt", "prompt_tokens"}:
        raise ValueError("needs prompt_tokens, or prompt as text")
    _check_texts_and_blocks(entry)
    if entry.get("images") and not (entry.get("image_width") and entry.get("image_height")):
        raise ValueError("images needs image_width and image_height")
    if entry.get("mode", "fast") not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}")
    deadline = entry.get("deadline_seconds")
    if deadline is not None and (not _is_number(deadline) or deadline <= 0):
        raise ValueError("deadline_seconds must be above 0")
    return ScheduledCall(float(at), Work(**{"prompt_tokens": 1, **entry}))


def _check_texts_and_blocks(entry: dict[str, object]) -> None:
    blocks = entry.get("blocks", [])
    if not isinstance(blocks, list) or any(not isinstance(one, int) for one in blocks):
        raise ValueError("blocks must be a list of whole numbers")
    if blocks and not entry.get("block_tokens"):
        raise ValueError("blocks needs block_tokens")
    entry["blocks"] = tuple(blocks)
    if not isinstance(entry.get("kind", ""), str) or not isinstance(entry.get("prefix", ""), str):
        raise ValueError("kind and prefix must be text")
    if not isinstance(entry.get("keep_thought", False), bool):
        raise ValueError("keep_thought must be true or false")
    pause = entry.get("pause_seconds", 0.0)
    if not _is_number(pause) or pause < 0:  # type: ignore[operator]
        raise ValueError("pause_seconds must be a number of seconds, 0 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
