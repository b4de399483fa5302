"""Write a load's figures in aiperf's format (`profile_export_aiperf.json`), so that tools that read it can plot them.

Metrics have the names and units of aiperf's reference. Latencies count from the intended moment, as in all results of
this package. aiperf also counts a first token of thought as a first token. The format of guidellm is not supported: it
holds each request with its text, and changes with the version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from penstock.generation.percentiles import percentile
from penstock_bench.load.calls import OK, REFUSED, Record
from penstock_bench.load.measure import Load
from penstock_bench.load.statistics import MEASURES, Objectives

_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_MILLISECONDS = 1e3
_LATENCIES = {
    "time_to_first_token": "first_token",
    "time_to_first_output_token": "first_answer",
    "inter_token_latency": "per_token",
    "request_latency": "end_to_end",
}


def export(load: Load, objectives: Objectives, began: datetime, command: str) -> dict[str, Any]:
    """Return the JSON object. `began`: when the window opened, with its time zone."""
    summary, done = load.summary(objectives), [record for record in load.records if record.outcome == OK]
    made: dict[str, Any] = {
        name: _spread("ms", [_MILLISECONDS * at for record in done if (at := MEASURES[measure](record)) is not None])
        for name, measure in _LATENCIES.items()
    }
    made |= {
        "input_sequence_length": _spread("tokens", [record.prompt_tokens for record in done]),
        "output_sequence_length": _spread("tokens", [record.output_tokens for record in done]),
        "reasoning_token_count": _spread("tokens", [record.thought_tokens for record in done]),
        "request_throughput": {"unit": "requests/sec", "avg": summary.calls_per_second},
        "output_token_throughput": {"unit": "tokens/sec", "avg": summary.output_tokens_per_second},
        "request_count": {"unit": "requests", "avg": float(len(done))},
        "benchmark_duration": {"unit": "sec", "avg": summary.seconds},
        "error_request_count": {"unit": "requests", "avg": float(len(load.records) - len(done))},
        "goodput": None
        if summary.goodput_calls_per_second is None
        else {"unit": "requests/sec", "avg": summary.goodput_calls_per_second},
        "was_cancelled": load.interrupted,
        "start_time": began.isoformat(),
        "end_time": (began + timedelta(seconds=summary.seconds)).isoformat(),
        "error_summary": _errors(load.records),
        "input_config": {"cli_command": command},
    }
    return {name: value for name, value in made.items() if value != {}}


def _spread(unit: str, values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    mean = math.fsum(values) / len(values)
    return {
        "unit": unit,
        "avg": mean,
        **{f"p{percent}": percentile(values, percent) for percent in _PERCENTS},
        "min": min(values),
        "max": max(values),
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)),
    }


def _errors(records: Sequence[Record]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        if record.outcome != OK:
            key = (record.outcome, record.error)
            counts[key] = counts.get(key, 0) + 1
    # HTTP's code for "too many requests": tools for aiperf know no gRPC codes.
    return [
        {"error_details": {"code": 429 if outcome == REFUSED else None, "type": outcome, "message": error}, "count": n}
        for (outcome, error), n in counts.items()
    ]
