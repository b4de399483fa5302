"""Replies of `model()` and `count()`: the served model's card and a prompt's token count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Self

from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import model_pb2

from penstock_client.values import (
    EarlyExit,
    EffectiveSettings,
    Effort,
    ThinkingMode,
    from_proto_enum,
    sampling_from_proto,
    thinking_mode,
    usd_from_ticks,
)

_TOKENS_PER_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class ProfileFeature:
    """One feature of the engine.

    Attributes:
        name: Name of the feature.
        enabled: Whether it is on.
        value: Its setting; may be empty.
        reason: Why it is on or off.
    """

    name: str
    enabled: bool
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices of the calls whose prompt is in this tier, in USD per million tokens.

    Attributes:
        up_to_prompt_tokens: Longest prompt of the tier, in tokens; None: no limit.
        input_usd_per_million: Price of input tokens that were not cached.
        cached_usd_per_million: Price of input tokens from the prefix cache.
        output_usd_per_million: Price of output tokens, thought and answer.
    """

    up_to_prompt_tokens: int | None
    input_usd_per_million: Decimal
    cached_usd_per_million: Decimal
    output_usd_per_million: Decimal


@dataclass(frozen=True, slots=True)
class EffortBudget:
    """Hold the bounds of an effort on a server; the smaller one holds.

    Attributes:
        thinking_budget: Most thought tokens.
        output_share: Most thought tokens as a share of the call's output tokens, in [0, 1].
    """

    thinking_budget: int
    output_share: float


