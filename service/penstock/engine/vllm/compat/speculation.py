"""Correct errors of speculation in vLLM's CPU build. For vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


def expand_sampling_parameters() -> None:
    """Give temperature, top_k and top_p their values under speculation on the CPU; otherwise they are random memory.

    The replacement of the Triton kernel works on an int64 copy of its output and drops the copy. So every parameter
    that the rejection sampler expands to the drafts is uninitialised memory, also of greedy rows in a mixed batch. The
    workers register the replacements right after general plugins ran, so replacing the function here is early enough.
    Upstream: vllm/utils/cpu_triton_utils.py `_expand_kernel_impl`.
    """
    from vllm.utils import cpu_triton_utils

    original = cpu_triton_utils._expand_kernel_impl
    if original is not _expand_kernel:
        _expand_kernel.__wrapped__ = original  # type: ignore[attr-defined]
        cpu_triton_utils._expand_kernel_impl = _expand_kernel


# The kernel's signature.
def _expand_kernel(
    output: Any,
    input_val: Any,
    cu_num_tokens: Any,
    replace_from: int,
    replace_to: int,
    MAX_NUM_TOKENS: int = 0,  # noqa: N803 # vLLM's name for it
) -> None:
    """Expand `input_val` (requests) to `output` (tokens), as vllm/v1/sample/rejection_sampler.py `expand_kernel`."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    values = input_val.masked_fill(input_val == replace_from, replace_to)
    output.copy_(values.repeat_interleave(counts))


def filter_no_rows() -> None:
    """Let top_k be applied to a step without drafts; otherwise the worker dies.

    The rejection sampler applies top_k to the rows of the drafts only. If no request of a step has drafts, they are an
    empty tensor, and `k.max()` raises. With top_p another function is used.
    Upstream: vllm/v1/sample/ops/topk_topp_sampler.py `apply_top_k_only`, used where the engine may wait for the device
    (the CPU) and Triton is absent.
    """
    from vllm.v1.sample.ops import topk_topp_sampler

    original = topk_topp_sampler.apply_top_k_only
    if hasattr(original, "__wrapped__"):
        return

    def apply_top_k_only(logits: Any, k: Any) -> Any:
        """Apply top_k where there are rows."""
        return original(logits, k) if k.numel() else logits

    apply_top_k_only.__wrapped__ = original  # type: ignore[attr-defined]
    topk_topp_sampler.apply_top_k_only = apply_top_k_only


def start_padded_prompts_afresh() -> None:
    """Give a prompt of one token an empty state under MTP; otherwise it starts from another request's state.

    Beside running requests the scheduler pads such a prompt with placeholder drafts, so that all rows have the same
    length. Gated DeltaNet then treats it as a decode, reads the old content of its recycled block, and the answer is
    wrong.
    Upstream: vllm/v1/core/sched/scheduler.py `pad_spec_decode` with no computed tokens (GPUs are probably affected
    too), vllm/v1/attention/backends/gdn_attn.py, vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py
    `_spec_forward`.
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
        """Build the metadata and add the rows of prompts that have just started."""
        batch, drafts = common_attn_metadata, num_decode_draft_tokens_cpu
        metadata = build(self, common_prefix_len, batch, num_accepted_tokens, drafts, fast_build)
        if metadata.num_spec_decodes:
            lengths = batch.query_start_loc_cpu.diff()[: batch.num_reqs]
            fresh = batch.seq_lens[: batch.num_reqs] == lengths
            # Rows of the speculating requests alone, in their order.
            metadata.fresh_spec_rows = fresh[drafts[: batch.num_reqs] >= 0].nonzero().flatten()
        return metadata

    def cleared(layer: Any, metadata: Any, *inputs: Any) -> Any:
        """Clear the states of these rows, then run the step."""
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
    """Keep a request's number of accepted drafts over a step without it; otherwise its next tokens are wrong.

    Where a long prompt of another request fills a step, the runner removes a running request from its batch and later
    adds it again with "1 accepted", whatever its last step accepted. Gated DeltaNet then continues from the state
    before the accepted drafts.
    Upstream: vllm/v1/worker/gpu_model_runner.py `_update_states`, gpu_input_batch.py `add_request` (GPUs are probably
    affected too).
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._update_states
    if hasattr(original, "__wrapped__"):
        return

    def update(self: Any, scheduler_output: Any) -> Any:
        """Keep the numbers of requests that leave the batch, and restore those of requests that return."""
        batch, kept = self.input_batch, self.__dict__.setdefault("accepted_before_a_pause", {})
        for index, request in enumerate(batch.req_ids):
            if request not in scheduler_output.num_scheduled_tokens:
                kept[request] = int(batch.num_accepted_tokens_cpu[index])
        over = scheduler_output.finished_req_ids | (scheduler_output.preempted_req_ids or set())
        # A request that is computed again, or from the prefix cache, starts from a state without drafts.
        for request in over | scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            kept.pop(request, None)
        result = original(self, scheduler_output)
        for request in [request for request in kept if request in batch.req_id_to_index]:
            batch.num_accepted_tokens_cpu[batch.req_id_to_index[request]] = kept.pop(request)
        return result

    update.__wrapped__ = original  # type: ignore[attr-defined]
    GPUModelRunner._update_states = update


def convolve_natively() -> None:
    """Let Gated DeltaNet use the native convolution also under MTP, on CPUs with AVX-512 BF16 but no AMX.

    vLLM requires AMX there, though the kernel does not need it (the path without speculation requires AVX-512 BF16).
    Otherwise it loops over sequences in Python and rounds twice: this is slow with many streams, and changes more
    near-ties.
    Upstream: vllm/model_executor/layers/mamba/ops/cpu/gdn_attention.py `can_use_native_conv`.
    """
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    if torch.cpu._is_avx512_bf16_supported() and gdn_attention.torch is torch:
        gdn_attention.torch = _View(torch, cpu=_View(torch.cpu, _is_amx_tile_supported=lambda: True))


class _View:
    """A module with some names changed, for one importing module only."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self._module = module
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
