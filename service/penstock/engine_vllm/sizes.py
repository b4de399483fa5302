"""How large a Qwen3.5-class model is, from its config.json: weights by kind, and what a token costs in cache. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts of weights of the text model, its draft layer included. `convertible` is what FP8 checkpoints convert."""

    convertible: int
    kept: int

    @property
    def total(self) -> int:
        return self.convertible + self.kept

    def bytes(self, fp8: bool) -> int:
        """FP8 takes a byte each, plus a float32 scale per 128 x 128 block."""
        return self.kept * 2 + (self.convertible + self.convertible // 4096 if fp8 else self.convertible * 2)


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Per sequence in all layers, draft layer left out: a fixed state, and keys and values per token."""

    state_bytes: int
    kv_bytes_per_token: int


def weight_sizes(text: Mapping[str, Any]) -> Sizes:
    """Raises KeyError where the config lacks a size."""
    hidden = text["hidden_size"]
    linear, full = _layers(text)
    full += int(text.get("mtp_num_hidden_layers") or 0)
    feed, feed_kept = _feed_forward(text, hidden)
    mix, mix_kept = _delta_net(text, hidden) if linear else (0, 0)
    attention = _attention(text, hidden)
    ends = text["vocab_size"] * hidden * (1 if text.get("tie_word_embeddings") else 2)
    draft = 2 * hidden * hidden if text.get("mtp_num_hidden_layers") else 0
    norms = 2 * hidden * (linear + full)
    return Sizes(
        convertible=linear * mix + full * attention + (linear + full) * feed,
        kept=ends + draft + norms + linear * mix_kept + (linear + full) * feed_kept,
    )


def cache_sizes(text: Mapping[str, Any], kv_bytes: int = 1) -> CacheSizes:
    """`kv_bytes` per element: 1 for an FP8 cache. The recurrent state is float32, the convolution's bfloat16."""
    linear, full = _layers(text)
    state = 0
    if linear:
        keys, values = text["linear_num_key_heads"], text["linear_num_value_heads"]
        key_dim, value_dim = text["linear_key_head_dim"], text["linear_value_head_dim"]
        channels = 2 * keys * key_dim + values * value_dim
        state = values * key_dim * value_dim * 4 + channels * (text["linear_conv_kernel_dim"] - 1) * 2
    return CacheSizes(linear * state, full * 2 * text["num_key_value_heads"] * text["head_dim"] * kv_bytes)


def _layers(text: Mapping[str, Any]) -> tuple[int, int]:
    """(Gated DeltaNet layers, full-attention layers)."""
    count = int(text["num_hidden_layers"])
    kinds = text.get("layer_types")
    if kinds:
        full = sum(kind == "full_attention" for kind in kinds)
    else:
        full = count // int(text.get("full_attention_interval") or 4)
    return count - full, full


def _feed_forward(text: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    experts = int(text.get("num_experts") or 0)
    if not experts:
        return 3 * hidden * text["intermediate_size"], 0
    inner = experts * text["moe_intermediate_size"] + text.get("shared_expert_intermediate_size", 0)
    return 3 * hidden * inner, hidden * (experts + 1)


def _delta_net(text: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    heads = text["linear_num_value_heads"]
    values = heads * text["linear_value_head_dim"]
    small = 2 * heads * hidden + (2 * keys + values) * text["linear_conv_kernel_dim"]
    return hidden * (2 * keys + 2 * values) + values * hidden, small


def _attention(text: Mapping[str, Any], hidden: int) -> int:
    heads, pairs, dim = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]
    gate = 2 if text.get("attn_output_gate", True) else 1
    return int(hidden * dim * (heads * gate + 2 * pairs + heads))