def _effort(one: model_pb2.EffortBudget) -> EffortBudget:
    return EffortBudget(one.thinking_budget, one.output_share)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The served model with its profile, prices, limits and defaults.

    Attributes:
        model: Name of the model.
        architecture: Class of the model in vLLM.
        vocab_size: Number of tokens in the vocabulary.
        context_window_tokens: Longest prompt plus output that the server allows.
        native_context_window_tokens: The window the model was trained for.
        thinking_modes: The modes that a request may name.
        default_thinking_mode: The mode of a request that names none.
        default_sampling: Default sampling parameters by proto field name.
        profile: The engine's features.
        price_tiers: Prices by length of the prompt; empty where the server has no price list.
        limits: The server's limits by proto field name.
        refused_fields: Request fields that this server refuses, by path, with the reason.
        service_version: Version of Penstock.
        engine_version: Version of the engine.
        auto_thinking_budget: Default thinking budget of the mode AUTO, in tokens; 0 from an older server.
        answer_reserve: Default number of output tokens kept for the answer; 0 from an older server.
        max_concurrent_requests: Requests that one replica of the engine runs at once; 0 from an older server.
        tool_call_format: How the model writes tool calls, `xml` or `json`; empty where it has no tools.
        efforts: What each effort is on this server, by its name.
        default_early_exit: What ends a thought of AUTO early where the request names nothing.
        max_early_exit: The costliest early exit that a request may ask for.
        raw: The reply as it came.
    """

    model: str
    architecture: str
    vocab_size: int
    context_window_tokens: int
    native_context_window_tokens: int
    thinking_modes: tuple[ThinkingMode, ...]
    default_thinking_mode: ThinkingMode
    default_sampling: Mapping[str, object]
    profile: tuple[ProfileFeature, ...]
    price_tiers: tuple[PriceTier, ...]
    limits: Mapping[str, int]
    refused_fields: Mapping[str, str]
    service_version: str
    engine_version: str
    auto_thinking_budget: int
    answer_reserve: int
    max_concurrent_requests: int
    tool_call_format: str
    efforts: Mapping[Effort, EffortBudget]
    default_early_exit: EarlyExit
    max_early_exit: EarlyExit
    raw: model_pb2.GetModelResponse = field(repr=False)

    @classmethod
    def from_proto(cls, reply: model_pb2.GetModelResponse) -> Self:
        """Convert the reply of `GetModel`."""
        return cls(
            model=reply.model,
            architecture=reply.architecture,
            vocab_size=reply.vocab_size,
            context_window_tokens=reply.context_window_tokens,
            native_context_window_tokens=reply.native_context_window_tokens,
            thinking_modes=tuple(thinking_mode(mode) for mode in reply.thinking_modes),
            default_thinking_mode=thinking_mode(reply.default_thinking_mode),
            default_sampling=sampling_from_proto(reply.default_sampling),
            profile=tuple(ProfileFeature(f.name, f.enabled, f.value, f.reason) for f in reply.profile),
            price_tiers=tuple(_price_tier(tier) for tier in reply.price_tiers),
            limits={
                limit.name: getattr(reply.limits, limit.name)
                for limit in reply.limits.DESCRIPTOR.fields
                if not limit.has_presence or reply.limits.HasField(limit.name)  # type: ignore[arg-type]
            },
            refused_fields={refused.field: refused.reason for refused in reply.refused_fields},
            service_version=reply.service_version,
            engine_version=reply.engine_version,
            auto_thinking_budget=reply.auto_thinking_budget,
            answer_reserve=reply.answer_reserve,
            max_concurrent_requests=reply.max_concurrent_requests,
            tool_call_format=reply.tool_call_format,
            efforts={from_proto_enum(Effort, pb.Effort, one.effort): _effort(one) for one in reply.efforts},
            default_early_exit=from_proto_enum(EarlyExit, pb.EarlyExit, reply.default_early_exit),
            max_early_exit=from_proto_enum(EarlyExit, pb.EarlyExit, reply.max_early_exit),
            raw=reply,
        )


def _price_tier(tier: model_pb2.PriceTier) -> PriceTier:
    return PriceTier(
        tier.up_to_prompt_tokens if tier.HasField("up_to_prompt_tokens") else None,
        usd_from_ticks(tier.input_usd_ticks_per_token * _TOKENS_PER_MILLION),
        usd_from_ticks(tier.cached_usd_ticks_per_token * _TOKENS_PER_MILLION),
        usd_from_ticks(tier.output_usd_ticks_per_token * _TOKENS_PER_MILLION),
    )


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens and the cost of a prompt, without generating.

    Attributes:
        prompt_tokens: Tokens of the prompt as sent.
        effective_prompt_tokens: Tokens that are left after the overflow policy.
        window_tokens: Tokens of prompt plus output that the request may use.
        window_left_tokens: Tokens of the window that are left for output.
        dropped_tokens: Tokens that the overflow policy drops.
        dropped_messages: Messages that the overflow policy drops.
        overflow_tokens: Tokens by which the prompt is too long after the overflow policy; 0 if it fits.
        min_usd: Lower bound of the cost in USD; None where the server has no price list.
        max_usd: Upper bound of the cost in USD; None where the server has no price list.
        effective_settings: The settings that a generation would have; None if the prompt does not fit.
        raw: The reply as it came.
    """

    prompt_tokens: int
    effective_prompt_tokens: int
    window_tokens: int
    window_left_tokens: int
    dropped_tokens: int
    dropped_messages: int
    overflow_tokens: int
    min_usd: Decimal | None
    max_usd: Decimal | None
    effective_settings: EffectiveSettings | None
    raw: pb.CountTokensResponse = field(repr=False)

    @classmethod
    def from_proto(cls, reply: pb.CountTokensResponse) -> Self:
        """Convert the reply of `CountTokens`."""
        priced = reply.HasField("cost_estimate")
        return cls(
            prompt_tokens=reply.prompt_tokens,
            effective_prompt_tokens=reply.effective_prompt_tokens,
            window_tokens=reply.window_tokens,
            window_left_tokens=reply.window_left_tokens,
            dropped_tokens=reply.dropped.tokens,
            dropped_messages=reply.dropped.messages,
            overflow_tokens=reply.overflow_tokens,
            min_usd=usd_from_ticks(reply.cost_estimate.min_usd_ticks) if priced else None,
            max_usd=usd_from_ticks(reply.cost_estimate.max_usd_ticks) if priced else None,
            effective_settings=(
                EffectiveSettings.from_proto(reply.effective_settings) if reply.HasField("effective_settings") else None
            ),
            raw=reply,
        )
