"""Compute exact costs from exact counts: prices in integer ticks of 1e-10 USD per token, in tiers by prompt length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from penstock.config.schema import PriceTier
from penstock.types import Cost, Finished, Usage

# 1 USD per million tokens = 1e-6 USD per token = 10,000 ticks of 1e-10 USD per token.
TICKS_PER_TOKEN_AT_1_USD_PER_MILLION = 10_000


@dataclass(frozen=True, slots=True)
class TickTier:
    """Hold one price tier in ticks per token."""

    up_to_prompt_tokens: int | None
    input_usd_ticks: int
    cached_usd_ticks: int
    output_usd_ticks: int


class PriceList:
    """Hold prices by prompt length. Without tiers nothing has a cost."""

    def __init__(self, tiers: Sequence[PriceTier]) -> None:
        self.tiers = tuple(_in_ticks(tier) for tier in tiers)

    def cost(self, usage: Usage) -> Cost | None:
        """Return the cost of a call; None without tiers. The last tier also applies to prompts above its bound."""
        tier = self._tier(usage.prompt_tokens)
        if tier is None:
            return None
        return Cost(
            input_usd_ticks=(usage.prompt_tokens - usage.cached_tokens) * tier.input_usd_ticks,
            cached_usd_ticks=usage.cached_tokens * tier.cached_usd_ticks,
            output_usd_ticks=usage.output_tokens * tier.output_usd_ticks,
        )

    def _tier(self, prompt_tokens: int) -> TickTier | None:
        for tier in self.tiers:
            if tier.up_to_prompt_tokens is None or prompt_tokens <= tier.up_to_prompt_tokens:
                return tier
        return self.tiers[-1] if self.tiers else None


def _in_ticks(tier: PriceTier) -> TickTier:
    cached = tier.input_usd_per_million if tier.cached_usd_per_million is None else tier.cached_usd_per_million
    return TickTier(
        up_to_prompt_tokens=tier.up_to_prompt_tokens,
        input_usd_ticks=int(tier.input_usd_per_million * TICKS_PER_TOKEN_AT_1_USD_PER_MILLION),
        cached_usd_ticks=int(cached * TICKS_PER_TOKEN_AT_1_USD_PER_MILLION),
        output_usd_ticks=int(tier.output_usd_per_million * TICKS_PER_TOKEN_AT_1_USD_PER_MILLION),
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a generation is.

    Attributes:
        has_token: Whether any candidate has a token.
        may_think: Whether any candidate's thought is under way or to come.
        thought_budget_tokens: Most thought tokens of each candidate from the next engine step on.
    """

    has_token: bool
    may_think: bool
    thought_budget_tokens: int


class UsageMeter:
    """Report what a generation has used at any time, so that it is billed however it ends; and how far it is."""

    def __init__(self) -> None:
        self._read: Callable[[], Usage] | None = None
        self._progress: Callable[[], Progress] | None = None
        self._before = Usage()
        self.finished: Finished | None = None
        """The last event; None until it was sent."""

    def start(self, read: Callable[[], Usage], progress: Callable[[], Progress], *, goes_on: bool) -> None:
        """Start metering the engine's work. `goes_on`: another server has billed what `read` returns now."""
        self._read, self._progress = read, progress
        if goes_on:
            self._before = read()

    def tokens(self) -> int:
        """Return the prompt and output tokens that this server has computed."""
        return (self._read().total_tokens if self._read else 0) - self._before.total_tokens

    def usd_ticks(self, prices: PriceList) -> int:
        """Return the cost of what this server has computed; 0 without a price list."""
        if self._read is None:
            return 0
        now, before = prices.cost(self._read()), prices.cost(self._before)
        if now is None or before is None:
            return 0
        return now.total_usd_ticks - before.total_usd_ticks

    @property
    def progress(self) -> Progress | None:
        """Return how far the generation is; None before it has a permit."""
        return self._progress() if self._progress else None

    @property
    def usage(self) -> Usage:
        """Return all tokens, of this server and of others."""
        return self._read() if self._read else Usage()


def total(usages: Sequence[Usage]) -> Usage:
    """Return the counts of all candidates. They share one prompt, which is counted and billed once."""
    if len(usages) == 1:
        return usages[0]
    summed: dict[str, Any] = {}
    for f in fields(Usage):
        counts = [count for usage in usages if (count := getattr(usage, f.name)) is not None]
        shared = f.name in ("prompt_tokens", "cached_tokens", "image_tokens")
        summed[f.name] = (counts[0] if shared else sum(counts)) if counts else None
    return Usage(**summed)
