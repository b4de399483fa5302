"""Build the report: the summary first, then each section."""

from __future__ import annotations

from collections.abc import Sequence

from penstock_bench.gpu_check.report import pilot_section
from penstock_bench.gpu_check.results import GpuCheck
from penstock_bench.pilot import (
    sections_cost,
    sections_limits,
    sections_load,
    sections_memory,
    sections_model,
    sections_plan,
)
from penstock_bench.pilot.cost import Costs, answer_costs, costs_of, fastest, operating_point
from penstock_bench.pilot.document import Document, Section, Table, Tile
from penstock_bench.pilot.flag import Flag, State
from penstock_bench.pilot.flags import check_all
from penstock_bench.pilot.formatting import number, seconds, share, usd
from penstock_bench.pilot.results import Result, Stage


def document(result: Result) -> Document:
    """Return the document with all texts, tables and plots."""
    flags, costs = check_all(result), costs_of(result)
    machine = result.client_machine
    sections = [
        sections_load.throughput(result),
        sections_load.knee(result),
        sections_plan.plan(result),
        sections_memory.memory(result),
        *sections_cost.cost(result, costs),
        sections_model.thinking(result, costs),
        sections_load.bursts(result),
        sections_model.experts(result),
        sections_model.speculation(result),
        sections_load.prefixes(result),
        sections_load.soak(result),
        _gpu_check(result),
        sections_limits.cannot_tell(result),
        _checks(flags),
        _method(result),
        _circumstances(result),
    ]
    return Document(
        title=f"Pilot of {result.model}",
        subtitle=f"{result.date[:16].replace('T', ' ')} UTC · {machine['cpu']}, {machine['cores']} cores (of the"
        f" load generator) · {result.served['engine_version']} · {'quick' if result.quick else 'full'}"
        f" run of {result.seconds / 60:.0f} min{'' if result.complete else ', interrupted: partial results'}",
        tiles=_tiles(result, flags, costs),
        summary=_summary(result, costs),
        flags=flags,
        sections=[section for section in sections if section is not None],
    )


def _tiles(result: Result, flags: Sequence[Flag], costs: Costs | None) -> list[Tile]:
    stage = operating_point(result) or fastest(result.of("concurrency"))
    raised = sum(flag.state is State.RAISED for flag in flags)
    unseen = sum(flag.state is State.UNSEEN for flag in flags)
    tiles = [
        Tile(
            "Red flags",
            f"{raised} of {len(flags)}",
            f"{unseen} could not be checked" if unseen else "all checks made",
        )
    ]
    if stage is not None:
        per_stream = 1 / stage.per_token.p50 if stage.per_token.p50 else None
        tiles += [
            Tile("Throughput", f"{stage.output_tokens_per_second:,.0f} tok/s", f"output, at {stage.name}"),
            Tile("First token", seconds(stage.first_token.p50), f"p50; p99 {seconds(stage.first_token.p99)}"),
            Tile("Each stream", f"{number(per_stream)} tok/s", f"p50; p99 {seconds(stage.per_token.p99)} per token"),
        ]
    if costs is not None:
        hosted = f"hosted {usd(costs.hosted_output)}" if costs.hosted_output is not None else "no hosted price given"
        tiles.append(Tile("Million output tokens", usd(costs.output), f"at {usd(costs.per_hour)} an hour; {hosted}"))
    else:
        tiles.append(Tile("Million output tokens", "-", "no price given (--gpu-hour-usd)"))
    window = result.served.get("context_window_tokens")
    if result.kv_cache_tokens and window:
        fit = result.kv_cache_tokens / window
        tiles.append(Tile("KV cache tokens", f"{result.kv_cache_tokens:,}", f"{fit:.1f} whole contexts of {window:,}"))
    return tiles


def _summary(result: Result, costs: Costs | None) -> list[str]:
    said = []
    point, top = operating_point(result), fastest(result.of("concurrency"))
    wanted = ", ".join(f"{name.replace('_', ' ')} {limit:g} s" for name, limit in result.objectives_seconds.items())
    if point is not None:
        said.append(
            f"At {point.name} it gives {point.output_tokens_per_second:,.0f} output tokens a second and"
            f" {point.calls_per_second:.1f} calls a second, with {number(point.mean_prompt_tokens)} prompt and"
            f" {number(point.mean_output_tokens)} output tokens each"
            + (f"; {share(point.goodput_share)} of calls keep {wanted}." if wanted else ".")
        )
    elif top is not None:
        said.append(
            f"No measured number of callers keeps {wanted} for 95 % of calls; the figures are those of the fastest."
        )
    if top is not None and point is not None and top.name != point.name:
        said.append(
            f"More callers give up to {top.output_tokens_per_second:,.0f} tokens a second ({top.name}), but keep the"
            f" objectives for {share(top.goodput_share)} of calls only."
        )
    said += _about_knee(result)
    said += [sentence for sentence in sections_limits.limits_of(result)[:1] if _weighs_most(result)]
    said += _about_cost(result, costs)
    return said


