"""Write the sections about the model: thinking, experts, speculation."""

from __future__ import annotations

from penstock_bench.pilot.cost import Costs, answer_costs
from penstock_bench.pilot.document import Figure, Section, Table
from penstock_bench.pilot.formatting import seconds, share, usd
from penstock_bench.pilot.results import Answers, Experts, Result
from penstock_bench.pilot.svg import Bar, Series, bars, heat, lines

_MAX_CELLS = 64
_FULL_HEAT = 2.5


def thinking(result: Result, costs: Costs | None) -> Section | None:
    """Return the section about thinking budgets."""
    if not result.answers:
        return None
    by_name = {one.name: one for one in answer_costs(result, costs)} if costs else {}
    rows = []
    for one in result.answers:
        priced = by_name.get(one.name)
        cut = one.outcomes.get("budget_reached", 0)
        rows.append(
            (
                one.name,
                f"{one.accuracy:.2f}",
                "{:.2f} to {:.2f}".format(*one.accuracy_interval_95),
                f"{one.mean_thought_tokens:.1f}",
                f"{one.mean_answer_tokens:.1f}",
                f"{cut} of {one.asked}",
                f"{one.over_budget}",
                f"{one.deadline_missed}",
                seconds(one.latency_p50_seconds),
                seconds(one.latency_p95_seconds),
                usd(priced.per_1000_right) if priced else "-",
                usd(priced.hosted_per_1000_questions) if priced else "-",
            )
        )
    columns = (
        *("setting", "right", "95 % interval", "thought tokens", "answer tokens", "cut at budget", "over budget"),
        *("deadline missed", "p50", "p95", "1000 right", "1000 asked, hosted"),
    )
    figures = [_accuracy(result.answers)]
    if by_name:
        figures.append(_right_answers(result, costs))
    text = [f"{result.questions}.{'' if result.answers_complete else ' Not all of them were asked.'}"]
    return Section("thinking", "Thinking budgets", text, figures, [Table("", columns, rows)])


def _accuracy(answers: tuple[Answers, ...]) -> Figure:
    def series(name: str, mode: str, colour: int, style: str) -> Series:
        """Return the points of one mode for the plot."""
        mine = sorted((one for one in answers if one.mode == mode), key=lambda one: one.mean_thought_tokens)
        return Series(
            name,
            [(one.mean_thought_tokens, one.accuracy) for one in mine],
            colour,
            style,
            [_short(one) for one in mine],
            mode != "thinking",
            [one.accuracy_interval_95 for one in mine],
        )

    drawn = [
        series("THINKING", "thinking", 1, "line"),
        series("AUTO", "auto", 3, "dots"),
        series("FAST", "fast", 5, "dots"),
    ]
    svg = lines("accuracy", [one for one in drawn if one.points], "thought tokens, mean", "share right")
    return Figure("Right answers by thought tokens", svg, "Each label is a budget; bars are 95 % intervals (Wilson).")


def _short(one: Answers) -> str:
    if one.mode == "thinking":
        return "no limit" if one.budget_tokens == -1 else f"{one.budget_tokens}"
    return "" if one.mode == "fast" else one.name.lower()


def _right_answers(result: Result, costs: Costs | None) -> Figure:
    assert costs is not None
    groups = [
        [Bar(one.name, one.per_1000_right, usd(one.per_1000_right), 1)]
        for one in answer_costs(result, costs)
        if one.per_1000_right
    ]
    return Figure(
        "USD for a thousand right answers, here",
        bars("right answers", groups),
        "This includes the cost of wrong answers.",
    )


def experts(result: Result) -> Section:
    """Return the section about expert load."""
    found = result.experts
    if found is None:
        return Section("experts", "Expert balance", (f"Not observed: {result.experts_not_seen}.",))
    rows = [
        (
            f"{layer.layer}",
            f"{layer.imbalance:.2f}",
            f"{layer.busiest_rank_share * found.ranks:.2f}",
            ", ".join(map(str, _hot(layer.expert_tokens))) or "-",
        )
        for layer in found.layers
    ]
    where = "as served" if found.as_served else "computed; the service has one"
    text = f"{found.tokens:,} tokens in the last {found.window_seconds:.0f} s of load; {found.ranks} ranks, {where}."
    table = Table("", ("layer", "busiest expert / mean", "busiest rank / mean", "experts above twice the mean"), rows)
    return Section("experts", "Expert balance", (text,), [_heat(found)], [table])


def _hot(counts: tuple[int, ...]) -> list[int]:
    mean = sum(counts) / len(counts)
    return sorted((n for n, count in enumerate(counts) if count > 2 * mean), key=lambda n: -counts[n])[:8]


def _heat(found: Experts) -> Figure:
    rows = []
    for layer in found.layers:
        mean = sum(layer.expert_tokens) / len(layer.expert_tokens) or 1.0
        shares = [count / mean for count in layer.expert_tokens]
        if len(shares) > _MAX_CELLS:  # Neighbours are joined, the busiest first.
            shares.sort(reverse=True)
            size = len(shares) / _MAX_CELLS
            cells = [shares[int(n * size) : int((n + 1) * size)] for n in range(_MAX_CELLS)]
            shares = [sum(cell) / len(cell) for cell in cells]
        rows.append((f"layer {layer.layer}", shares))
    caption = (
        "Each cell is an expert: its tokens divided by its layer's mean (1 is even). With very many experts, a cell"
        " is several of them together, the busiest first."
    )
    return Figure("Load of the experts, by layer", heat("expert load", rows, _FULL_HEAT), caption)


def speculation(result: Result) -> Section:
    """Return the section about speculative decoding."""
    sources = []
    for name, ones in (("questions", list(result.answers)), ("made-up prompts", list(result.stages))):
        counted = [(one.drafted_tokens, one.accepted_tokens or 0) for one in ones if one.drafted_tokens]
        if counted:
            drafted = sum(drafted for drafted, _ in counted)
            sources.append((name, sum(accepted for _, accepted in counted) / drafted, drafted))
    if not sources:
        return Section(
            "speculation",
            "Speculative decoding",
            ("Not observed: the service drafts nothing, or does not count it per request.",),
        )
    groups = [[Bar(f"on {name}", 100 * part, f"{part:.0%} of {drafted:,}", 3) for name, part, drafted in sources]]
    positions = _positions(result)
    if positions:
        groups.append([Bar(f"draft token {place}", 100 * part, share(part), 4) for place, part in positions])
    text = "Tokens that the model's own draft layer predicted. Made-up words are harder to predict than users' texts."
    caption = "By position: from the loads with made-up prompts, counted by the engine." if positions else ""
    rows = [(name, f"{drafted:,}", share(part)) for name, part, drafted in sources]
    table = Table("", ("on", "drafted tokens", "accepted"), rows)
    return Section(
        "speculation",
        "Speculative decoding",
        (text,),
        [Figure("% of drafted tokens accepted", bars("acceptance", groups), caption)],
        [table],
    )


def _positions(result: Result) -> list[tuple[int, float]]:
    seen = [stage.engine for stage in result.stages if stage.engine is not None and stage.engine.drafts]
    drafts = sum(engine.drafts or 0 for engine in seen)
    places = max((len(engine.accepted_by_position) for engine in seen), default=0)
    if not drafts:
        return []
    totals = [
        sum(engine.accepted_by_position[place] for engine in seen if place < len(engine.accepted_by_position))
        for place in range(places)
    ]
    return [(place, total / drafts) for place, total in enumerate(totals, 1)]
