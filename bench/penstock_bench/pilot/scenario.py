"""Define the stages in order: `quick` takes a few minutes on two cores, `full` is for a decision."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Scenario:
    """The scenario: seconds to measure per stage, after `warm_up_seconds`, and tokens per call."""

    prompt_tokens: int
    output_tokens: int
    concurrencies: tuple[int, ...]
    concurrency_seconds: float
    knee_points: int
    """Largest number of rates in one search for the knee; 0: no search."""
    knee_calls: int
    """Smallest number of calls at each rate."""
    knee_tolerance: float
    knee_runs: int
    """Number of searches; three or more give a useful interval."""
    rate_shares: tuple[float, ...]
    """Rates as shares of the largest calls per second of the closed loops."""
    rate_seconds: float
    contexts: tuple[int, ...]
    """Prompt lengths in tokens; those that exceed the window are left out."""
    context_callers: int
    context_output_tokens: int
    context_seconds: float
    prefix_tokens: int
    burst_every_seconds: float
    bursts: int
    burst_size: int
    """Calls of a burst; 0: twice the callers of the fastest stage."""
    questions: int
    budgets: tuple[int, ...]
    deadlines_seconds: tuple[float, ...]
    question_callers: int
    max_question_output_tokens: int
    soak_seconds: float
    soak_share: float
    warm_up_seconds: float


QUICK = Scenario(
    prompt_tokens=128,
    output_tokens=48,
    concurrencies=(1, 4, 16, 48),
    concurrency_seconds=8.0,
    knee_points=7,
    knee_calls=60,
    knee_tolerance=0.15,
    knee_runs=1,
    rate_shares=(0.5, 0.8),
    rate_seconds=12.0,
    contexts=(512, 2048, 8192),
    context_callers=4,
    context_output_tokens=8,
    context_seconds=6.0,
    prefix_tokens=1536,
    burst_every_seconds=7.0,
    bursts=2,
    burst_size=0,
    questions=60,
    budgets=(0, 8, 24, 48, -1),
    deadlines_seconds=(2.0,),
    question_callers=16,
    max_question_output_tokens=512,
    soak_seconds=30.0,
    soak_share=0.6,
    warm_up_seconds=2.0,
)
FULL = replace(
    QUICK,
    prompt_tokens=512,
    output_tokens=256,
    concurrencies=(1, 2, 4, 8, 16, 32, 64, 128),
    concurrency_seconds=45.0,
    knee_points=14,
    knee_calls=200,
    knee_tolerance=0.05,
    knee_runs=3,
    rate_shares=(0.25, 0.5, 0.7, 0.85, 1.0),
    rate_seconds=60.0,
    contexts=(1024, 4096, 16_384, 65_536, 131_072, 250_000),
    context_output_tokens=32,
    context_seconds=45.0,
    prefix_tokens=4096,
    burst_every_seconds=30.0,
    bursts=4,
    questions=300,
    budgets=(0, 8, 16, 32, 64, 256, 1024, -1),
    max_question_output_tokens=4096,
    soak_seconds=900.0,
    warm_up_seconds=10.0,
)
