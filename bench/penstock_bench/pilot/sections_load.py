"""Write the sections about loads: throughput, knee, bursts, prefixes, soak."""

from __future__ import annotations

from collections.abc import Sequence

from penstock_bench.pilot.document import Figure, Section, Table
from penstock_bench.pilot.formatting import seconds, share
from penstock_bench.pilot.results import Knee, Result, Stage
from penstock_bench.pilot.svg import Bar, Mark, Series, bars, lines


def throughput(result: Result) -> Section | None:
    """Return the section about throughput."""
    closed = sorted(result.of("concurrency"), key=lambda stage: stage.concurrency or 0)
    opened = result.of("rate")
    if not closed:
        return None
    context = result.of("context")
    figures = [
        Figure(
            f"{title} against throughput",
            _against_throughput(title, closed, opened, part, result.objectives_seconds.get(part)),
            "Numbers are callers of a closed loop. Dots off the lines are open loops, in which calls arrive at a rate.",
        )
        for title, part in (("Time to first token", "first_token"), ("Time per token", "per_token"))
    ]
    if len(context) > 1:
        figures.append(_context_figure(context))
    rows = [
        (
            f"{stage.name}",
            _with_interval(stage, "output_tokens_per_second"),
            f"{stage.calls_per_second:.2f}",
            seconds(stage.first_token.p50),
            seconds(stage.first_token.p99),
            seconds(stage.per_token.p50),
            seconds(stage.per_token.p99),
            share(stage.goodput_share),
            f"{stage.front_end_cpu_seconds_per_token * 1e6:.0f} µs" if stage.front_end_cpu_seconds_per_token else "-",
        )
        for stage in (*closed, *opened)
    ]
    columns = (
        "load",
        "output tok/s",
        "calls/s",
        "first token p50",
        "p99",
        "per token p50",
        "p99",
        "keep objectives",
        "front end CPU per token",
    )
    told = "± is the 95 % interval from parts of the stage; it does not include the variation between runs."
    text = (told,) if any(stage.intervals_95 for stage in (*closed, *opened)) else ()
    return Section("throughput", "Throughput against latency", text, figures, [Table("", columns, rows)])


def _with_interval(stage: Stage, figure: str) -> str:
    value = getattr(stage, figure)
    interval = stage.intervals_95.get(figure)
    return f"{value:,.0f}" + (f" ± {(interval[1] - interval[0]) / 2:,.0f}" if interval else "")


def knee(result: Result) -> Section | None:
    """Return the section about the knee and the largest rate that keeps the objectives."""
    found = result.knee
    if found is None:
        return None
    points = sorted(found.points, key=lambda point: point.calls_per_second)
    ended = [(point.calls_per_second, point.served_calls_per_second) for point in points]
    most = max(point.calls_per_second for point in points)
    series = [Series("ended", ended, 1), Series("as many as arrive", [(0.0, 0.0), (most, most)], 5, "dash")]
    marks = (
        [] if found.calls_per_second is None else [Mark(found.calls_per_second, f"knee {found.calls_per_second:.3g}")]
    )
    figure = Figure(
        "Calls that end, by calls that arrive",
        lines("knee", series, "calls per second that arrive", "calls per second that end", marks=marks),
        "Each point is a separate open loop; the search ends when the bracket around the knee is narrow.",
    )
    rows = [
        (
            f"{point.calls_per_second:.3g}",
            f"{point.served_calls_per_second:.3g}",
            f"{point.output_tokens_per_second:,.0f}",
            f"{point.calls}",
            f"{point.growth_share:+.1%}",
            seconds(point.first_token_p95),
            seconds(point.end_to_end_p95),
            share(point.kept_share),
            "yes" if point.keeps_up else "no",
        )
        for point in points
    ]
    columns = ("calls/s", "ended/s", "output tok/s", "calls", "growth", "first token p95", "end to end p95")
    table = Table("", (*columns, "keep objectives", "holds"), rows)
    return Section("knee", "The knee", _knee_text(found), [figure], [table])


def _knee_text(found: Knee) -> tuple[str, ...]:
    def rate(value: float | None) -> str:
        """Return a rate of the search as text."""
        return "none" if value is None else f"{value:.3g} calls/s"

    if found.calls_per_second is None:
        said = f"Not found: held {rate(found.holds)}, did not hold {rate(found.fails)}."
    else:
        said = (
            f"Above {found.calls_per_second:.3g} calls a second, waiting calls accumulate while the load lasts"
            f" (held {rate(found.holds)}, did not hold {rate(found.fails)})."
        )
    if found.interval_95 is not None:
        low, high = found.interval_95
        said += f" By repeated searches it is between {low:.3g} and {high:.3g} (95 % interval)."
    if found.objective_holds is not None or found.objective_fails is not None:
        said += (
            f" {share(found.objective_share)} of calls keep the objectives up to {rate(found.objective_holds)}"
            f" (did not hold {rate(found.objective_fails)})."
        )
    return (said,)


