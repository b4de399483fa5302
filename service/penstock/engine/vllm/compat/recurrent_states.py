"""Copy recurrent states for prefix caching with speculation, without Triton. For vLLM 0.32.0.

With prefix caching vLLM keeps the Gated DeltaNet states like KV blocks ("align" mode). A request's running state is in
the newest block of its row in the block table, with one more column per draft, and a state at a block boundary is kept
for later requests with the same prefix. Two kernels copy it: one before a step, into the block that the step will
write, one after it, to the boundary that accepted drafts have just passed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from ctypes import c_int32, memmove
from typing import Any

_MODULE = "vllm.v1.worker.mamba_utils"
_INT32_BYTES = 4


def register() -> None:
    """Register the copies where vLLM looks for its kernels; without them the first request with both features fails.

    Upstream: vllm/v1/worker/mamba_utils.py (Triton), vllm/platforms/cpu.py `register_triton_kernel_overrides`, which
    has no replacement for these two.
    """
    from vllm.triton_utils import HAS_TRITON, dispatcher
    from vllm.v1.worker import mamba_utils

    if HAS_TRITON or isinstance(mamba_utils.precopy_mamba_align_fused_kernel, dispatcher.KernelOverride):
        return
    with warnings.catch_warnings():
        # vLLM reads every name in every module to find references to the kernels, also torch's deprecated names.
        warnings.simplefilter("ignore")
        dispatcher.register_kernels(
            {
                f"{_MODULE}.precopy_mamba_align_fused_kernel": before_step,
                f"{_MODULE}.postprocess_mamba_fused_kernel": after_step,
            }
        )


# The kernel's signature.
def before_step(
    target_columns: Any,
    source_columns: Any,
    biases: Any,
    *layout_and_mapping: Any,
    CONV_STATE_DIM_FIRST: bool,  # noqa: N803 # vLLM's names
    HAS_IDX_MAPPING: bool = True,  # noqa: N803
    **tuning: int,
) -> None:
    """Copy the state of each request that enters a new block. See `precopy_mamba_align_fused_kernel`."""
    *layout, _, requests = layout_and_mapping
    if HAS_IDX_MAPPING:
        raise NotImplementedError("model runner V2 needs Triton, which is not available on a CPU")
    moving = [row for row in range(requests) if -1 < source_columns[row] != target_columns[row]]
    if moving:
        states = _States(layout, CONV_STATE_DIM_FIRST)
        for row in moving:
            states.copy(row, int(source_columns[row]), int(target_columns[row]), int(biases[row]))


# The kernel's signature.
def after_step(
    accepted: Any,
    columns: Any,
    scheduled: Any,
    computed: Any,
    drafted: Any,
    *layout_and_outputs: Any,
    block_size: int,
    CONV_STATE_DIM_FIRST: bool,  # noqa: N803
    HAS_IDX_MAPPING: bool = False,  # noqa: N803
    **tuning: int,
) -> None:
    """Keep the state at a block boundary that accepted drafts passed. See `postprocess_mamba_fused_kernel`.

    A request whose boundary is in the block that it is writing continues from there: its accepted count becomes 1.
    """
    *layout, accepted_out, _, requests = layout_and_outputs
    if HAS_IDX_MAPPING:
        raise NotImplementedError("model runner V2 needs Triton, which is not available on a CPU")
    running = computed[:requests] + scheduled[:requests] - drafted[:requests]
    boundary = (running + accepted[:requests] - 1) // block_size * block_size
    passed = (boundary >= running).nonzero().flatten().tolist()
    if not passed:
        return
    states = _States(layout, CONV_STATE_DIM_FIRST)
    for row in passed:
        bias, source, target = (
            int(boundary[row] - running[row]),
            int(columns[row]),
            int(boundary[row]) // block_size - 1,
        )
        if source == target:
            accepted_out[row] = 1
        if source != target or bias:
            states.copy(row, source, target, bias)


class _States:
    """The places of the states in memory, as plain numbers: vLLM gives its kernels addresses, not tensors."""

    def __init__(self, layout: Sequence[Any], dim_first: bool) -> None:
        self._tables: list[int] = layout[0].tolist()
        self._row_bytes = int(layout[1]) * _INT32_BYTES
        # Per state: address, bytes per block, bytes per element, elements per step, convolution steps (0: recurrent
        # state), block table, and for the dimension-first layout rows and bytes per row.
        self._each = list(zip(*(values.tolist() for values in layout[2:]), strict=True))
        self._dim_first = dim_first

    def copy(self, row: int, source_column: int, target_column: int, bias: int) -> None:
        """Copy one request's states. `bias` is the drafts accepted since `source_column` was written."""
        for base, block_bytes, item, inner, width, table, dims, dim_bytes in self._each:
            blocks = self._tables[table] + row * self._row_bytes
            target = base + _block(blocks, target_column) * block_bytes
            if width == 0:
                # The state after draft k is in the k-th column further on.
                memmove(target, base + _block(blocks, source_column + bias) * block_bytes, inner * item)
                continue
            source = base + _block(blocks, source_column) * block_bytes
            if self._dim_first:
                for start in range(0, dims * dim_bytes, dim_bytes):
                    memmove(target + start, source + start + bias * item, (width - bias) * item)
            else:
                # The window moves by the accepted drafts; memmove, because it may move within its block.
                memmove(target, source + bias * inner * item, (width - bias) * inner * item)


def _block(blocks: int, column: int) -> int:
    return c_int32.from_address(blocks + column * _INT32_BYTES).value
