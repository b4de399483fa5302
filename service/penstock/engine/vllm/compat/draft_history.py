"""Keep the convolution's history of a Gated DeltaNet layer in steps with fewer drafts than usual. For vLLM 0.32.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def keep_short_drafts() -> None:
    """Let a sequence verify fewer drafts than the state has columns for, as every constrained answer does now and then.

    vLLM's CPU path then keeps the wrong columns of the convolution's history. After an accepted draft the sizes do not
    match and the worker dies ("The size of tensor a (4) must match the size of tensor b (3)"); otherwise a stale column
    stays in the history and the tokens are wrong without an error. A grammar that rejects a draft causes either.
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_spec_forward`.
    """
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    if not hasattr(_spec_forward, "__wrapped__"):
        _spec_forward.__wrapped__ = gdn_attention._spec_forward  # type: ignore[attr-defined]
        gdn_attention._spec_forward = _spec_forward


# vLLM's signature.
def _spec_forward(
    layer: Any,
    attn_metadata_i: Any,
    mixed_qkv_spec: Any,
    b_spec: Any,
    a_spec: Any,
    conv_buf: Any,
    ssm_state: Any,
    width: int,
    state_len: int,
) -> Any:
    """Return the core's output of shape (tokens, dim) for such an input, as upstream; update both states in place."""
    from vllm import _custom_ops as ops

    sequences = attn_metadata_i.num_spec_decodes
    starts = attn_metadata_i.spec_query_start_loc[: sequences + 1]
    lengths = starts.diff().tolist()
    if all(length == state_len - (width - 2) for length in lengths):
        return _spec_forward.__wrapped__(  # type: ignore[attr-defined]
            layer, attn_metadata_i, mixed_qkv_spec, b_spec, a_spec, conv_buf, ssm_state, width, state_len
        )
    slots = attn_metadata_i.spec_state_indices_tensor[:sequences]
    accepted = attn_metadata_i.num_accepted_tokens[:sequences]
    history = ConvolutionHistory(conv_buf, slots[:, 0].tolist(), accepted.tolist(), width)
    convolved = convolve(layer, mixed_qkv_spec, history, lengths)
    query, key, value = (part.squeeze(0) for part in layer.rearrange_mixed_qkv(convolved))
    # The recurrence supports sequences of any length: it resumes after `accepted` tokens and stores a state per token.
    return ops.fused_sigmoid_gating_delta_rule_update_spec_cpu(
        A_log=layer.A_log,
        dt_bias=layer.dt_bias,
        q=query,
        k=key,
        v=value,
        a=a_spec,
        b=b_spec,
        initial_state_source=ssm_state,
        spec_state_indices=slots.int().contiguous(),
        num_accepted_tokens=accepted.int().contiguous(),
        cu_seqlens=starts.int().contiguous(),
        use_qk_l2norm_in_kernel=True,
    )


@dataclass(frozen=True, slots=True)
class ConvolutionHistory:
    """The inputs of earlier steps that the convolution of each sequence needs.

    `states[slot]` of a sequence has shape (dim, columns). It holds the last `width - 1` inputs before the previous
    step, then that step's own; the last `accepted - 1` of these count.
    """

    states: Any
    slots: list[int]
    accepted: list[int]
    width: int


def convolve(layer: Any, x: Any, history: ConvolutionHistory, lengths: list[int]) -> Any:
    """Convolve each sequence's new tokens after its history, which is updated in place.

    `x` and the result have shape (tokens, dim); `lengths` has the number of tokens of each sequence.
    """
    import torch
    import torch.nn.functional as F
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    weight = gdn_attention._unpacked_conv_weight(layer).unsqueeze(1)
    out, start, width = torch.empty_like(x), 0, history.width
    for slot, taken, length in zip(history.slots, history.accepted, lengths, strict=True):
        if not length:
            continue
        columns = history.states[slot]
        before = columns[:, taken - 1 : taken - 1 + width - 1]
        inputs = torch.cat([before, x[start : start + length].T.to(columns.dtype)], dim=-1)
        mixed = F.conv1d(inputs.unsqueeze(0), weight, layer.conv1d.bias, groups=inputs.shape[0])[0]
        mixed = F.silu(mixed) if layer.activation == "silu" else mixed
        out[start : start + length] = mixed.T.to(out.dtype)
        columns[:, : width - 2 + length] = inputs[:, 1:]
        start += length
    return out
