"""Find layouts and loads that are best in tokens per second of a user and of a device. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from penstock.errors import ConfigError
from penstock_bench.capacity.memory import Memory, Setup, layouts_of, plan_memory
from penstock_bench.capacity.roofline import Assumptions
from penstock_bench.capacity.speed import Correction, Mix, ceiling, concurrencies, point


@dataclass(frozen=True, slots=True)
class Choice:
    """One layout at one concurrency. `usd_per_million` counts input and output tokens; None without a price."""

    tensor: int
    data: int
    drafted: int
    concurrency: int
    user_tokens_per_second: float
    device_tokens_per_second: float
    usd_per_million: float | None


def frontier(
    setup: Setup, assumed: Assumptions, mix: Mix, usd_per_hour: float | None, correction: Correction | None = None
) -> tuple[Choice, ...]:
    """Return the choices of which no other is better in both rates, the fastest for a user first.

    A user's rate is the output tokens over the whole time of a request, including its prompt. A device's rate is the
    output tokens of all users, divided by the devices. Layouts use all devices, with and without drafts, and as many
    requests as fit.
    """
    found = [
        choice
        for one in _layouts(setup)
        for choice in _choices(one, plan_memory(one), assumed, mix, usd_per_hour, correction or Correction())
    ]
    return best(found)


def best(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Return the choices of which no other is better in both rates."""
    kept: list[Choice] = []
    for one in sorted(choices, key=lambda one: (-one.user_tokens_per_second, -one.device_tokens_per_second)):
        if not kept or one.device_tokens_per_second > kept[-1].device_tokens_per_second:
            kept.append(one)
    return tuple(kept)


def at_interactivity(choices: Iterable[Choice], wanted: float) -> Choice | None:
    """Return the choice with the most tokens per device that gives each user `wanted` tokens per second, or None."""
    enough = [one for one in choices if one.user_tokens_per_second >= wanted]
    return max(enough, key=lambda one: one.device_tokens_per_second, default=None)


def _layouts(setup: Setup) -> Iterator[Setup]:
    for layout in layouts_of(setup, setup.count, spreads_experts=True):
        for drafted in sorted({0, setup.drafted}):
            made = replace(setup, layout=layout, drafted=drafted)
            if _possible(made):
                yield made


def _possible(setup: Setup) -> bool:
    try:
        return plan_memory(setup).fits
    except ConfigError:  # The heads cannot be divided.
        return False


# The arguments of `point` without the concurrency, and the price.
def _choices(
    setup: Setup, memory: Memory, assumed: Assumptions, mix: Mix, usd_per_hour: float | None, correction: Correction
) -> Iterator[Choice]:
    most = ceiling(setup, memory, mix.total_tokens)
    for number in concurrencies(most) if most else ():
        made = point(setup, memory, assumed, mix, number, correction)
        rate = made.output_tokens_per_second(mix)
        every = made.requests_per_second * mix.total_tokens
        yield Choice(
            tensor=setup.layout.tensor,
            data=setup.layout.data,
            drafted=setup.drafted,
            concurrency=number,
            user_tokens_per_second=rate / number,
            device_tokens_per_second=rate / setup.count,
            usd_per_million=None if usd_per_hour is None else usd_per_hour / 3600 / every * 1e6,
        )
