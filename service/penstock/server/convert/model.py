"""Convert the model card, profile, prices and limits to the reply of GetModel."""

from __future__ import annotations

from importlib.metadata import version

from penstock_proto.v1 import model_pb2 as pb

from penstock.config.schema import Config
from penstock.generation.thinking import ThinkingDefaults, defaults_for, effort_tokens
from penstock.generation.usage import PriceList
from penstock.server.convert.generation import EARLY_EXITS_TO_PROTO, EFFORTS_TO_PROTO, MODES_TO_PROTO, sampling_to_proto
from penstock.types import EarlyExit, Effort, ModelCard, ThinkingMode


def model_to_proto(card: ModelCard, config: Config, prices: PriceList) -> pb.GetModelResponse:
    """Return the reply of GetModel."""
    default_mode = ThinkingMode(config.thinking.default_mode) if card.markers else ThinkingMode.FAST
    defaults = defaults_for(config.thinking, card)
    return pb.GetModelResponse(
        model=card.name,
        architecture=card.architecture,
        vocab_size=card.vocab_size,
        context_window_tokens=card.context_window_tokens,
        native_context_window_tokens=card.native_context_window_tokens,
        thinking_modes=MODES_TO_PROTO.values() if card.markers else [MODES_TO_PROTO[ThinkingMode.FAST]],
        default_thinking_mode=MODES_TO_PROTO[default_mode],
        default_sampling=sampling_to_proto(card.default_sampling),
        profile=[
            pb.ProfileFeature(name=f.name, enabled=f.enabled, value=f.value, reason=f.reason) for f in card.profile
        ],
        price_tiers=[
            pb.PriceTier(
                up_to_prompt_tokens=tier.up_to_prompt_tokens,
                input_usd_ticks_per_token=tier.input_usd_ticks,
                cached_usd_ticks_per_token=tier.cached_usd_ticks,
                output_usd_ticks_per_token=tier.output_usd_ticks,
            )
            for tier in prices.tiers
        ],
        limits=pb.Limits(
            **config.resolved_limits.model_dump(exclude_none=True),
            max_message_bytes=config.max_message_bytes,
            max_image_pixels=config.engine.max_image_pixels,
            image_pixels=config.engine.image_pixels,
        ),
        refused_fields=[pb.RefusedField(field=field, reason=why) for field, why in card.unsupported_fields.items()],
        service_version=version("penstock"),
        engine_version=card.engine_version,
        auto_thinking_budget=defaults.auto_budget_tokens,
        answer_reserve=defaults.answer_reserve_tokens,
        max_concurrent_requests=card.max_num_seqs,
        tool_call_format=card.tool_call_format.value if card.tool_call_format else "",
        default_early_exit=EARLY_EXITS_TO_PROTO[_least(defaults.early_exit, defaults.early_exit_allowed)],
        max_early_exit=EARLY_EXITS_TO_PROTO[EarlyExit(config.thinking.early_exit_allowed)],
        efforts=[_effort(effort, defaults) for effort in Effort],
    )


def _least(*names: str) -> EarlyExit:
    return min(map(EarlyExit, names), key=list(EarlyExit).index)


def _effort(effort: Effort, defaults: ThinkingDefaults) -> pb.EffortBudget:
    tokens, share = effort_tokens(effort, defaults)
    return pb.EffortBudget(effort=EFFORTS_TO_PROTO[effort], thinking_budget=tokens, output_share=share)
