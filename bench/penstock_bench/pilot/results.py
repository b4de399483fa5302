"""Define the JSON file of a pilot, which `penstock plan --calibrate` reads; docs/pilot.md documents it.

Plain values with names that tell their units; None: not observed. A file of another format is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT = 1
Kind = Literal["concurrency", "rate", "context", "prefix", "burst", "soak"]


class Plain(BaseModel):
    """Base of the values in the JSON file: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Seconds(Plain):
    """Percentiles. `lost` of `count` never ended and are infinite; None: none, or among the lost."""

    count: int
    lost: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    most: float | None


class EngineSeen(Plain):
    """By the Prometheus endpoint, over one stage."""

    kv_usage_most: float | None
    """Share of the KV cache, of 1."""
    preemptions: int | None
    prefix_queried_tokens: int | None
    prefix_hit_tokens: int | None
    drafts: int | None
    """Drafts made, each of several tokens."""
    accepted_by_position: tuple[int, ...]


class Stage(Plain):
    """One load. Rates per second, shares of 1."""

    kind: Kind
    name: str
    interrupted: bool = False
    concurrency: int | None = None
    """Callers of a closed loop."""
    rate: float | None = None
    """Intended calls per second of an open loop."""
    prompt_tokens: int
    """Asked for; `mean_prompt_tokens` is what came of it."""
    output_tokens: int
    shared_prefix_tokens: int = 0
    seconds: float
    calls: int
    outcomes: dict[str, int]
    errors: dict[str, int]
    first_token: Seconds
    first_answer: Seconds
    per_token: Seconds
    end_to_end: Seconds
    queue: Seconds
    send_lag: Seconds
    calls_per_second: float
    output_tokens_per_second: float
    prompt_tokens_per_second: float
    """Computed: cached ones left out."""
    mean_running: float
    mean_prompt_tokens: float | None
    mean_output_tokens: float | None
    cached_share: float | None
    drafted_tokens: int | None
    accepted_tokens: int | None
    over_budget: int
    goodput_share: float | None
    front_end_cores: float | None = None
    front_end_cpu_seconds_per_token: float | None = None
    engine_cores: float | None = None
    generator_cores: float | None = None
    memory_gib: dict[str, float] = {}
    """By role, all processes of a role together, at its most."""
    memory_over_time_gib: tuple[tuple[float, float], ...] = ()
    """(second, all of the service's processes)."""
    tokens_by_second: tuple[int, ...] = ()
    end_to_end_p50_by_half: tuple[float | None, float | None] = (None, None)
    engine: EngineSeen | None = None
    intervals_95: dict[str, tuple[float, float]] = {}
    """By figure, over five parts of the stage; empty without SciPy, or where there were too few calls."""
    other_cores: float | None = None
    """Used by other processes of this machine."""


class KneePoint(Plain):
    """One arrival rate of the search for the knee. Calls per second, seconds; shares of the calls that arrived."""

    calls_per_second: float
    served_calls_per_second: float
    output_tokens_per_second: float
    calls: int
    growth_share: float
    unserved_share: float
    kept_share: float | None
    first_token_p95: float | None
    end_to_end_p95: float | None
    keeps_up: bool
    keeps_objectives: bool | None


class Knee(Plain):
    """Hold the result of the search, in calls per second; None: not found."""

    calls_per_second: float | None
    interval_95: tuple[float, float] | None = None
    """Over repeated searches."""
    holds: float | None
    fails: float | None
    objective_holds: float | None
    objective_fails: float | None
    objective_share: float
    """Of the calls must keep every objective."""
    points: tuple[KneePoint, ...]


