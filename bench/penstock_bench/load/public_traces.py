"""Read traces in public formats: Mooncake's JSON lines and the CSV of Azure's LLM inference datasets.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}    (milliseconds)
    TIMESTAMP,ContextTokens,GeneratedTokens
    2023-11-16 18:15:46.6805900,374,44

Equal hash ids are equal blocks of 512 prompt tokens, so that prompts which begin with the same ids share a prefix.
Azure's rows do not say which prompts share a prefix. Neither format has texts: they are replaced by made-up words of
the same length.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from penstock_bench.load import trace
from penstock_bench.load.arrivals import ScheduledCall
from penstock_bench.load.workload import Work

BLOCK_TOKENS = 512
"""Number of prompt tokens for each hash id of a Mooncake trace."""
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE = {"timestamp", "input_length", "output_length"}
_MILLISECONDS = 1e-3
_MAX_TOKENS = 2**31 - 1


def read(path: Path, most: int | None = None) -> list[ScheduledCall]:
    """Return at most the first `most` calls of a file, whose format its first line shows.

    Times count from the first call of a public trace. Raises ValueError with the wrong line, and OSError.
    """
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    if first.strip().split(",")[:1] == ["TIMESTAMP"]:
        return _of_rows(path, _azure(path), most)
    if _is_mooncake(first):
        return _of_rows(path, _mooncake(path), most)
    return trace.read(path)[:most]


def _is_mooncake(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.keys() >= _MOONCAKE


def _of_rows(path: Path, rows: Iterable[tuple[float, Work]], most: int | None) -> list[ScheduledCall]:
    found = sorted(islice(rows, most), key=lambda row: row[0])
    if not found:
        raise ValueError(f"{path}: no calls")
    begin = found[0][0]
    return [ScheduledCall(at - begin, work) for at, work in found]


def _mooncake(path: Path) -> Iterator[tuple[float, Work]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield _mooncake_row(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{path}, line {number}: not a row of a Mooncake trace ({error}); it needs timestamp in"
                        " milliseconds, input_length, output_length and, if at all, hash_ids as whole numbers"
                    ) from error


def _mooncake_row(entry: dict[str, Any]) -> tuple[float, Work]:
    prompt, ids = _tokens(entry["input_length"]), entry.get("hash_ids") or []
    if not isinstance(ids, list) or any(not isinstance(one, int) for one in ids):
        raise ValueError("hash_ids")
    # Ids beyond the length would make the prompt longer than in the trace.
    blocks = tuple(ids)[: -(-prompt // BLOCK_TOKENS)]
    at = float(entry["timestamp"]) * _MILLISECONDS
    return at, Work(prompt, _tokens(entry["output_length"]), blocks=blocks, block_tokens=BLOCK_TOKENS if blocks else 0)


def _azure(path: Path) -> Iterator[tuple[float, Work]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for number, row in enumerate(rows, 2):
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"])
                when = at.replace(tzinfo=at.tzinfo or UTC).timestamp()
                yield when, Work(_tokens(int(row["ContextTokens"])), _tokens(int(row["GeneratedTokens"])))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a row of an Azure trace ({error}); it needs {', '.join(_AZURE)}"
                ) from error


def _tokens(count: object) -> int:
    """Return a number of tokens, at least 1: a call needs a prompt and an output. Raises ValueError."""
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_TOKENS:
        raise ValueError(f"must be a number of tokens, got {count!r}")
    return max(1, count)
