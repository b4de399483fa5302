"""Fix what vLLM's CPU build does wrong in speculation. For vLLM 0.32.0."""

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


def filter_no_rows() -> None:
    """Lets top_k be applied to a step without drafts, which kills the worker otherwise.

    The rejection sampler applies top_k to the rows of the drafts alone. A request whose step has none, alone or beside
    others like it, makes an empty tensor of them, and `k.max()` raises. With top_p another function is used.
    Upstream: vllm/v1/sample/ops/topk_topp_sampler.py `apply_top_k_only`, used where the engine may wait for the device
    (the CPU) and Triton is absent.
    """
    from vllm.v1.sample.ops import topk_topp_sampler

    original = topk_topp_sampler.apply_top_k_only
    if hasattr(original, "__wrapped__"):
        return

    def apply_top_k_only(logits: Any, k: Any) -> Any:
        return original(logits, k) if k.numel() else logits

    apply_top_k_only.__wrapped__ = original  # type: ignore[attr-defined]
    topk_topp_sampler.apply_top_k_only = apply_top_k_only


def start_padded_prompts_afresh() -> None:
    """Gives a prompt of one token an empty state under MTP; it starts from another request's state otherwise.

    Beside running requests the scheduler pads such a prompt with placeholder drafts, so that all rows are alike. Gated
    DeltaNet then takes it for a decode, reads whatever its recycled block holds, and the answer is another one.
    Upstream: vllm/v1/core/sched/scheduler.py `pad_spec_decode` with no computed tokens (GPUs are likely to be hit too),
    vllm/v1/attention/backends/gdn_attn.py, vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `_spec_forward`.
    """
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadataBuilder as Builder

    build, forward = Builder.build, gdn_attention._spec_forward
    if forward.__name__ == "cleared":
        return

    def marked(
        self: Any,
        common_prefix_len: int,
        common_attn_metadata: Any,
        num_accepted_tokens: Any = None,
        num_decode_draft_tokens_cpu: Any = None,
        fast_build: bool = False,
    ) -> Any:
        batch, drafts = common_attn_metadata, num_decode_draft_tokens_cpu
        metadata = build(self, common_prefix_len, batch, num_accepted_tokens, drafts, fast_build)
        if metadata.num_spec_decodes:
            lengths = batch.query_start_loc_cpu.diff()[: batch.num_reqs]
            fresh = batch.seq_lens[: batch.num_reqs] == lengths
            # Rows of the speculating requests alone, in their order.
            metadata.fresh_spec_rows = fresh[drafts[: batch.num_reqs] >= 0].nonzero().flatten()
        return metadata

    def cleared(layer: Any, metadata: Any, *inputs: Any) -> Any:
        rows = getattr(metadata, "fresh_spec_rows", ())
        if len(rows):
            blocks = metadata.spec_state_indices_tensor[rows, 0].long()
            *_, convolution, recurrent, _, _ = inputs
            convolution[blocks] = 0
            recurrent[blocks] = 0
        return forward(layer, metadata, *inputs)

    cleared.__wrapped__ = forward  # type: ignore[attr-defined]
    Builder.build = marked
    gdn_attention._spec_forward = cleared


def remember_accepted_drafts() -> None:
    """Keeps a request's accepted drafts over a step that it is left out of; its next tokens are wrong otherwise.

    Where a step has no room for a running request (a long prompt of another fills it), the runner takes it out of its
    batch and puts it back later with "1 accepted", whatever its last step was. Gated DeltaNet then goes on from the
    state before the accepted drafts.
    Upstream: vllm/v1/worker/gpu_model_runner.py `_update_states`, gpu_input_batch.py `add_request` (GPUs are likely to
    be hit too).
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._update_states
    if hasattr(original, "__wrapped__"):
        return

    def update(self: Any, scheduler_output: Any) -> Any:
        batch, kept = self.input_batch, self.__dict__.setdefault("accepted_before_a_pause", {})
        for index, request in enumerate(batch.req_ids):
            if request not in scheduler_output.num_scheduled_tokens:
                kept[request] = int(batch.num_accepted_tokens_cpu[index])
        over = scheduler_output.finished_req_ids | (scheduler_output.preempted_req_ids or set())
        # What is computed again, or from the prefix cache, starts from a state without drafts.
        for request in over | scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            kept.pop(request, None)
        result = original(self, scheduler_output)
        for request in [request for request in kept if request in batch.req_id_to_index]:
            batch.num_accepted_tokens_cpu[batch.req_id_to_index[request]] = kept.pop(request)
        return result

    update.__wrapped__ = original  # type: ignore[attr-defined]
    GPUModelRunner._update_states = update


def convolve_natively() -> None:
    """Lets Gated DeltaNet under MTP use the convolution that it uses without, on CPUs with AVX-512 BF16 but no AMX.

    vLLM asks for AMX there, though the kernel does not need it (the path without speculation asks for AVX-512 BF16),
    and else loops over sequences in Python, rounding twice: slow with many streams, and more near-ties trade places.
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `can_use_native_conv`.
    """
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    if torch.cpu._is_avx512_bf16_supported() and gdn_attention.torch is torch:
        gdn_attention.torch = _View(torch, cpu=_View(torch.cpu, _is_amx_tile_supported=lambda: True))


class _View:
    """A module with some names changed, for one reader alone."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self._module = module
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
