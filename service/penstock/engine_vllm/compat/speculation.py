"""What speculation needs and vLLM's CPU build does wrong. For vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


def expand_sampling_parameters() -> None:
    """Gives temperature, top_k and top_p their values under speculation on the CPU; they are noise otherwise.

    The stand-in for the Triton kernel works on an int64 copy of its output and drops the copy, so every parameter that
    the rejection sampler spreads over the drafts is uninitialised memory, of greedy rows in a mixed batch too.
    The workers register the stand-ins right after general plugins ran, so replacing the function is early enough.
    Upstream: vllm/utils/cpu_triton_utils.py `_expand_kernel_impl`.
    """
    from vllm.utils import cpu_triton_utils

    original = cpu_triton_utils._expand_kernel_impl
    if original is not _expand_kernel:
        _expand_kernel.__wrapped__ = original  # type: ignore[attr-defined]
        cpu_triton_utils._expand_kernel_impl = _expand_kernel


def _expand_kernel(
    output: Any,
    input_val: Any,
    cu_num_tokens: Any,
    replace_from: int,
    replace_to: int,
    MAX_NUM_TOKENS: int = 0,  # noqa: N803 # vLLM's name for it
) -> None:
    """As vllm/v1/sample/rejection_sampler.py `expand_kernel`: `output` (tokens) from `input_val` (requests)."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    values = input_val.masked_fill(input_val == replace_from, replace_to)
    output.copy_(values.repeat_interleave(counts))
