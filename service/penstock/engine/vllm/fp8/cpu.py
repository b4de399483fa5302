"""FP8 layers on CPUs, with AMX and without. The weights stay FP8 in memory; activations stay bfloat16. For vLLM 0.32.0.

vLLM lets its W8A16 kernels run only where there are AMX tiles, yet they hold a path for AVX-512 BF16 as well. They are
used where a trial on this machine agrees with plain arithmetic; elsewhere, and for blocks that they do not take,
weights are widened each time they are used.
Upstream: vllm/model_executor/kernels/linear/scaled_mm/cpu.py `CPUFp8BlockScaledMMKernel.is_supported`,
vllm/model_executor/layers/fused_moe/experts/cpu_moe.py `CPUExpertsFp8._supports_current_device`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.functional import linear, silu
from vllm._custom_ops import CPUQuantMethod, fused_experts_cpu
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, FusedMoeWeightScaleSupported
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method
from vllm.model_executor.parameter import BlockQuantScaleParameter, ModelWeightParameter
from vllm.model_executor.utils import replace_parameter, set_weight_attrs

from penstock.engine.vllm.fp8.blocks import BLOCK, dequantize, quantize, refine

Block = tuple[int, int]


@register_weight_loader_v2_supported_method
class CpuFp8LinearMethod(LinearMethodBase):  # type: ignore[misc] # vLLM's types are not followed
    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        load = extra_weight_attrs["weight_loader"]
        rows, columns = sum(output_partition_sizes), input_size_per_partition
        # vLLM's loaders find a shard's scales by this.
        layer.weight_block_size = block = (math.gcd(BLOCK, *output_partition_sizes), math.gcd(BLOCK, columns))
        weight = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
        scale = torch.empty(rows // block[0], columns // block[1], dtype=torch.float32)
        layer.register_parameter(
            "weight", ModelWeightParameter(data=weight, input_dim=1, output_dim=0, weight_loader=load)
        )
        layer.register_parameter(
            "weight_scale_inv",
            BlockQuantScaleParameter(data=scale, input_dim=1, output_dim=0, weight_loader=_refining(load, block)),
        )

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.fp8_packed = _kernels_take(layer.weight_block_size, layer.weight.shape) and kernels_agree()
        weight = torch.ops._C.convert_weight_packed(layer.weight.data) if layer.fp8_packed else layer.weight.data
        replace_parameter(layer, "weight", Parameter(weight, requires_grad=False))
        replace_parameter(layer, "weight_scale_inv", Parameter(layer.weight_scale_inv.data, requires_grad=False))

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if not layer.fp8_packed:
            return linear(x, dequantize(layer.weight, layer.weight_scale_inv, layer.weight_block_size, x.dtype), bias)
        flat = x.reshape(-1, x.shape[-1])
        out = _product(flat, layer.weight, layer.weight_scale_inv, layer.weight_block_size[0], bias)
        return out.reshape(*x.shape[:-1], out.shape[-1])


class CpuFp8ExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """Gated SiLU experts, each token's own; no expert parallelism (vLLM's CPU build has none that runs)."""

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        inner = intermediate_size_per_partition
        rows = math.gcd(BLOCK, inner)
        load = extra_weight_attrs.pop("weight_loader")
        for name, shape in (("w13", (2 * inner, hidden_size)), ("w2", (hidden_size, inner))):
            block = (rows, math.gcd(BLOCK, shape[1]))
            weight = torch.empty(num_experts, *shape, dtype=torch.float8_e4m3fn)
            scale = torch.empty(num_experts, shape[0] // block[0], shape[1] // block[1], dtype=torch.float32)
            layer.register_parameter(f"{name}_weight", Parameter(weight, requires_grad=False))
            layer.register_parameter(f"{name}_weight_scale_inv", Parameter(scale, requires_grad=False))
            set_weight_attrs(getattr(layer, f"{name}_weight"), {**extra_weight_attrs, "weight_loader": load})
            set_weight_attrs(
                getattr(layer, f"{name}_weight_scale_inv"),
                {
                    **extra_weight_attrs,
                    "weight_loader": _refining(load, block),
                    "quant_method": FusedMoeWeightScaleSupported.BLOCK.value,
                },
            )
        layer.fp8_block_rows, layer.fp8_inner = rows, inner

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        if layer.activation != MoEActivation.SILU:
            raise NotImplementedError(f"FP8 experts with {layer.activation}")
        weights = (layer.w13_weight, layer.w2_weight)
        blocks = [(layer.fp8_block_rows, math.gcd(BLOCK, weight.shape[-1])) for weight in weights]
        taken = all(_kernels_take(block, weight.shape[1:]) for block, weight in zip(blocks, weights, strict=True))
        layer.fp8_packed = taken and kernels_agree()
        if layer.fp8_packed:
            for name in ("w13_weight", "w2_weight"):
                packed = torch.ops._C.convert_weight_packed(getattr(layer, name).data)
                replace_parameter(layer, name, Parameter(packed, requires_grad=False))

    def get_fused_moe_quant_config(self, layer: torch.nn.Module) -> None:
        return None

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        scales = (layer.w13_weight_scale_inv, layer.w2_weight_scale_inv)
        weights = (layer.w13_weight, layer.w2_weight)
        if layer.fp8_packed:
            return _experts(x, weights, scales, topk_weights, topk_ids, layer.fp8_block_rows)
        return _widened_experts(x, weights, scales, topk_weights, topk_ids, layer.fp8_block_rows)


def _refining(load: Callable[..., Any], block: Block) -> Callable[..., Any]:
    """A weight loader for scales that cuts them as finely as the tensor-parallel shards cut the blocks."""

    def refined(param: Any, loaded_weight: torch.Tensor, *rest: Any, **more: Any) -> Any:
        return load(param, refine(loaded_weight, block), *rest, **more)

    return refined


def _kernels_take(block: Block, shape: torch.Size) -> bool:
    """Rows in multiples of 32; columns in blocks of 128, or all within one."""
    return block[0] % 32 == 0 and shape[-1] % 32 == 0 and (block[1] == BLOCK or block[1] == shape[-1])


def _product(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, block_rows: int, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch.ops._C.fp8_scaled_mm_cpu(x, packed, scale, [block_rows, BLOCK], bias, x.dtype, True)


Pair = tuple[torch.Tensor, torch.Tensor]


def _experts(
    x: torch.Tensor, packed: Pair, scales: Pair, topk_weights: torch.Tensor, topk_ids: torch.Tensor, block_rows: int
) -> torch.Tensor:
    out = torch.empty_like(x)
    method, block, none = CPUQuantMethod.FP8_W8A16, [block_rows, BLOCK], None
    weights, ids = topk_weights.float(), topk_ids.to(torch.int32)
    fused_experts_cpu(out, x.contiguous(), *packed, weights, ids, method, *scales, none, none, block)
    return out


def _widened_experts(
    x: torch.Tensor, weights: Pair, scales: Pair, topk_weights: torch.Tensor, topk_ids: torch.Tensor, block_rows: int
) -> torch.Tensor:
    """Only the experts that some token goes to are widened, one at a time."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert in topk_ids.unique().tolist():
        tokens, places = (topk_ids == expert).nonzero(as_tuple=True)
        up, down = (
            dequantize(weight[expert], scale[expert], (block_rows, math.gcd(BLOCK, weight.shape[-1])), x.dtype)
            for weight, scale in zip(weights, scales, strict=True)
        )
        gate, value = linear(x[tokens], up).chunk(2, dim=-1)
        mixed = linear(silu(gate) * value, down) * topk_weights[tokens, places, None]
        out.index_add_(0, tokens, mixed.float())
    return out.to(x.dtype)


