"""Describe what the figures of a pilot cannot tell: a small model, a CPU, a short run, one machine for both ends."""

from __future__ import annotations

from penstock_bench.pilot.document import Section
from penstock_bench.pilot.results import Result

_SMALL_VOCABULARY = 65_536
_SMALL_GIB = 16.0


def cannot_tell(result: Result) -> Section:
    """Return the section; a run without limits that can be seen says so."""
    return Section("limits", "What these figures cannot tell", tuple(limits_of(result)))


def limits_of(result: Result) -> list[str]:
    """Return one sentence or two for each limit."""
    found = []
    if is_scripted(result):
        found.append(
            "The scripted engine plays canned tokens at a fixed pace: rates, memory, accuracy, drafts and cache hits"
            " are of the script. Only the front end's figures are real."
        )
    elif is_on_cpu(result):
        found.append(
            "The model ran on a CPU. Rates, latencies, costs and the knee say nothing about a GPU, not even in"
            " proportion: a GPU's steps are bound by memory bandwidth and launches, drafts are nearly free there at few"
            " streams, and prompts run hundreds of times faster. What does carry over: budgets and deadlines that hold,"
            " calls that are lost, and the front end's CPU time per token."
        )
    if not is_scripted(result) and is_small(result):
        found.append(
            "The model is small. Accuracy, thought lengths, accepted drafts and expert balance are of this model;"
            " memory, KV cache and prices per token of a large one follow from `penstock plan`, not from here."
        )
    if result.processes_not_seen is None:
        found.append(
            "Load generator and service shared one machine: there was no network between them, and each took CPU time"
            " from the other."
        )
    if result.quick:
        found.append(
            "This is the quick run: stages of seconds. Percentiles from p99 on rest on single calls, slow leaks and"
            " daily patterns cannot show, and prompts are short beside the model's window."
        )
    if not result.complete:
        found.append("The run was interrupted: what is missing was not measured.")
    found.append(
        "Prompts are made-up words of one length per stage, without thought, but for the questions. Your own prompts"
        " share other prefixes and have other lengths; `penstock bench --trace` replays them."
    )
    return found


def is_scripted(result: Result) -> bool:
    """Return whether the service runs the scripted engine."""
    return bool(result.served["architecture"] == "scripted")


def is_on_cpu(result: Result) -> bool:
    """By the engine's build and its attention backend."""
    backends = [one["value"] for one in result.served["profile"] if one["name"] == "attention_backend"]
    return "cpu" in str(result.served["engine_version"]).lower() or any("CPU" in str(one) for one in backends)


def is_small(result: Result) -> bool:
    """By its vocabulary or, where that is not told, by the memory of the engine: weights and cache together."""
    vocabulary = result.served.get("vocab_size")
    if vocabulary:
        return int(vocabulary) < _SMALL_VOCABULARY
    held = [sum(stage.memory_gib.values()) for stage in result.stages if stage.memory_gib]
    return bool(held) and max(held) < _SMALL_GIB