class Answers(Plain):
    """One thinking setting, asked all the questions."""

    name: str
    mode: str
    budget_tokens: int | None
    deadline_seconds: float | None
    asked: int
    right: int
    accuracy: float
    accuracy_interval_95: tuple[float, float]
    mean_prompt_tokens: float
    mean_thought_tokens: float
    mean_answer_tokens: float
    outcomes: dict[str, int]
    deadline_missed: int
    over_budget: int
    latency_p50_seconds: float
    latency_p95_seconds: float
    drafted_tokens: int | None
    accepted_tokens: int | None


class Layer(Plain):
    """Expert load of one MoE layer."""

    layer: int
    expert_tokens: tuple[int, ...]
    imbalance: float
    """Busiest expert over the mean."""
    busiest_rank_share: float


class Experts(Plain):
    """Expert load after the loads. `ranks`: what busiest_rank_share is about."""

    window_seconds: float
    tokens: int
    ranks: int
    as_served: bool
    """False: nobody serves on so many ranks; it is what would be."""
    layers: tuple[Layer, ...]


class Prices(Plain):
    """USD. `hour`: of one GPU or machine; hosted: list price per million tokens. None: not given."""

    hour: float | None = None
    gpus: int = 1
    hosted_input: float | None = None
    hosted_output: float | None = None
    hosted_source: str = ""


class Point(Plain):
    """One measured point of speed, as `penstock plan --calibrate` wants it. None: that stage does not tell."""

    stage: str
    concurrency: int
    context_tokens: float
    """Held by a sequence, on average, while it was measured."""
    output_tokens_per_second: float | None
    """While decoding: callers over the mean time between two tokens of a stream. Not what the stage gave in all."""
    prompt_tokens_per_second: float | None
    """While reading prompts: in stages that do little else."""


class Result(Plain):
    """A whole pilot, or as much of it as there was."""

    format: Literal[1] = 1
    date: str
    command: str
    quick: bool
    complete: bool
    target: str
    seconds: float
    """It took."""
    client_machine: dict[str, Any]
    processes_not_seen: str | None
    metrics_not_seen: str | None
    model: str
    served: dict[str, Any]
    """What GetModel tells: versions, window, profile with reasons, price list."""
    objectives_seconds: dict[str, float]
    kv_cache_tokens: int | None = None
    cache_block_tokens: int | None = None
    capacity_sequences: int | None = None
    stages: tuple[Stage, ...]
    knee: Knee | None = None
    questions: str = ""
    answers: tuple[Answers, ...]
    answers_complete: bool = True
    experts: Experts | None
    experts_not_seen: str | None
    prices: Prices
    points: tuple[Point, ...]

    def of(self, kind: Kind) -> list[Stage]:
        """Return the stages of this kind that have calls."""
        return [stage for stage in self.stages if stage.kind == kind and stage.calls]


def points_of(stages: Iterable[Stage]) -> tuple[Point, ...]:
    """Return the points of the closed loops: decoding from the sweep of callers, prefill from the sweep of prompt
    lengths.
    """
    return tuple(point for stage in stages if (point := _point(stage)) is not None)


def _point(stage: Stage) -> Point | None:
    prompt, output, each = stage.mean_prompt_tokens, stage.mean_output_tokens, stage.per_token.mean
    if stage.concurrency is None or prompt is None or output is None:
        return None
    if stage.kind == "concurrency" and each:
        decoding = stage.concurrency / each
        return Point(
            stage=stage.name,
            concurrency=stage.concurrency,
            context_tokens=prompt + output / 2,
            output_tokens_per_second=decoding,
            prompt_tokens_per_second=None,
        )
    if stage.kind == "context" and stage.prompt_tokens_per_second:
        return Point(
            stage=stage.name,
            concurrency=stage.concurrency,
            context_tokens=prompt,
            output_tokens_per_second=None,
            prompt_tokens_per_second=stage.prompt_tokens_per_second,
        )
    return None


def read(file: Path) -> Result:
    """Raises ValueError where it is no pilot's result, OSError where it cannot be read."""
    try:
        return Result.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file} is no result of `penstock pilot`: {place}: {first['msg']}") from None