@functools.cache
def kernels_agree() -> bool:
    """Whether vLLM's FP8 kernels give on this CPU what plain arithmetic gives. Once per process, a few milliseconds."""
    capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if not capable or not hasattr(torch.ops._C, "fp8_scaled_mm_cpu"):
        return False
    draw = torch.Generator().manual_seed(0)

    def fp8(*shape: int) -> Pair:
        return quantize(torch.randn(shape, generator=draw, dtype=torch.float32) * 0.1)

    x = torch.randn(6, BLOCK * 2, generator=draw).to(torch.bfloat16)
    weight, scale = fp8(BLOCK, BLOCK * 2)
    (up, up_scale), (down, down_scale) = fp8(2, BLOCK * 2, BLOCK * 2), fp8(2, BLOCK * 2, BLOCK)
    shares, ids = torch.full((6, 2), 0.5), torch.tensor([[0, 1]] * 6)
    pack = torch.ops._C.convert_weight_packed
    one = _product(x, pack(weight), scale, BLOCK, None)
    many = _experts(x, (pack(up), pack(down)), (up_scale, down_scale), shares, ids, BLOCK)
    pairs = (
        (one, linear(x, dequantize(weight, scale))),
        (many, _widened_experts(x, (up, down), (up_scale, down_scale), shares, ids, BLOCK)),
    )
    return all(torch.allclose(got.float(), want.float(), rtol=0.02, atol=0.05) for got, want in pairs)
