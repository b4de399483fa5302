"""Write a load's figures in aiperf's formats, so that `aiperf plot` and tools that read them can show them.

A run is a folder with `profile_export_aiperf.json` (figures) and `profile_export.jsonl` (each call). Names and units
are those of aiperf. Latencies count from the intended moment, as in all results of this package. aiperf also counts a
first token of thought as a first token. The format of guidellm is not supported: its loader demands the state of
guidellm's own scheduler, which no other load generator has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from penstock.generation.percentiles import percentile
from penstock_bench.load.calls import OK, REFUSED, UNFINISHED, Record
from penstock_bench.load.measure import Closed, Load, Open
from penstock_bench.load.statistics import MEASURES, Objectives

FIGURES, CALLS = "profile_export_aiperf.json", "profile_export.jsonl"
"""The files of a run."""
_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_MILLISECONDS = 1e3
_LATENCIES = {
    "time_to_first_token": "first_token",
    "time_to_first_output_token": "first_answer",
    "inter_token_latency": "per_token",
    "request_latency": "end_to_end",
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Hold what a run's files say beside its figures. `began`: when the window opened, with its time zone."""

    began: datetime
    command: str
    model: str
    target: str


def export(load: Load, objectives: Objectives, facts: RunFacts) -> dict[str, Any]:
    """Return the JSON object with the figures."""
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
        "start_time": facts.began.isoformat(),
        "end_time": (facts.began + timedelta(seconds=summary.seconds)).isoformat(),
        "error_summary": _errors(load.records),
        "run_info": {"cli_command": facts.command},
        "input_config": _config(load, facts),
    }
    return {name: value for name, value in made.items() if value != {}}


def lines(load: Load, facts: RunFacts) -> Iterator[str]:
    """Return a line of JSON for each call."""
    sessions = {id(record.work): number for number, record in reversed([*enumerate(load.records)])}
    began = round(facts.began.timestamp() * 1e9)
    for record in load.records:
        start = began + round(record.intended * 1e9)
        metadata = {
            "session_num": sessions[id(record.work)],
            "turn_index": record.turn,
            "request_start_ns": start,
            "request_end_ns": start if record.ended is None else began + round(record.ended * 1e9),
            "worker_id": "penstock bench",
            "record_processor_id": "penstock bench",
            "benchmark_phase": "profiling",
            "was_cancelled": record.outcome == UNFINISHED,
        }
        made: dict[str, Any] = {"metadata": metadata, "metrics": {}}
        if record.outcome == OK:
            made["metrics"] = _metrics(record)
        else:
            made["error"] = _error(record.outcome, record.error)
        yield json.dumps(made)


def _metrics(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {"value": _MILLISECONDS * value, "unit": "ms"}
        for name, measure in _LATENCIES.items()
        if (value := MEASURES[measure](record)) is not None
    }
    tokens = {
        "input_sequence_length": record.prompt_tokens,
        "output_sequence_length": record.output_tokens,
        "output_token_count": record.answer_tokens,
        "reasoning_token_count": record.thought_tokens,
    }
    return found | {name: {"value": value, "unit": "tokens"} for name, value in tokens.items()}


def _config(load: Load, facts: RunFacts) -> dict[str, Any]:
    """Return the model and the load as aiperf's configuration has them; empty for a load that it cannot state."""
    phase: dict[str, Any] = {"name": "profiling", "duration": load.options.seconds}
    if isinstance(load.pattern, Closed):
        phase |= {"type": "concurrency", "concurrency": load.pattern.callers}
    elif isinstance(load.pattern, Open) and not load.pattern.burst_calls:
        phase |= {"type": "poisson", "rate": load.pattern.calls_per_second}
    else:
        return {}
    return {
        "models": {"items": [{"name": facts.model}]},
        "endpoint": {"urls": [f"http://{facts.target}"]},
        "datasets": [{"name": "main", "type": "synthetic"}],
        "phases": [phase],
    }


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
    return [{"error_details": _error(*key), "count": n} for key, n in counts.items()]


def _error(outcome: str, message: str) -> dict[str, Any]:
    # HTTP's code for "too many requests": tools for aiperf know no gRPC codes.
    return {"code": 429 if outcome == REFUSED else None, "type": outcome, "message": message}
