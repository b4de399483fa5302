"""Compute figures from calls. No I/O.

Percentiles are by nearest rank over all calls that were admitted and meant for the window. A call that missed its
deadline or never ended (a lost call) counts as slower than all others. A percentile that falls among the lost calls is
None (infinite), not the time of the slowest other call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from penstock.generation.percentiles import percentile
from penstock_bench.load.calls import DEADLINE, FAILED, OK, REFUSED, UNFINISHED, Record

PERCENTS = (50, 90, 95, 99)
_USD_PER_TICK = 1e-10


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles in seconds of `count` values, of which `lost` are infinite.

    None: no values, or among the lost ones.
    """

    count: int
    lost: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    most: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the percentiles of `values`; infinite values count as lost."""
        given = sorted(values)
        finite = [value for value in given if math.isfinite(value)]
        return cls(
            count=len(given),
            lost=len(given) - len(finite),
            mean=sum(finite) / len(finite) if finite and len(finite) == len(given) else None,
            **{f"p{percent}": _finite(percentile(given, percent)) if given else None for percent in PERCENTS},
            most=_finite(given[-1]) if given else None,
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Objectives:
    """Limits for a good call, in seconds from its intended time; None: no limit."""

    first_token: float | None = None
    first_answer: float | None = None
    per_token: float | None = None
    end_to_end: float | None = None

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Objectives:
        """Return the objectives from options such as `first-token=0.5`. Raises ValueError."""
        known = {field.name.replace("_", "-"): field.name for field in fields(cls)}
        given: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if name not in known or not 0 < seconds < math.inf:
                raise ValueError(f"must be NAME=SECONDS with one of {', '.join(known)}, got {text!r}")
            given[known[name]] = seconds
        return cls(**given)

    def kept_by(self, record: Record) -> bool:
        """Return whether a call ended well and kept all objectives."""
        if record.outcome != OK:
            return False
        return all(
            (seconds := read(record)) is None or seconds <= limit
            for name, read in MEASURES.items()
            if (limit := getattr(self, name)) is not None
        )

    @property
    def stated(self) -> dict[str, float]:
        """Return the stated objectives by name, in seconds."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


def _since(moment: Callable[[Record], float | None]) -> Callable[[Record], float | None]:
    return lambda record: None if (at := moment(record)) is None else at - record.intended


