"""Define what a check does: the configurations of the engine, the budgets, and the loads."""

from __future__ import annotations

from dataclasses import dataclass, field

_OFF = {f"engine.{name}": "off" for name in ("fp8_weights", "fp8_kv_cache", "mtp", "prefix_caching")}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration of the engine. `is_loaded`: it is killed under load, and its speed is measured."""

    name: str
    settings: dict[str, str]
    is_loaded: bool = False


PLAIN = Configuration("plain", _OFF)
MTP = Configuration("mtp", {**_OFF, "engine.mtp": "on"})
FP8 = Configuration("fp8", {**_OFF, "engine.fp8_weights": "on", "engine.fp8_kv_cache": "on"})
ALL = Configuration("all features", {"engine.routing": "on"}, is_loaded=True)


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """Amounts of a check. `sampling` has (name, temperature, seed) of each way to draw tokens."""

    configurations: tuple[Configuration, ...] = (PLAIN, MTP, FP8, ALL)
    budgets: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 12, 17, 33)
    sampling: tuple[tuple[str, float, int | None], ...] = (
        ("greedy", 0.0, None),
        ("sampled, seed 7", 1.0, 7),
        ("sampled", 1.5, None),
    )
    questions: int = 48
    calls: int = 16
    """Questions that are asked at the same time."""
    killed_streams: int = 16
    streams: tuple[int, ...] = (1, 8, 64, 256)
    seconds: float = 15.0
    """Length of each load."""
    prompt_tokens: int = 128
    output_tokens: int = 128
    repeated_tokens: int = 2000
    """Prompt that is sent twice, for the prefix cache."""
    compare: bool = True
    compare_rounds: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of every configuration."""


FULL = CheckPlan()
QUICK = CheckPlan(
    configurations=(PLAIN, ALL),
    budgets=(0, 1, 3, 7, 12),
    questions=12,
    calls=6,
    killed_streams=6,
    streams=(1, 8),
    seconds=3.0,
    output_tokens=32,
    repeated_tokens=1200,
    compare=False,
)