def _weighs_most(result: Result) -> bool:
    """Return whether the first limit changes the meaning of all figures."""
    return any(
        told(result) for told in (sections_limits.is_scripted, sections_limits.is_on_cpu, sections_limits.is_small)
    )


def _about_knee(result: Result) -> list[str]:
    knee = result.knee
    if knee is None or knee.calls_per_second is None:
        return []
    said = f"Waiting calls accumulate above {knee.calls_per_second:.3g} calls a second (the knee)"
    if knee.objective_holds is not None and result.objectives_seconds:
        return [f"{said}; {share(knee.objective_share)} of calls keep the objectives up to {knee.objective_holds:.3g}."]
    return [f"{said}."]


def _about_cost(result: Result, costs: Costs | None) -> list[str]:
    if costs is None:
        return []
    said = []
    if costs.break_even_utilization is not None:
        even = costs.break_even_utilization
        said.append(
            f"At {usd(costs.per_hour)} an hour it costs as much as hosted when it is full {even:.1%} of the time."
            if even <= 1
            else f"At {usd(costs.per_hour)} an hour it costs {even:.1f} times as much as hosted, even when always full."
        )
    best = max(result.answers, key=lambda one: one.accuracy, default=None)
    as_right = {one.name for one in result.answers if best and one.accuracy >= best.accuracy_interval_95[0]}
    priced = [one for one in answer_costs(result, costs) if one.per_1000_right and one.name in as_right]
    if best is not None and priced:
        least = min(priced, key=lambda one: one.per_1000_right or 0.0)
        said.append(
            f"Of the thinking settings with the best accuracy ({best.accuracy:.2f}, within noise), {least.name}"
            f" costs least: {usd(least.per_1000_right)} for a thousand right answers."
        )
    return said


def _gpu_check(result: Result) -> Section | None:
    return None if result.gpu_check is None else pilot_section(GpuCheck.model_validate(result.gpu_check))


def _checks(flags: Sequence[Flag]) -> Section:
    rows = [(flag.title, flag.state.value, flag.evidence) for flag in flags]
    return Section("checks", "All checks", tables=[Table("", ("check", "state", "evidence"), rows)])


def _method(result: Result) -> Section:
    stages = [_stage_row(stage) for stage in result.stages]
    columns = (
        "stage",
        "seconds",
        "calls",
        "calls/s",
        "output tok/s",
        "prompt tok/s",
        "first token p50",
        "p99",
        "per token p50",
        "p99",
        "ok",
    )
    return Section(
        "method",
        "Method",
        (
            "The calls are gRPC streams of the public client. In open loops (rates, bursts, soak) calls are sent by the"
            " clock, without waiting for earlier ones, and latency counts from the intended moment. So a slow service"
            " cannot slow down its own measurement (coordinated omission). In closed loops (callers) each caller waits"
            " for its reply, and latency counts from when it was free.",
            "Prompts are made-up words, and outputs have a fixed length and no thought. Only the questions are asked as"
            " `penstock eval` asks them. Each stage starts with a cold prefix cache and a warm-up. Percentiles are by"
            " nearest rank; lost calls count as slower than all others.",
        ),
        tables=[Table("All stages", columns, stages)],
    )


def _stage_row(stage: Stage) -> tuple[str, ...]:
    return (
        stage.name + (" (interrupted)" if stage.interrupted else ""),
        f"{stage.seconds:.0f}",
        f"{stage.calls:,}",
        f"{stage.calls_per_second:.2f}",
        f"{stage.output_tokens_per_second:,.0f}",
        f"{stage.prompt_tokens_per_second:,.0f}",
        seconds(stage.first_token.p50),
        seconds(stage.first_token.p99),
        seconds(stage.per_token.p50),
        seconds(stage.per_token.p99),
        f"{stage.outcomes.get('ok', 0) / stage.calls:.1%}" if stage.calls else "-",
    )


def _circumstances(result: Result) -> Section:
    model, machine = result.served, result.client_machine
    facts = [
        ("model", f"{model['name']} ({model['architecture']})"),
        ("service and engine", f"{model['service_version']}, {model['engine_version']}"),
        ("context window", f"{model['context_window_tokens']:,} tokens"),
        ("load generator", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, load before"
         f" {machine['load_average'][0]}"),
        ("service at", f"{result.target}; {result.processes_not_seen or 'on this machine'}"),
        ("metrics", result.metrics_not_seen or "read from its Prometheus endpoint"),
        ("questions", result.questions or "not asked"),
        ("command", result.command),
    ]  # fmt: skip
    profile = [
        (one["name"], "on" if one["enabled"] else "off", one["value"], one["reason"]) for one in model["profile"]
    ]
    return Section(
        "circumstances",
        "Circumstances",
        tables=[Table("", ("", ""), facts), Table("Profile", ("feature", "", "value", "reason"), profile)],
    )
