"""Register FP8 checkpoints on a CPU with vLLM, through its public extension points. For vLLM 0.32.0.

Upstream: vllm/model_executor/layers/quantization/fp8.py. Without AMX its linear method fails at
`_C::static_scaled_fp8_quant` and its experts find no backend; with AMX it refuses shards that cut blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from penstock.engine.vllm.fp8.blocks import BLOCK

NAME = "penstock_fp8"


def register() -> None:
    """Register the method. Idempotent. It imports little, because it runs in every process for any checkpoint."""
    register_quantization_config(NAME)(CpuFp8Config)


class CpuFp8Config(QuantizationConfig):  # type: ignore[misc] # vLLM's types are not followed
    """e4m3 weights in blocks of 128 x 128 with bfloat16 activations; `skipped` are modules left in bfloat16."""

    def __init__(self, skipped: list[str]) -> None:
        super().__init__()
        self.skipped = skipped

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Return the method's name for checkpoints that it runs. vLLM asks every registered method."""
        ours = hf_quant_cfg.get("quant_method") == "fp8" and hf_quant_cfg.get("weight_block_size") == [BLOCK, BLOCK]
        return NAME if ours else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CpuFp8Config:
        """Read the checkpoint's quantization config."""
        return cls(list(config.get("modules_to_not_convert") or config.get("ignored_layers") or []))

    @classmethod
    def get_name(cls) -> str:
        """Return the method's name."""
        return NAME

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Return the types of activations."""
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return -1: no CUDA capability is needed."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no file names: everything is in config.json."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename the skipped modules as vLLM renames the weights."""
        self.skipped = hf_to_vllm_mapper.apply_list(self.skipped)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """Return the method for one layer; None for layers without weights to quantize."""
        from vllm.model_executor.layers.attention import Attention
        from vllm.model_executor.layers.fused_moe import RoutedExperts, UnquantizedFusedMoEMethod
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
        from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

        from penstock.engine.vllm.fp8.cpu import CpuFp8ExpertsMethod, CpuFp8LinearMethod

        if isinstance(layer, Attention):
            return BaseKVCacheMethod(self)
        if not isinstance(layer, LinearBase | RoutedExperts):
            return None
        skipped = is_layer_skipped(prefix, self.skipped, self.packed_modules_mapping)
        if isinstance(layer, RoutedExperts):
            return UnquantizedFusedMoEMethod(layer.moe_config) if skipped else CpuFp8ExpertsMethod(layer.moe_config)
        return UnquantizedLinearMethod() if skipped else CpuFp8LinearMethod()
