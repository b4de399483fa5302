"""Read the dimensions of a Qwen3.5-class text model from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shape:
    """Hold the dimensions. `linear_layers` are Gated DeltaNet, `full_layers` attend to all tokens.

    Widths are in elements. `experts` is 0 for a dense model, which then has `inner`; `draft_layers` are for multi-token
    prediction (MTP).
    """

    vocab: int
    hidden: int
    linear_layers: int
    full_layers: int
    draft_layers: int
    tied: bool
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool
    linear_keys: int
    linear_values: int
    linear_key_dim: int
    linear_value_dim: int
    kernel: int
    state_element_bytes: int
    experts: int
    experts_per_token: int
    expert_inner: int
    shared_inner: int
    inner: int
    window_tokens: int

    @property
    def layers(self) -> int:
        """Return the number of layers, without draft layers."""
        return self.linear_layers + self.full_layers

    @property
    def convolved(self) -> int:
        """Return the channels of a Gated DeltaNet layer's convolution: queries, keys and values."""
        return 2 * self.linear_keys * self.linear_key_dim + self.linear_values * self.linear_value_dim


def read_shape(text: Mapping[str, Any]) -> Shape:
    """Return the dimensions in the text part of config.json. Raise ConfigError naming a missing one."""
    try:
        return _read(text)
    except KeyError as error:
        raise ConfigError(f"config.json lacks {error.args[0]}, which the model's size depends on") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.json has a size that is not a number: {error}") from None


def _read(text: Mapping[str, Any]) -> Shape:
    linear, full = _layers(text)
    experts = int(text.get("num_experts") or 0)
    return Shape(
        vocab=int(text["vocab_size"]),
        hidden=int(text["hidden_size"]),
        linear_layers=linear,
        full_layers=full,
        draft_layers=int(text.get("mtp_num_hidden_layers") or 0),
        tied=bool(text.get("tie_word_embeddings")),
        heads=int(text["num_attention_heads"]),
        kv_heads=int(text["num_key_value_heads"]),
        head_dim=int(text["head_dim"]),
        gated=bool(text.get("attn_output_gate", True)),
        linear_keys=int(text["linear_num_key_heads"]) if linear else 0,
        linear_values=int(text["linear_num_value_heads"]) if linear else 0,
        linear_key_dim=int(text["linear_key_head_dim"]) if linear else 0,
        linear_value_dim=int(text["linear_value_head_dim"]) if linear else 0,
        kernel=int(text["linear_conv_kernel_dim"]) if linear else 0,
        # The official configurations set float32; without it vLLM uses the model's own type.
        state_element_bytes=4 if text.get("mamba_ssm_dtype", "float32") == "float32" else 2,
        experts=experts,
        experts_per_token=int(text["num_experts_per_tok"]) if experts else 0,
        expert_inner=int(text["moe_intermediate_size"]) if experts else 0,
        shared_inner=int(text.get("shared_expert_intermediate_size") or 0) if experts else 0,
        inner=0 if experts else int(text["intermediate_size"]),
        window_tokens=int(text["max_position_embeddings"]),
    )


def _layers(text: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of Gated DeltaNet layers and of full-attention layers."""
    count = int(text["num_hidden_layers"])
    kinds = text.get("layer_types")
    if kinds:
        full = sum(kind == "full_attention" for kind in kinds)
    else:
        full = count // int(text.get("full_attention_interval") or 4)
    return count - full, full
