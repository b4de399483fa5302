"""Hold the official models that this service is for, as in their config.json files.

From the model cards and public reports of their tensors. `sizing.weights.parameters` gives the billions in each name,
which checks layers, widths and expert counts; `sizing.cache` gives the cache sizes that vLLM logged for the 27B and 35B
on GPUs (docs/how-to/plan.md), which checks the heads. `UNVERIFIED` are the fields that nothing here checks, the vision
tower's among them. For planning without a checkpoint, and for tests; a checkpoint's own files take precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNVERIFIED = ("mtp_num_hidden_layers", "rope_parameters", "vision_config")

_COMMON: dict[str, Any] = {
    "vocab_size": 248_320,
    "max_position_embeddings": 262_144,
    "head_dim": 256,
    "full_attention_interval": 4,
    "attn_output_gate": True,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "mtp_num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
}


def _experts(layers: int, hidden: int, heads: int, value_heads: int, experts: tuple[int, int, int]) -> dict[str, Any]:
    """Return a config. `experts`: their number, the number per token, their inner width (and the shared expert's)."""
    count, per_token, inner = experts
    return {
        **_COMMON,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "linear_num_value_heads": value_heads,
        "num_experts": count,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
    }


_A3B = _experts(layers=40, hidden=2048, heads=16, value_heads=32, experts=(256, 8, 512))
_A10B = _experts(layers=48, hidden=3072, heads=32, value_heads=64, experts=(256, 8, 1024))
_A17B = _experts(layers=60, hidden=4096, heads=32, value_heads=64, experts=(512, 10, 1024))
_27B = {
    **_COMMON,
    "num_hidden_layers": 64,
    "hidden_size": 5120,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "linear_num_value_heads": 48,
    "intermediate_size": 17_408,
}

CARDS: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3.5-397B-A17B-FP8": _A17B,
    "Qwen/Qwen3.5-397B-A17B": _A17B,
    "Qwen/Qwen3.5-122B-A10B-FP8": _A10B,
    "Qwen/Qwen3.5-122B-A10B": _A10B,
    "Qwen/Qwen3.5-35B-A3B-FP8": _A3B,
    "Qwen/Qwen3.5-35B-A3B": _A3B,
    "Qwen/Qwen3.6-35B-A3B-FP8": _A3B,
    "Qwen/Qwen3.5-27B-FP8": _27B,
    "Qwen/Qwen3.5-27B": _27B,
}
"""The text models; names that end in -FP8 have e4m3 weights in 128 x 128 blocks, the others are bfloat16."""

IMAGE_PIXELS = (65_536, 16_777_216)
"""Pixels to which the image processor of these models scales a smaller or a larger image."""


def vision_card(name: str) -> dict[str, Any]:
    """Return the vision part of config.json of a model in `CARDS`: the same tower, as wide at its end as the text."""
    return {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": CARDS[name]["hidden_size"],
        "deepstack_visual_indexes": [],
    }
