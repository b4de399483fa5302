"""Write the section about memory: the use of a load, and the limit."""

from __future__ import annotations

from collections.abc import Sequence

from penstock_bench.pilot.document import Figure, Section, Table
from penstock_bench.pilot.formatting import number, share
from penstock_bench.pilot.results import Kind, Result, Stage
from penstock_bench.pilot.svg import Mark, Series, lines


def memory(result: Result) -> Section | None:
    """Return the section about memory."""
    text: list[str] = []
    figures: list[Figure] = []
    measured = [stage for stage in (*result.of("concurrency"), *result.of("context")) if stage.memory_gib]
    seen = [
        (stage, stage.engine.kv_usage_most) for stage in result.stages if stage.engine and stage.engine.kv_usage_most
    ]
    if seen:
        points = [(_tokens_alive(stage), usage) for stage, usage in seen]
        series = [Series("", points, 4, "dots")]
        if result.kv_cache_tokens:
            most = max(result.kv_cache_tokens, *(at for at, _ in points))
            series.insert(
                0, Series("", [(most / 1000, most / 1000 / result.kv_cache_tokens), (float(most), 1.0)], 5, "dash")
            )
        svg = lines(
            "KV cache",
            series,
            "tokens at a time (running calls times their length)",
            "share of the KV cache in use",
            x_log=True,
            y_log=True,
            marks=[Mark(1.0, "full")],
        )
        caption = (
            "The peak of each stage. The dashed line is the share of the tokens alone. The part above it is what each"
            " sequence needs in addition to its tokens, and prompts that are being computed."
        )
        figures.append(Figure("Use of the KV cache by load", svg, caption))
    if result.kv_cache_tokens:
        window = result.served["context_window_tokens"]
        text.append(
            f"The KV cache holds {result.kv_cache_tokens:,} tokens by the engine's own count, that is"
            f" {result.kv_cache_tokens / window:.1f} contexts of the whole window of {window:,}."
        )
        text += _ceilings(result)
    else:
        text.append(f"The engine's KV cache was not observed: {result.metrics_not_seen or 'its size is not reported'}.")
    if measured:
        text.append(_held(measured))
    else:
        text.append(f"Memory of the service's processes was not observed: {result.processes_not_seen}.")
    return Section("memory", "Memory limit", text, figures, [_table(measured)] if measured else [])


_ROLES = {"front end": "front end GiB", "engine": "engine GiB", "GPU": "GPUs GiB"}


def _held(stages: Sequence[Stage]) -> str:
    def processes(stage: Stage) -> float:
        """Return the memory of the service's processes, without GPUs, in GiB."""
        return sum(gib for role, gib in stage.memory_gib.items() if role != "GPU")

    fullest = max(stages, key=processes)
    said = f"The processes on this machine held at most {processes(fullest):.2f} GiB ({fullest.name})"
    gpus = max(stage.memory_gib.get("GPU", 0.0) for stage in stages)
    return said + (f"; its GPUs {gpus:.2f} GiB, including the reserved KV cache." if gpus else ".")


def _table(stages: Sequence[Stage]) -> Table:
    roles = [role for role in _ROLES if any(role in stage.memory_gib for stage in stages)]
    rows = [
        (
            stage.name,
            *(number(stage.memory_gib.get(role), 2) for role in roles),
            share(stage.engine.kv_usage_most) if stage.engine else "-",
            number(stage.engine.preemptions) if stage.engine else "-",
        )
        for stage in stages
    ]
    return Table("", ("load", *(_ROLES[role] for role in roles), "KV cache", "preemptions"), rows)


def _tokens_alive(stage: Stage) -> float:
    at_once = float(stage.concurrency or stage.mean_running)
    return max(1.0, at_once * ((stage.mean_prompt_tokens or 0.0) + (stage.mean_output_tokens or 0.0)))


def _ceilings(result: Result) -> list[str]:
    """Return how many calls fill the cache, from the largest loads by callers and by prompt length."""
    said = []
    kinds: tuple[Kind, ...] = ("concurrency", "context")
    for kind in kinds:
        stages = [
            stage for stage in result.of(kind) if stage.engine and stage.engine.kv_usage_most and stage.concurrency
        ]
        if stages:
            stage = max(stages, key=lambda one: one.engine.kv_usage_most or 0.0 if one.engine else 0.0)
            usage = stage.engine.kv_usage_most if stage.engine and stage.engine.kv_usage_most else 1.0
            said.append(
                f"{stage.concurrency} caller{'s' if stage.concurrency != 1 else ''} with"
                f" {number(stage.mean_prompt_tokens)} prompt tokens use {usage:.1%} of it; about"
                f" {(stage.concurrency or 0) / usage:,.0f} of them would fill it."
            )
    return said
