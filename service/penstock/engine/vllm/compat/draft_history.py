"""The convolution's history of a Gated DeltaNet layer, where a step has fewer drafts than usual. For vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


def keep_short_drafts() -> None:
    """Lets a sequence verify fewer drafts than the state has room for, as every constrained answer does now and then.

    vLLM's CPU path keeps the wrong columns of the convolution's history then: after an accepted draft the sizes do not
    match and the worker dies ("The size of tensor a (4) must match the size of tensor b (3)"), else a stale column
    stays in the history and the tokens go wrong without a word. A grammar that rejects a draft is enough for either.
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_spec_forward`.
    """
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    if not hasattr(_spec_forward, "__wrapped__"):
        _spec_forward.__wrapped__ = gdn_attention._spec_forward  # type: ignore[attr-defined]
        gdn_attention._spec_forward = _spec_forward


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
    """As upstream's: (tokens, dim) in, the core's output for the same tokens out; both states are moved on in place."""
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
    convolved = convolve(layer, mixed_qkv_spec, conv_buf, slots[:, 0].tolist(), accepted.tolist(), lengths, width)
    query, key, value = (part.squeeze(0) for part in layer.rearrange_mixed_qkv(convolved))
    # The recurrence takes sequences of any length: it resumes after `accepted` tokens and stores a state per token.
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


def convolve(
    layer: Any, x: Any, history: Any, slots: list[int], accepted: list[int], lengths: list[int], width: int
) -> Any:
    """Causal convolution of each sequence's tokens after its history: (tokens, dim) in and out.

    A sequence's history (dim, columns) in `history[slot]` holds the last `width - 1` inputs before the step that came
    before, then that step's own: `accepted - 1` says where the ones that count end. It is left in the same form.
    """
    import torch
    import torch.nn.functional as F
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    weight = gdn_attention._unpacked_conv_weight(layer).unsqueeze(1)
    out, start = torch.empty_like(x), 0
    for slot, taken, length in zip(slots, accepted, lengths, strict=True):
        if not length:
            continue
        columns = history[slot]
        before = columns[:, taken - 1 : taken - 1 + width - 1]
        inputs = torch.cat([before, x[start : start + length].T.to(columns.dtype)], dim=-1)
        mixed = F.conv1d(inputs.unsqueeze(0), weight, layer.conv1d.bias, groups=inputs.shape[0])[0]
        mixed = F.silu(mixed) if layer.activation == "silu" else mixed
        out[start : start + length] = mixed.T.to(out.dtype)
        columns[:, : width - 2 + length] = inputs[:, 1:]
        start += length
    return out
