"""Compute the cache of a sequence, and how vLLM 0.32 pages it: blocks, groups, and how many sequences fit.

vLLM gives attention layers and Gated DeltaNet layers blocks of the same number of bytes: an attention block has as many
tokens as fit into one layer's recurrent state. See vllm/platforms/interface.py `_align_hybrid_block_size`,
vllm/v1/core/kv_cache_utils.py `_get_kv_cache_groups_uniform_page_size`, `get_max_concurrency_for_kv_cache_config`.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.engine.sizing.shape import Shape
from penstock.engine.sizing.weights import ParallelLayout
from penstock.errors import ConfigError

GPU_BLOCK_TOKENS = 16
CPU_BLOCK_TOKENS = 128
"""Smallest number of tokens in an attention block, by the kernels."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Describe how the engine keeps its cache."""

    kv_fp8: bool
    """Keys and values in 8 bits instead of 16."""
    drafted: int = 0
    """Tokens drafted per step; 0 without MTP."""
    prefix_caching: bool = True
    min_block_tokens: int = GPU_BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Cache:
    """Describe the cache of one device: the model's bytes per token and state, and vLLM's blocks."""

    kv_bytes_per_token: int
    draft_kv_bytes_per_token: int
    state_bytes: int
    block_tokens: int
    block_bytes: int
    attention_groups: int
    state_groups: int
    state_blocks_each: int

    @property
    def state_blocks(self) -> int:
        """Return the blocks that a sequence of any length holds for its recurrent states."""
        return self.state_groups * self.state_blocks_each

    def blocks(self, available_bytes: int) -> int:
        """Return the number of blocks in so many bytes."""
        return max(0, available_bytes) // self.block_bytes

    def blocks_of(self, tokens: int) -> int:
        """Return the blocks that a sequence of so many tokens holds."""
        return self.attention_groups * -(-tokens // self.block_tokens) + self.state_blocks

    def bytes_of(self, tokens: int) -> int:
        """Return the bytes that a sequence of so many tokens holds."""
        return self.blocks_of(tokens) * self.block_bytes

    def sequences(self, available_bytes: int, tokens: int) -> float:
        """Return how many sequences of so many tokens fit: vLLM's "maximum concurrency"."""
        return self.blocks(available_bytes) / self.blocks_of(tokens)

    def tokens(self, available_bytes: int, window_tokens: int) -> int:
        """Return vLLM's "KV cache size": the tokens in sequences that fill the window."""
        return int(self.sequences(available_bytes, window_tokens) * window_tokens)


def plan_cache(shape: Shape, layout: ParallelLayout, settings: CacheSettings) -> Cache:
    """Return the cache of one device. Raise ConfigError where the devices do not divide the heads."""
    drafted, min_block_tokens = settings.drafted, settings.min_block_tokens
    kv_layer = 2 * _kv_heads(shape, layout) * shape.head_dim * (1 if settings.kv_fp8 else 2)
    state_layer = _state_bytes(shape, layout, drafted)
    attention_layers = shape.full_layers + (shape.draft_layers if drafted else 0)
    block_tokens = min_block_tokens * max(1, -(-state_layer // (min_block_tokens * kv_layer)))
    group = _layers_per_group(attention_layers, shape.linear_layers)
    return Cache(
        kv_bytes_per_token=shape.full_layers * kv_layer,
        draft_kv_bytes_per_token=(attention_layers - shape.full_layers) * kv_layer,
        state_bytes=shape.linear_layers * state_layer,
        block_tokens=block_tokens,
        block_bytes=group * block_tokens * kv_layer,
        attention_groups=-(-attention_layers // group),
        state_groups=-(-shape.linear_layers // group),
        # With prefix caching both the newest state and that at the last whole block are kept.
        state_blocks_each=(2 if settings.prefix_caching else 1) + drafted,
    )


def _kv_heads(shape: Shape, layout: ParallelLayout) -> int:
    """Return the key-value heads of one device: at least one, so more devices than heads keep copies."""
    if max(shape.kv_heads, layout.tensor) % min(shape.kv_heads, layout.tensor):
        raise ConfigError(f"{layout.tensor} devices do not divide {shape.kv_heads} key-value heads evenly")
    return max(1, shape.kv_heads // layout.tensor)


def _state_bytes(shape: Shape, layout: ParallelLayout, drafted: int) -> int:
    """Return the bytes of a layer's recurrent state and the convolution's inputs, which drafts lengthen."""
    if shape.linear_layers and (shape.linear_keys % layout.tensor or shape.linear_values % layout.tensor):
        raise ConfigError(f"{layout.tensor} devices do not divide {shape.linear_keys} Gated DeltaNet key heads")
    state = shape.linear_values * shape.linear_key_dim * shape.linear_value_dim * shape.state_element_bytes
    convolution = shape.convolved * (shape.kernel - 1 + drafted) * 2 if shape.linear_layers else 0
    return (state + convolution) // layout.tensor


def _layers_per_group(attention: int, linear: int) -> int:
    """Return the number of layers per group, the same for all groups; the last group of a kind is padded."""
    few, many = sorted((attention, linear))
    if not few:
        return many
    return many if many < 1.5 * few else few
