"""Round to the nearest value of an FP8 cache on a CPU. For vLLM 0.32.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def round_to_nearest() -> None:
    """Round keys and values to the nearest that e4m3 has before the CPU kernel stores them.

    The kernel cuts off the bits that do not fit: half of the stored values are not the nearest, and all together are
    4 % too small. GPUs round. From a value that e4m3 has, nothing is cut off.
    Upstream: vllm/v1/attention/backends/cpu_attn.py `CPUAttentionBackendImpl`, csrc/cpu.
    """
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    update = CPUAttentionBackendImpl.do_kv_cache_update
    if hasattr(update, "__wrapped__"):
        return

    def update_rounded(
        self: Any, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Round, then store. With a scale other than 1 the kernel divides first, so that nothing is known before."""
        if self.is_fp8_kv_cache and layer._k_scale_float == layer._v_scale_float == 1.0:
            key, value = _rounded(key), _rounded(value)
        update(self, layer, key, value, kv_cache, slot_mapping)

    update_rounded.__wrapped__ = update  # type: ignore[attr-defined]
    CPUAttentionBackendImpl.do_kv_cache_update = update_rounded


def _rounded(values: Tensor) -> Tensor:
    """Return the nearest values of e4m3; those beyond its largest, 448, become that."""
    import torch

    return values.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).to(values.dtype)
