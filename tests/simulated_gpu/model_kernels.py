"""Launch the Triton kernels of the models' layers, with the shapes of Qwen3.5-35B-A3B on one GPU, to be compiled.

The launches compute nothing here (`compile`): Gated DeltaNet by flash-linear-attention, experts, and FP8 matrices.
"""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

KEY_HEADS, VALUE_HEADS, HEAD = 16, 32, 128
TOKENS, SLOTS, WIDTH = 128, 4, 4
HIDDEN, EXPERTS, TOP, INNER = 2048, 256, 8, 512
BLOCK = [128, 128]


def launch_delta_net() -> None:
    """Prefill in chunks, decode with drafts and without, and the convolution before them."""
    import torch
    from vllm.platforms import current_platform
    from vllm.third_party.flash_linear_attention import ops

    with mock.patch.object(current_platform, "is_cpu", return_value=False):  # which has other functions of these names
        from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    torch.accelerator.device_index = lambda index: contextlib.nullcontext()  # there is none
    kind, int32 = torch.bfloat16, torch.int32
    channels = (2 * KEY_HEADS + VALUE_HEADS) * HEAD
    mixed = torch.zeros(TOKENS, channels, dtype=kind)
    gate = torch.zeros(TOKENS, VALUE_HEADS, dtype=kind)
    log, bias = torch.zeros(VALUE_HEADS), torch.zeros(VALUE_HEADS)
    states = torch.zeros(SLOTS, VALUE_HEADS, HEAD, HEAD)
    ends = torch.tensor([0, TOKENS], dtype=torch.int32)
    slot = torch.zeros(1, dtype=int32)

    sizes = {"num_k_heads": KEY_HEADS, "head_k_dim": HEAD, "head_v_dim": HEAD}
    q, k, v, g, beta = ops.fused_post_conv_prep(
        conv_output=mixed, a=gate, b=gate, A_log=log, dt_bias=bias, **sizes, apply_l2norm=True, output_g_exp=False
    )
    q, k, v, g, beta = (one.unsqueeze(0) for one in (q, k, v, g, beta))
    ops.chunk_gated_delta_rule(
        q=q, k=k, v=v, g=g, beta=beta, initial_state=states[:1], output_final_state=True, cu_seqlens=ends
    )
    drafted = {"ssm_state_indices": torch.zeros(1, 4, dtype=int32), "num_accepted_tokens": torch.ones(1, dtype=int32)}
    for more in ({"ssm_state_indices": slot}, drafted):
        ops.fused_sigmoid_gating_delta_rule_update(
            *(log, gate[:1], gate[:1], bias, q[:, :1], k[:, :1], v[:, :1]),
            initial_state=states,
            cu_seqlens=torch.tensor([0, 1], dtype=int32),
            use_qk_l2norm_in_kernel=True,
            **more,
        )
    ops.fused_recurrent_gated_delta_rule_packed_decode(
        *(mixed[:1], gate[:1], gate[:1], log, bias, HEAD**-0.5, states),
        out=torch.zeros(1, 1, VALUE_HEADS, HEAD, dtype=kind),
        ssm_state_indices=slot,
        use_qk_l2norm_in_kernel=True,
    )
    weight = torch.zeros(channels, WIDTH, dtype=kind)
    kept = torch.zeros(SLOTS, WIDTH - 1, channels, dtype=kind).transpose(1, 2)
    causal_conv1d_fn(mixed.T, weight, None, kept, ends, cache_indices=slot, has_initial_state=torch.ones(1) > 0)
    causal_conv1d_update(mixed[:1], kept, weight, None, "silu", conv_state_indices=slot)


def launch_experts(fp8: bool) -> None:
    """The experts' matrices, in bfloat16 and in FP8 with a scale for each block."""
    import torch
    from vllm.model_executor.layers.fused_moe.fused_moe import get_default_config, invoke_fused_moe_triton_kernel
    from vllm.triton_utils import tl

    kind = torch.float8_e4m3fn if fp8 else torch.bfloat16
    weights = torch.zeros(EXPERTS, 2 * INNER, HIDDEN, dtype=kind)
    config = get_default_config(TOKENS, EXPERTS, 2 * INNER, HIDDEN, TOP, "fp8_w8a8" if fp8 else None, BLOCK)
    per_block = torch.zeros(EXPERTS, 2 * INNER // BLOCK[0], HIDDEN // BLOCK[1]) if fp8 else None
    per_group = torch.zeros(TOKENS, HIDDEN // BLOCK[1]) if fp8 else None
    rows = TOKENS * TOP
    invoke_fused_moe_triton_kernel(
        *(torch.zeros(TOKENS, HIDDEN, dtype=kind), weights, torch.zeros(TOKENS, TOP, 2 * INNER, dtype=torch.bfloat16)),
        *(per_group, per_block, torch.zeros(TOKENS, TOP), torch.zeros(rows, dtype=torch.int32)),
        *(torch.zeros(rows, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), False, TOP, config, tl.bfloat16),
        use_fp8_w8a8=fp8,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
        block_shape=BLOCK if fp8 else None,
    )


def launch_fp8_linear() -> None:
    """A matrix in FP8 with a scale for each block, and the activations made into it."""
    import torch
    from vllm.model_executor.layers.quantization.utils import fp8_utils

    weight = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float8_e4m3fn)
    scales = torch.zeros(HIDDEN // BLOCK[0], HIDDEN // BLOCK[1])
    rows: Any = torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16)
    quantized, row_scales = fp8_utils.per_token_group_quant_fp8(rows, BLOCK[1])
    fp8_utils.w8a8_triton_block_scaled_mm(quantized, weight, row_scales, scales, BLOCK, torch.bfloat16)
