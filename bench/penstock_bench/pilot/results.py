"""Define the JSON file of a pilot, which `penstock plan --calibrate` reads. docs/how-to/pilot.md describes it.

It has plain values whose names have their units; None: not observed. A file of another format is refused.
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
    """Percentiles of `count` values, of which `lost` are infinite. None: no values, or among the lost ones."""

    count: int
    lost: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    most: float | None


class EngineSeen(Plain):
    """Values of the Prometheus endpoint over one stage."""

    kv_usage_most: float | None
    """Largest share of the KV cache in use, in [0, 1]."""
    preemptions: int | None
    prefix_queried_tokens: int | None
    prefix_hit_tokens: int | None
    drafts: int | None
    """Number of drafts, each of several tokens."""
    accepted_by_position: tuple[int, ...]


class Stage(Plain):
    """One load. Rates are per second, shares in [0, 1]."""

    kind: Kind
    name: str
    interrupted: bool = False
    concurrency: int | None = None
    """Number of callers of a closed loop."""
    rate: float | None = None
    """Intended calls per second of an open loop."""
    prompt_tokens: int
    """Wanted prompt tokens; `mean_prompt_tokens` has the actual ones."""
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
    """Computed prompt tokens per second, without cached ones."""
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
    """Peak memory by role, all processes of a role together."""
    memory_over_time_gib: tuple[tuple[float, float], ...] = ()
    """Memory of all the service's processes over time, as (second, GiB)."""
    tokens_by_second: tuple[int, ...] = ()
    end_to_end_p50_by_half: tuple[float | None, float | None] = (None, None)
    engine: EngineSeen | None = None
    intervals_95: dict[str, tuple[float, float]] = {}
    """95 % intervals by figure, from five parts of the stage; empty without SciPy or with too few calls."""
    other_cores: float | None = None
    """Cores that other processes of this machine used."""


class KneePoint(Plain):
    """One arrival rate of the search for the knee: calls per second, seconds, and shares of the arrived calls."""

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
    """The result of the search, in calls per second; None: not found."""

    calls_per_second: float | None
    interval_95: tuple[float, float] | None = None
    """95 % interval of the knee over repeated searches."""
    holds: float | None
    fails: float | None
    objective_holds: float | None
    objective_fails: float | None
    objective_share: float
    """Share of the calls that must keep all objectives."""
    points: tuple[KneePoint, ...]


class Answers(Plain):
    """Results of one thinking setting on the questions."""

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
    """Load of the busiest expert divided by the mean."""
    busiest_rank_share: float


class Experts(Plain):
    """Expert load after the loads. `ranks` is the number of ranks of busiest_rank_share."""

    window_seconds: float
    tokens: int
    ranks: int
    as_served: bool
    """False: the service has fewer ranks, and the figures are computed for `ranks`."""
    layers: tuple[Layer, ...]


class Prices(Plain):
    """Prices in USD. `hour`: of one GPU or machine; hosted: list price per million tokens. None: not given."""

    hour: float | None = None
    gpus: int = 1
    hosted_input: float | None = None
    hosted_output: float | None = None
    hosted_source: str = ""


class Point(Plain):
    """One measured point of speed for `penstock plan --calibrate`. None: not measured in that stage."""

    stage: str
    concurrency: int
    context_tokens: float
    """Mean number of tokens in the context of a sequence during the measurement."""
    output_tokens_per_second: float | None
    """Tokens per second while decoding: callers divided by the mean time between two tokens of a stream."""
    prompt_tokens_per_second: float | None
    """Tokens per second while reading prompts, from stages that do little else."""


Figure = Literal["output_tokens_per_second", "prompt_tokens_per_second", "seconds_per_token", "first_token_seconds"]


class PlannedFigure(Plain):
    """A measured figure of a stage, and what `penstock plan` says of it.

    Below `low` or above `high` it is outside the plan's range; `high` is None if the plan has a lower end only.
    """

    stage: str
    figure: Figure
    measured: float
    planned: float
    low: float
    high: float | None
    past_knee: bool
    """Whether the plan's throughput hardly grows with so many streams; its range is wider then."""

    @property
    def inside(self) -> bool:
        """Return whether the measured figure is in the plan's range."""
        return self.low <= self.measured and (self.high is None or self.measured <= self.high)


class LeftOut(Plain):
    """A measured figure of a stage, and what a calibration with all other stages says of it."""

    stage: str
    figure: Figure
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Return the relative error of the prediction."""
        return self.predicted / self.measured - 1


class Calibration(Plain):
    """Hold the fit of `penstock plan --calibrate` to all points.

    A step takes `decode_factor` x computed seconds + `decode_extra_seconds`, prompts `prefill_factor` x theirs. `error`
    is the mean relative error that is left for the points that were fitted.
    """

    decode_factor: float
    decode_extra_seconds: float
    prefill_factor: float
    error: float
    left_out: tuple[LeftOut, ...]


class PlanBeside(Plain):
    """Hold what `penstock plan` says of the measured stages. A reason says why a part is missing.

    `tokens_per_step` is 1 plus the accepted drafts of a step, as measured or, if that was not observed, as assumed.
    """

    device: str | None
    """Key of the device in devices.toml; None: not known."""
    devices: int | None = None
    layout: str = ""
    drafted: int = 0
    tokens_per_step: float = 1.0
    tokens_per_step_measured: bool = False
    not_planned: str | None
    figures: tuple[PlannedFigure, ...] = ()
    not_calibrated: str | None = None
    calibration: Calibration | None = None


class Result(Plain):
    """The result of a pilot, complete or partial."""

    format: Literal[1] = 1
    date: str
    command: str
    quick: bool
    complete: bool
    target: str
    seconds: float
    """Duration in seconds."""
    client_machine: dict[str, Any]
    processes_not_seen: str | None
    metrics_not_seen: str | None
    model: str
    served: dict[str, Any]
    """Values of GetModel: versions, window, profile with reasons, price list."""
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
    plan: PlanBeside | None = None
    """None: a result of an earlier version, or of the scripted engine."""
    gpu_check: dict[str, Any] | None = None
    """Result of `penstock gpu-check` (`--gpu-check`), as its own file has it."""

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
    """Read a result. Raises ValueError if it is no result of a pilot, and OSError if it cannot be read."""
    try:
        return Result.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file} must be a result of `penstock pilot`: {place}: {first['msg']}") from None
