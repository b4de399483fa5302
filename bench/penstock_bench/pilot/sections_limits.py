"""Describe the limits of a pilot's figures: a small model, a CPU, a short run, one machine for both ends."""

from __future__ import annotations

from penstock_bench.pilot.document import Section
from penstock_bench.pilot.results import Result

_SMALL_VOCABULARY = 65_536
_SMALL_GIB = 16.0


def cannot_tell(result: Result) -> Section:
    """Return the section about the limits."""
    return Section("limits", "Limits of these figures", tuple(limits_of(result)))


def limits_of(result: Result) -> list[str]:
    """Return one sentence or two for each limit."""
    found = []
    if is_scripted(result):
        found.append(
            "The scripted engine plays prepared tokens at a fixed speed: rates, memory, accuracy, drafts and cache hits"
            " come from the script. Only the front end's figures are measured."
        )
    elif is_on_cpu(result):
        found.append(
            "The model ran on a CPU. Rates, latencies, costs and the knee say nothing about a GPU, not even in"
            " proportion. On a GPU, memory bandwidth and launches limit the steps, drafts are nearly free at few"
            " streams, and prompts run hundreds of times faster. These figures are valid for a GPU, too: budgets and"
            " deadlines that hold, lost calls, and the front end's CPU time per token."
        )
    if not is_scripted(result) and is_small(result):
        found.append(
            "The model is small. Accuracy, thought lengths, accepted drafts and expert balance are those of this model."
            " For memory, KV cache and prices per token of a large model, use `penstock plan`."
        )
    if result.processes_not_seen is None:
        found.append(
            "Load generator and service shared one machine: there was no network between them, and each took CPU time"
            " from the other."
        )
    if result.quick:
        found.append(
            "This is the quick run, with stages of seconds. Percentiles from p99 on depend on single calls, slow leaks"
            " and daily patterns do not show, and prompts are short compared with the model's window."
        )
    if not result.complete:
        found.append("The run was interrupted, so the missing parts were not measured.")
    found.append(
        "Prompts are made-up words of one length per stage, without thought, except for the questions. Your own"
        " prompts have other lengths and shared prefixes; `penstock bench --trace` replays them."
    )
    return found


def is_scripted(result: Result) -> bool:
    """Return whether the service runs the scripted engine."""
    return bool(result.served["architecture"] == "scripted")


def is_on_cpu(result: Result) -> bool:
    """Return whether the engine's build or its attention backend is one for a CPU."""
    backends = [one["value"] for one in result.served["profile"] if one["name"] == "attention_backend"]
    return "cpu" in str(result.served["engine_version"]).lower() or any("CPU" in str(one) for one in backends)


def is_small(result: Result) -> bool:
    """Return whether the model is small, by its vocabulary or, if unknown, by the engine's memory."""
    vocabulary = result.served.get("vocab_size")
    if vocabulary:
        return int(vocabulary) < _SMALL_VOCABULARY
    held = [sum(stage.memory_gib.values()) for stage in result.stages if stage.memory_gib]
    return bool(held) and max(held) < _SMALL_GIB
