"""Everything that is patched in other people's packages, each with its reason. For vLLM 0.32.0.

vLLM runs in several processes: this one, the engine core, its workers, and a subprocess of the model registry. It calls
entry points in every one of them, so no process needs its own preparation:

- `vllm.platform_plugins`: called while vLLM finds out its platform, before any model code is imported.
- `vllm.general_plugins`: called before a model is loaded; vLLM's own modules may be imported and patched there.

tests/engine/test_engine_vllm_compat.py fails when a patch is no longer needed.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

_kept: list[Any] = []  # a torch.library.Library takes its definitions back when it is collected


def platform_plugin() -> None:
    """Entry point in `vllm.platform_plugins`. Returns None: it brings no platform, it only comes early enough."""
    declare_torchvision_operators()


def general_plugin() -> None:
    """Entry point in `vllm.general_plugins`."""
    restride_single_token_prefill()
    restride_single_state_index()
    expand_sampling_parameters()


def declare_torchvision_operators() -> None:
    """Lets torchvision's CUDA build, the only one on PyPI, be imported beside torch's CPU build.

    Its C extension does not load there, so `torchvision::nms` does not exist, and torchvision's own registration of a
    fake for it raises at import. transformers and vLLM's qwen3_vl import torchvision. Nothing here calls the operators.
    Upstream: torchvision/_meta_registrations.py, torchvision 0.28.0.
    """
    import torch

    if torch.version.cuda is not None or "torchvision" in sys.modules or _kept:
        return
    if importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def restride_single_token_prefill() -> None:
    """Makes a prefill of exactly one token work on the CPU, where it kills the engine otherwise.

    The kernel wants x of shape (dim, tokens) to be a transposed view. With one token both layouts have the same
    strides up to the last one, which torch leaves as it was, and the kernel's check fails:
    "causal_conv1d_fwd_cpu: expect x to be transposed".
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_causal_conv1d_fwd_cpu`.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    original = gdn_attention._causal_conv1d_fwd_cpu
    if hasattr(original, "__wrapped__"):
        return

    def transposed(*, x: Any, **rest: Any) -> Any:
        if x.shape[-1] == 1:
            x = x.as_strided(x.shape, (1, x.shape[0]))
        return original(x=x, **rest)

    transposed.__wrapped__ = original  # type: ignore[attr-defined]
    gdn_attention._causal_conv1d_fwd_cpu = transposed


def restride_single_state_index() -> None:
    """Makes a prefill chunk of one token work on the CPU beside MTP, where it kills the engine otherwise.

    Such a chunk takes the path of a decode without drafts. Its state index is a column of the block table: with one
    row, `.contiguous()` leaves the column's stride as it is, and the kernel's check fails: "must be contiguous at last
    dimension".
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_spec_aware_nonspec`.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm import _custom_ops

    original = _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu
    if hasattr(original, "__wrapped__"):
        return

    def contiguous(*, initial_state_indices: Any, **rest: Any) -> Any:
        if initial_state_indices.numel() == 1:
            initial_state_indices = initial_state_indices.as_strided(initial_state_indices.shape, (1,))
        return original(initial_state_indices=initial_state_indices, **rest)

    contiguous.__wrapped__ = original  # type: ignore[attr-defined]
    _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu = contiguous


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
