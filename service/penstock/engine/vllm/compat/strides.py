"""Correct strides of tensors with one row or column, which the CPU kernels refuse. For vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


def restride_single_token_prefill() -> None:
    """Make a prefill of exactly one token work on the CPU; otherwise it kills the engine.

    The kernel requires x of shape (dim, tokens) to be a transposed view. With one token both layouts have the same
    strides up to the last one, which torch leaves unchanged, and the kernel's check fails: "causal_conv1d_fwd_cpu:
    expect x to be transposed".
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_causal_conv1d_fwd_cpu`.
    """
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    original = gdn_attention._causal_conv1d_fwd_cpu
    if hasattr(original, "__wrapped__"):
        return

    def transposed(*, x: Any, **rest: Any) -> Any:
        """Set the strides of a transposed view for one token."""
        if x.shape[-1] == 1:
            x = x.as_strided(x.shape, (1, x.shape[0]))
        return original(x=x, **rest)

    transposed.__wrapped__ = original  # type: ignore[attr-defined]
    gdn_attention._causal_conv1d_fwd_cpu = transposed


def restride_single_state_index() -> None:
    """Make a prefill chunk of one token work on the CPU with MTP; otherwise it kills the engine.

    Such a chunk is computed like a decode without drafts. Its state index is a column of the block table. With one row,
    `.contiguous()` does not change the column's stride, and the kernel's check fails: "must be contiguous at last
    dimension".
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_spec_aware_nonspec`.
    """
    from vllm import _custom_ops

    original = _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu
    if hasattr(original, "__wrapped__"):
        return

    def contiguous(*, initial_state_indices: Any, **rest: Any) -> Any:
        """Set the stride of a contiguous vector for one index."""
        if initial_state_indices.numel() == 1:
            initial_state_indices = initial_state_indices.as_strided(initial_state_indices.shape, (1,))
        return original(initial_state_indices=initial_state_indices, **rest)

    contiguous.__wrapped__ = original  # type: ignore[attr-defined]
    _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu = contiguous
