"""Write the page of a check, and its section in a pilot's report. A CPU's figures never appear as a GPU's."""

from __future__ import annotations

from penstock_bench.gpu_check.cards import Card
from penstock_bench.gpu_check.results import GpuCheck, Variant
from penstock_bench.pilot.document import Document, Section, Table, Tile
from penstock_bench.pilot.flag import Flag, State
from penstock_bench.pilot.formatting import number, seconds

ON_A_CPU = (
    "This ran on vLLM's CPU build. It shows that the check itself works, and says nothing about a GPU: neither the"
    " kernels nor the speed are those of one."
)
_TWO_LOADS = (
    "Compare figures within one table only. The first has prompts of one length and all features, with expert load; the"
    " second has short questions, and the same arguments of the engine for each front end."
)
_ADVICE = "The logs beside this report have the engine's output. Please open an issue with them and gpu-check.json."


def document(result: GpuCheck) -> Document:
    """Return the page."""
    flags = [Flag(one.id, one.title, one.state, one.evidence, _ADVICE) for one in result.checks]
    kind = {"gpu": "GPU", "cpu": "CPU (not a GPU)", "other": "no GPU"}[result.engine]
    return Document(
        title=f"Check of Penstock on {result.device}",
        subtitle=f"{result.date[:16].replace('T', ' ')} UTC · {result.engine_version or 'no engine'} · {result.model} ·"
        f" {'quick' if result.quick else 'full'} run of {result.seconds / 60:.0f} min"
        f"{'' if result.complete else ', interrupted: partial results'}",
        tiles=[
            Tile("Ran on", kind, result.device),
            Tile("Broken promises", f"{_count(result, State.RAISED)} of {len(result.checks)}", "checks"),
            Tile("Not checked", str(_count(result, State.UNSEEN)), "see below for the reasons"),
        ],
        summary=_summary(result),
        flags=flags,
        sections=[_checks(result), _speed(result), _budgets(result), _configurations(result), _circumstances(result)],
    )


def pilot_section(result: GpuCheck) -> Section:
    """Return the section of a pilot's report."""
    checks, speed = _checks(result), _speed(result)
    engine = result.engine_version or "no engine"
    where = f"`penstock gpu-check` ran on {result.device} on {result.date[:10]}, with {engine}."
    return Section(
        "gpu-check", "Check of the engine", [where, *_caveats(result)], tables=[*checks.tables, *speed.tables]
    )


def _count(result: GpuCheck, state: State) -> int:
    return sum(one.state is state for one in result.checks)


def _caveats(result: GpuCheck) -> list[str]:
    said = [ON_A_CPU] if result.engine == "cpu" else []
    return said if result.complete else [*said, "The check was interrupted; its results are partial."]


def _summary(result: GpuCheck) -> list[str]:
    broken = [one.title for one in result.checks if one.state is State.RAISED]
    kept = _count(result, State.CLEAR)
    said = (
        f"Broken: {'; '.join(broken)}."
        if broken
        else f"{kept} of {len(result.checks)} checks are clear, none is broken."
    )
    return [*_caveats(result), said]


def _checks(result: GpuCheck) -> Section:
    rows = [(one.title, one.state.value, one.evidence) for one in result.checks]
    return Section("checks", "Checks", tables=[Table("", ("check", "state", "evidence"), rows)])


def _speed(result: GpuCheck) -> Section:
    tables = []
    rows = [
        (
            f"{one.name}, {stage.name}",
            f"{stage.output_tokens_per_second:,.0f}",
            seconds(stage.first_token.p50),
            seconds(stage.first_token.p99),
            seconds(stage.per_token.p50),
            f"{stage.outcomes.get('ok', 0)} of {stage.calls}",
        )
        for one in result.variants
        for stage in one.stages
    ]
    if rows:
        columns = ("load", "output tok/s", "first token p50", "p99", "per token p50", "ended well")
        tables.append(Table(f"Penstock on {result.device}", columns, rows))
    if result.comparison is not None:
        rates, labels = result.comparison.tokens_per_second, result.comparison.labels
        counts = sorted({count for by_count in rates.values() for count in by_count})
        beside = [(labels[name], *(number(by.get(count)) for count in counts)) for name, by in rates.items()]
        title = f"Output tokens per second by streams, on {result.device}"
        tables.append(Table(title, ("front end", *(f"{count}" for count in counts)), beside))
    text = (
        [_TWO_LOADS]
        if result.comparison is not None
        else [f"Not compared with other front ends: {result.comparison_not_made}."]
    )
    return Section("speed", "Speed", [*text, *(result.comparison.notes if result.comparison else ())], tables=tables)


def _budgets(result: GpuCheck) -> Section:
    rows = [
        (
            one.name,
            case.sampling,
            f"{case.budget_tokens}",
            f"{case.thought_tokens}",
            case.outcome,
            "yes" if case.held else "NO",
        )
        for one in result.variants
        for case in one.budgets
    ]
    columns = ("configuration", "tokens are", "budget", "thought", "ended by", "held")
    return Section("budgets", "Thinking budgets", tables=[Table("", columns, rows)])


def _configurations(result: GpuCheck) -> Section:
    tables = []
    for one in result.variants:
        rows = [(row["name"], "on" if row["enabled"] else "off", row["value"], row["reason"]) for row in one.profile]
        tables.append(Table(f"{one.name}: {_found(one)}", ("feature", "", "value", "reason"), rows))
    return Section("configurations", "Configurations", tables=tables)


def _found(one: Variant) -> str:
    parts = [f"ready after {one.start_seconds:.0f} s" if one.start_seconds is not None else "not ready"]
    parts += [f"{one.right} of {one.asked} questions right"] if one.asked else []
    parts += [one.error] if one.error else []
    return ", ".join(parts)


def _card(card: Card) -> str:
    what = f"{card.name}, {card.memory_gib:g} GiB, compute capability {card.compute_capability}"
    return f"{what}, driver {card.driver}"


def _circumstances(result: GpuCheck) -> Section:
    machine = result.machine
    gpus = "GPUs" if result.engine == "gpu" else "GPUs of the machine, not used"
    facts = [
        ("engine", result.engine_version),
        ("service", result.service_version),
        ("model", result.model),
        (gpus, "; ".join(map(_card, result.cards)) or "none found"),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"),
        ("command", result.command),
    ]  # fmt: skip
    return Section("circumstances", "Circumstances", tables=[Table("", ("", ""), facts)])
