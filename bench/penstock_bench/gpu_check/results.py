"""Define the JSON file of `penstock gpu-check`, which `penstock pilot --gpu-check` reads.

It has plain values whose names have their units; None: not measured. A file of another format is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from penstock_bench.gpu_check.cards import Card
from penstock_bench.pilot.flag import State
from penstock_bench.pilot.results import Experts, Plain, Stage
from pydantic import ValidationError


class BudgetCase(Plain):
    """One thought with a budget. `held`: it stopped at the budget, or ended by itself before it."""

    sampling: str
    budget_tokens: int
    thought_tokens: int
    outcome: str
    held: bool


class Killed(Plain):
    """Streams that ran while the engine was killed (SIGKILL).

    `same` counts the continued streams with the text of an undisturbed run; a sum in another batch may round otherwise.
    """

    streams: int
    complete: int
    continued: int
    same: int
    over_budget: int


class Variant(Plain):
    """One configuration of the engine, and what was found. `error` says why it is incomplete."""

    name: str
    settings: dict[str, str]
    error: str = ""
    start_seconds: float | None = None
    profile: tuple[dict[str, Any], ...] = ()
    budgets: tuple[BudgetCase, ...] = ()
    asked: int = 0
    right: int = 0
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    repeated_prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of a repeated prompt that came from the prefix cache."""
    experts: Experts | None = None
    experts_not_seen: str | None = None
    killed: Killed | None = None
    stages: tuple[Stage, ...] = ()

    def feature(self, name: str) -> dict[str, Any] | None:
        """Return a row of the profile; None where the engine did not start."""
        return next((one for one in self.profile if one["name"] == name), None)


class Comparison(Plain):
    """Output tokens per second by front end and number of streams, all on the same arguments of the engine."""

    labels: dict[str, str]
    tokens_per_second: dict[str, dict[int, float]]
    notes: tuple[str, ...]


class Check(Plain):
    """One thing that was checked, with its figures."""

    id: str
    title: str
    state: State
    evidence: str


class GpuCheck(Plain):
    """The result, complete or partial. `engine` is the build that served, not the one that was asked for."""

    format: Literal[1] = 1
    date: str
    command: str
    quick: bool
    complete: bool
    seconds: float
    engine: Literal["cpu", "gpu", "other"]
    engine_version: str
    service_version: str
    model: str
    machine: dict[str, Any]
    cards: tuple[Card, ...]
    variants: tuple[Variant, ...]
    comparison: Comparison | None
    comparison_not_made: str | None
    checks: tuple[Check, ...]

    @property
    def device(self) -> str:
        """Return the name of what the engine ran on."""
        if self.engine == "gpu":
            return ", ".join(f"{card.name}, driver {card.driver}" for card in self.cards) or "a GPU without nvidia-smi"
        if self.engine == "cpu":
            return f"a CPU ({self.machine['cpu']})"
        return self.engine_version or "nothing: no engine started"


def read(file: Path) -> GpuCheck:
    """Read a result. Raises ValueError if it is no result of `penstock gpu-check`, OSError if it cannot be read."""
    try:
        return GpuCheck.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file} must be a result of `penstock gpu-check`: {place}: {first['msg']}") from None
