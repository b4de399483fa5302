"""Compute the cost of a token on some devices, and the load from which it is lower than a hosted price."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from penstock_bench.capacity.speed import Mix, Point

_MILLION = 1e6
_HOSTED = Path(__file__).parent / "hosted.toml"


@dataclass(frozen=True, slots=True)
class Hosted:
    """A hosted list price in USD per million tokens. Thought is billed as output."""

    input_usd: float
    output_usd: float
    source: str

    def request_usd(self, mix: Mix) -> float:
        """Return the hosted price of one request, in USD."""
        return (mix.input_tokens * self.input_usd + mix.output_tokens * self.output_usd) / _MILLION


def hosted_price(model: str) -> Hosted | None:
    """Return the shipped list price of the model, for any precision; None if there is none."""
    name = model.rsplit("/")[-1].removesuffix("-FP8").removesuffix("-NVFP4")
    found = tomllib.loads(_HOSTED.read_text(encoding="utf-8")).get(name)
    if found is None:
        return None
    return Hosted(found["input_usd"], found["output_usd"], f"{found['source']}, {found['read']}")


@dataclass(frozen=True, slots=True)
class ServingCost:
    """Costs at one concurrency on a machine that is always busy: USD per million tokens, and of one request."""

    concurrency: int
    input_usd: float
    output_usd: float
    request_usd: float
    thought_usd_per_request: float


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The requests per hour at which the hosted price equals the machine's, and the load that they are."""

    hosted_usd_per_request: float
    machine_usd_per_hour: float
    requests_per_hour: float
    capacity_requests_per_hour: float

    @property
    def load(self) -> float:
        """Return the break-even load as a share of the machine's capacity."""
        return self.requests_per_hour / self.capacity_requests_per_hour

    @property
    def reached(self) -> bool:
        """Return whether the machine can carry the break-even load."""
        return self.load <= 1


def cost(point: Point, mix: Mix, usd_per_hour: float) -> ServingCost:
    """Return the costs. A thought token costs the same as an answer token: each takes one position of a decode step."""
    per_second = usd_per_hour / 3600
    output = per_second / point.decode_tokens_per_second
    return ServingCost(
        concurrency=point.concurrency,
        input_usd=per_second / point.prompt_tokens_per_second * _MILLION,
        output_usd=output * _MILLION,
        request_usd=per_second / point.requests_per_second,
        thought_usd_per_request=output * mix.thought_tokens,
    )


def break_even(best: Point, mix: Mix, usd_per_hour: float, hosted: Hosted) -> BreakEven:
    """Return the load at which the hosted bill equals the price of the machine."""
    each = hosted.request_usd(mix)
    return BreakEven(
        hosted_usd_per_request=each,
        machine_usd_per_hour=usd_per_hour,
        requests_per_hour=usd_per_hour / each if each else float("inf"),
        capacity_requests_per_hour=best.requests_per_second * 3600,
    )