MEASURES: Mapping[str, Callable[[Record], float | None]] = {
    "first_token": _since(lambda record: record.first_token),
    "first_answer": _since(lambda record: record.first_answer),
    "per_token": lambda record: record.seconds_per_token,
    "end_to_end": _since(lambda record: record.ended),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Calls of one kind of question, or of one turn, in tokens and seconds. None: unknown."""

    calls: int
    ended_well: int
    mean_prompt_tokens: float | None
    mean_thought_tokens: float | None
    mean_answer_tokens: float | None
    cached_share: float | None
    accepted_share: float | None
    """Share of the drafted tokens that were accepted."""
    acceptance_length: float | None
    """Output tokens per step of the model; 1 without an accepted draft."""
    first_token_p50: float | None
    first_answer_p50: float | None

    @classmethod
    def of(cls, records: Sequence[Record]) -> Group:
        """Return the figures of some calls."""
        done = [record for record in records if record.outcome == OK]
        prompt = sum(record.prompt_tokens for record in done)
        drafted = _total(done, lambda record: record.drafted_tokens)
        accepted = _total(done, lambda record: record.accepted_tokens)
        return cls(
            calls=len(records),
            ended_well=len(done),
            mean_prompt_tokens=_mean([record.prompt_tokens for record in done]),
            mean_thought_tokens=_mean([record.thought_tokens for record in done]),
            mean_answer_tokens=_mean([record.answer_tokens for record in done]),
            cached_share=sum(record.cached_tokens for record in done) / prompt if prompt else None,
            accepted_share=accepted / drafted if drafted and accepted is not None else None,
            acceptance_length=acceptance_length(sum(one.output_tokens for one in done), drafted, accepted),
            first_token_p50=_spread(records, MEASURES["first_token"]).p50,
            first_answer_p50=_spread(records, MEASURES["first_answer"]).p50,
        )


def acceptance_length(output_tokens: int, drafted: int | None, accepted: int | None) -> float | None:
    """Return the output tokens per step: each step gives one token of the model and the accepted drafts.

    Accepted markers, such as the end of a thought, are no output: for replies of a few tokens the figure is a few
    percent too high.
    """
    if not drafted or accepted is None or accepted >= output_tokens:
        return None
    return output_tokens / (output_tokens - accepted)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """Figures of one load. Rates are per second of the window; shares are in [0, 1]. None: unknown."""

    seconds: float
    calls: int
    outcomes: Mapping[str, int]
    errors: Mapping[str, int]
    first_token: Spread
    first_answer: Spread
    per_token: Spread
    end_to_end: Spread
    longest_gap: Spread
    queue: Spread
    """Seconds of waiting at the server, as it reports them."""
    send_lag: Spread
    """Delay of the generator itself in seconds; a part of each latency above."""
    calls_per_second: float
    """Calls per second that ended well in the window, including those that began before it.

    The same holds for the rates below: calls that ran at the start make up for those that run at the end.
    """
    output_tokens_per_second: float
    thought_tokens_per_second: float
    prompt_tokens_per_second: float
    """Prompt tokens per second of calls with their first token in the window, without cached tokens."""
    mean_running: float
    """Mean number of running calls over the window."""
    mean_prompt_tokens: float | None
    mean_output_tokens: float | None
    mean_thought_tokens: float | None
    mean_image_tokens: float | None
    """Mean of the prompt tokens that stand for images."""
    cached_share: float | None
    """Share of the prompt tokens that came from the prefix cache."""
    drafted_tokens: int | None
    accepted_tokens: int | None
    thinking_outcomes: Mapping[str, int]
    over_budget: int
    """Number of thoughts longer than their budget."""
    goodput_share: float | None
    """Share of all calls meant for the window. Refused and failed calls are not good."""
    goodput_calls_per_second: float | None
    usd: float | None
    """Cost by the service's own price list."""
    by_kind: Mapping[str, Group]
    """Figures by kind of question; empty if no call has a kind."""
    by_turn: Mapping[str, Group]
    """Figures by turn of the conversation, from 1; empty if each conversation is one call."""


def summarize(
    every: Sequence[Record], seconds: float, thought_tokens: int, answer_tokens: int, objectives: Objectives
) -> LoadSummary:
    """Return the figures of a window of `seconds`.

    `every` has all calls, including those of the warm-up, which may have run in the window. The tokens are those that
    arrived in it.
    """
    records = [record for record in every if record.intended >= 0]
    done = [record for record in records if record.outcome == OK]
    admitted = [record for record in records if record.outcome not in (REFUSED, FAILED)]
    seen = [record for record in records if record.prompt_tokens]
    began = [one for one in every if one.first_token is not None and 0 <= one.first_token < seconds]
    ended = [one for one in every if one.outcome == OK and one.ended is not None and 0 <= one.ended < seconds]
    good = [record for record in records if objectives.kept_by(record)]
    judged = bool(objectives.stated and records)
    prompt = sum(record.prompt_tokens for record in seen)
    return LoadSummary(
        seconds=seconds,
        calls=len(records),
        outcomes=dict(Counter(record.outcome for record in records)),
        errors=dict(Counter(record.error for record in records if record.error)),
        **{name: _spread(admitted, read) for name, read in MEASURES.items()},
        longest_gap=Spread.of(record.longest_gap for record in done if record.output_tokens > 1),
        queue=Spread.of(record.queue_seconds for record in done),
        send_lag=Spread.of(record.sent - record.intended for record in records),
        calls_per_second=len(ended) / seconds,
        output_tokens_per_second=(thought_tokens + answer_tokens) / seconds,
        thought_tokens_per_second=thought_tokens / seconds,
        prompt_tokens_per_second=sum(record.prompt_tokens - record.cached_tokens for record in began) / seconds,
        mean_running=sum(_inside(one, seconds) for one in every if one.outcome not in (REFUSED, FAILED)) / seconds,
        mean_prompt_tokens=_mean([record.prompt_tokens for record in seen]),
        mean_image_tokens=_mean([record.image_tokens for record in seen]),
        mean_output_tokens=_mean([record.output_tokens for record in done]),
        mean_thought_tokens=_mean([record.thought_tokens for record in done]),
        cached_share=sum(record.cached_tokens for record in seen) / prompt if prompt else None,
        drafted_tokens=_total(done, lambda record: record.drafted_tokens),
        accepted_tokens=_total(done, lambda record: record.accepted_tokens),
        thinking_outcomes=dict(Counter(record.thinking_outcome for record in done)),
        over_budget=sum(
            record.budget_tokens is not None and record.thought_tokens > record.budget_tokens for record in records
        ),
        goodput_share=len(good) / len(records) if judged else None,
        goodput_calls_per_second=sum(map(objectives.kept_by, ended)) / seconds if judged else None,
        usd=None if (ticks := _total(done, lambda record: record.usd_ticks)) is None else ticks * _USD_PER_TICK,
        by_kind=_grouped(records, lambda record: record.work.kind),
        by_turn=_grouped(records, lambda record: f"{record.turn + 1}")
        if any(record.work.turns > 1 for record in records)
        else {},
    )


def _grouped(records: Sequence[Record], name: Callable[[Record], str]) -> dict[str, Group]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(name(record), []).append(record)
    return {} if set(groups) <= {""} else {key: Group.of(group) for key, group in sorted(groups.items())}


def _spread(admitted: Sequence[Record], read: Callable[[Record], float | None]) -> Spread:
    """Return the values: infinite for lost calls, none for a call that ended well without such a token."""
    lost = sum(record.outcome in (DEADLINE, UNFINISHED) for record in admitted)
    values = [value for record in admitted if record.outcome == OK and (value := read(record)) is not None]
    return Spread.of([*values, *[math.inf] * lost])


def _inside(record: Record, seconds: float) -> float:
    end = seconds if record.ended is None else record.ended
    return max(0.0, min(end, seconds) - max(record.sent, 0.0))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _total(records: Sequence[Record], count: Callable[[Record], int | None]) -> int | None:
    """Return the sum, or None if any value is unknown."""
    known = [one for record in records if (one := count(record)) is not None]
    return sum(known) if known and len(known) == len(records) else None