def _against_throughput(
    title: str, closed: Sequence[Stage], opened: Sequence[Stage], part: str, limit: float | None
) -> str:
    series = []
    for colour, percent, style in ((1, "p50", "line"), (2, "p99", "dash")):
        known = [(stage, value) for stage in closed if (value := getattr(getattr(stage, part), percent)) is not None]
        points = [(stage.output_tokens_per_second, value) for stage, value in known]
        labels = [f"{stage.concurrency}" for stage, _ in known] if percent == "p50" else []
        series.append(Series(percent, points, colour, style, labels))
    for colour, percent in ((1, "p50"), (2, "p99")):
        known = [(stage, value) for stage in opened if (value := getattr(getattr(stage, part), percent)) is not None]
        points = [(stage.output_tokens_per_second, value) for stage, value in known]
        series.append(Series(f"open {percent}", points, colour, "dots"))
    marks = [Mark(limit, f"objective {limit:g} s")] if limit is not None else []
    # Far below an objective, lines on a linear axis would be flat.
    return lines(title, series, "output tokens per second", "seconds", y_log=True, marks=marks)


def _context_figure(context: Sequence[Stage]) -> Figure:
    points = [(float(stage.mean_prompt_tokens or 0), stage) for stage in context]
    rates = Series("computed", [(at, stage.prompt_tokens_per_second) for at, stage in points], 3)
    return Figure(
        "Prompt tokens per second by prompt length",
        lines("prompt throughput", [rates], "prompt tokens", "prompt tokens per second", x_log=True),
        f"{context[0].concurrency} callers, {context[0].output_tokens} output tokens each; first token at p50: "
        + ", ".join(f"{seconds(stage.first_token.p50)} at {at:,.0f}" for at, stage in points)
        + ".",
    )


def bursts(result: Result) -> Section | None:
    """Return the section about bursts."""
    found, steady = result.of("burst"), result.of("rate")
    if not found:
        return None
    burst = found[0]
    groups = [
        [Bar(f"{stage.name}, {percent}", value, seconds(value), colour)
         for percent, colour in (("p50", 1), ("p99", 2))
         if (value := getattr(stage.first_token, percent)) is not None]
        for stage in (*steady, burst)
    ]  # fmt: skip
    figures = [Figure("Time to first token, steady and in bursts", bars("bursts", groups), "From the intended moment.")]
    figures += _by_second(burst, "Tokens per second through the bursts")
    waits = (
        f"At the server calls wait {seconds(burst.queue.p50)} at p50 and {seconds(burst.queue.p99)} at p99"
        " before they start."
    )
    return Section("bursts", "Bursts", (waits,), figures)


def _by_second(stage: Stage, title: str) -> list[Figure]:
    if len(stage.tokens_by_second) < 4:
        return []
    series = [Series("", [(float(second), float(count)) for second, count in enumerate(stage.tokens_by_second)], 1)]
    return [Figure(title, lines(title, series, "second", "output tokens"), stage.name)]


def prefixes(result: Result) -> Section | None:
    """Return the section about shared prefixes."""
    stages = [stage for stage in result.of("prefix") if stage.cached_share is not None]
    if not stages:
        return None
    hits = [[Bar(stage.name, 100 * (stage.cached_share or 0.0), share(stage.cached_share), 3)] for stage in stages]
    firsts = [[Bar(stage.name, stage.first_token.p50 or 0.0, seconds(stage.first_token.p50), 1)] for stage in stages]
    block = (
        f" The cache keeps whole blocks of {result.cache_block_tokens} tokens, so a shorter prefix is never found."
        if result.cache_block_tokens
        else ""
    )
    text = f"{stages[0].concurrency} callers with prompts of {stages[0].prompt_tokens:,} tokens.{block}"
    figures = [
        Figure(
            "% of prompt tokens from the prefix cache",
            bars("prefix hits", hits),
            "From the usage that the service reports.",
        ),
        Figure("Time to first token at p50", bars("prefix first token", firsts), ""),
    ]
    return Section("prefixes", "Prefix cache", (text,), figures)


def soak(result: Result) -> Section | None:
    """Return the section about the soak."""
    found = result.of("soak")
    if not found:
        return None
    stage = found[0]
    figures = _by_second(stage, "Tokens per second through the soak")
    if len(stage.memory_over_time_gib) > 3:
        series = [Series("", stage.memory_over_time_gib, 4)]
        figures.append(Figure("Memory of the service's processes", lines("memory", series, "second", "GiB"), ""))
    lost = stage.calls - stage.outcomes.get("ok", 0)
    text = (
        f"{stage.rate or 0:.2f} calls a second for {stage.seconds:.0f} s: {stage.calls:,} calls, {lost} of which"
        f" did not end well; end to end at p50 {seconds(stage.end_to_end.p50)}, at p99 {seconds(stage.end_to_end.p99)}."
    )
    return Section("soak", "Soak", (text,), figures)
