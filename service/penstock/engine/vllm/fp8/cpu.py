"""Run FP8 layers on CPUs with and without AMX. Weights stay FP8 in memory, activations stay bfloat16. For vLLM 0.32.0.

vLLM allows its W8A16 kernels only with AMX tiles, though they have a path for AVX-512 BF16 too. They are used where a
trial on this machine agrees with plain arithmetic. Elsewhere, and for blocks that they do not support, weights are
widened each time they are used.
Upstream: vllm/model_executor/kernels/linear/scaled_mm/cpu.py `CPUFp8BlockScaledMMKernel.is_supported`,
vllm/model_executor/layers/fused_moe/experts/cpu_moe.py `CPUExpertsFp8._supports_current_device`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
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
"""Rows and columns that share a scale."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""A tensor of the gate and up projections of all experts (w13), and one of their down projections (w2)."""


@dataclass(frozen=True, slots=True)
class Experts:
    """FP8 weights of a layer's experts with their scales; `block_rows` is the rows of a block."""

    weights: Pair
    scales: Pair
    block_rows: int


@register_weight_loader_v2_supported_method
class CpuFp8LinearMethod(LinearMethodBase):  # type: ignore[misc] # vLLM's types are not followed
    """A linear layer with FP8 weights."""

    # vLLM's signature.
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
        """Register the layer's FP8 weight and its scales."""
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
        """Pack the weight for vLLM's kernel where that is used."""
        layer.fp8_packed = _kernels_take(layer.weight_block_size, layer.weight.shape) and kernels_agree()
        weight = torch.ops._C.convert_weight_packed(layer.weight.data) if layer.fp8_packed else layer.weight.data
        replace_parameter(layer, "weight", Parameter(weight, requires_grad=False))
        replace_parameter(layer, "weight_scale_inv", Parameter(layer.weight_scale_inv.data, requires_grad=False))

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the layer's output in the type of `x`."""
        if not layer.fp8_packed:
            return linear(x, dequantize(layer.weight, layer.weight_scale_inv, layer.weight_block_size, x.dtype), bias)
        flat = x.reshape(-1, x.shape[-1])
        out = _product(flat, layer.weight, layer.weight_scale_inv, layer.weight_block_size[0], bias)
        return out.reshape(*x.shape[:-1], out.shape[-1])


class CpuFp8ExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """Gated SiLU experts with FP8 weights; no expert parallelism, which vLLM's CPU build cannot run."""

    # vLLM's signature.
    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the experts' FP8 weights and their scales."""
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
        """Pack the weights for vLLM's kernel where that is used. Raise NotImplementedError for other activations."""
        if layer.activation != MoEActivation.SILU:
            raise NotImplementedError(f"FP8 experts need the activation SiLU, got {layer.activation}")
        weights = (layer.w13_weight, layer.w2_weight)
        blocks = [(layer.fp8_block_rows, math.gcd(BLOCK, weight.shape[-1])) for weight in weights]
        taken = all(_kernels_take(block, weight.shape[1:]) for block, weight in zip(blocks, weights, strict=True))
        layer.fp8_packed = taken and kernels_agree()
        if layer.fp8_packed:
            for name in ("w13_weight", "w2_weight"):
                packed = torch.ops._C.convert_weight_packed(getattr(layer, name).data)
                replace_parameter(layer, name, Parameter(packed, requires_grad=False))

    def get_fused_moe_quant_config(self, layer: torch.nn.Module) -> None:
        """Return None: the scales are applied here."""

    # vLLM's signature.
    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the experts' output for the tokens in `x`."""
        experts = Experts(
            (layer.w13_weight, layer.w2_weight),
            (layer.w13_weight_scale_inv, layer.w2_weight_scale_inv),
            layer.fp8_block_rows,
        )
        multiply = _packed_experts if layer.fp8_packed else _widened_experts
        return multiply(x, experts, topk_weights, topk_ids)


def _refining(load: Callable[..., Any], block: Block) -> Callable[..., Any]:
    """Return a weight loader for scales that divides them as finely as tensor-parallel shards divide the blocks."""

    def refined(param: Any, loaded_weight: torch.Tensor, *rest: Any, **more: Any) -> Any:
        """Divide the scales, then load them."""
        return load(param, refine(loaded_weight, block), *rest, **more)

    return refined


def _kernels_take(block: Block, shape: torch.Size) -> bool:
    """Return whether vLLM's kernels take these blocks: rows in multiples of 32, columns in blocks of 128 or in one."""
    return block[0] % 32 == 0 and shape[-1] % 32 == 0 and (block[1] == BLOCK or block[1] == shape[-1])


def _product(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, block_rows: int, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch.ops._C.fp8_scaled_mm_cpu(x, packed, scale, [block_rows, BLOCK], bias, x.dtype, True)


def _packed_experts(
    x: torch.Tensor, experts: Experts, topk_weights: torch.Tensor, topk_ids: torch.Tensor
) -> torch.Tensor:
    """Return the experts' output by vLLM's kernel, which takes packed weights."""
    out = torch.empty_like(x)
    method, block, none = CPUQuantMethod.FP8_W8A16, [experts.block_rows, BLOCK], None
    weights, ids = topk_weights.float(), topk_ids.to(torch.int32)
    fused_experts_cpu(out, x.contiguous(), *experts.weights, weights, ids, method, *experts.scales, none, none, block)
    return out


def _widened_experts(
    x: torch.Tensor, experts: Experts, topk_weights: torch.Tensor, topk_ids: torch.Tensor
) -> torch.Tensor:
    """Return the experts' output by plain arithmetic. Widen only experts that some token goes to, one at a time."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert in topk_ids.unique().tolist():
        tokens, places = (topk_ids == expert).nonzero(as_tuple=True)
        up, down = (
            dequantize(weight[expert], scale[expert], (experts.block_rows, math.gcd(BLOCK, weight.shape[-1])), x.dtype)
            for weight, scale in zip(experts.weights, experts.scales, strict=True)
        )
        gate, value = linear(x[tokens], up).chunk(2, dim=-1)
        mixed = linear(silu(gate) * value, down) * topk_weights[tokens, places, None]
        out.index_add_(0, tokens, mixed.float())
    return out.to(x.dtype)


@functools.cache
def kernels_agree() -> bool:
    """Return whether vLLM's FP8 kernels agree with plain arithmetic on this CPU. Takes a few milliseconds, once."""
    capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if not capable or not hasattr(torch.ops._C, "fp8_scaled_mm_cpu"):
        return False
    draw = torch.Generator().manual_seed(0)

    def fp8(*shape: int) -> Pair:
        """Return a random FP8 weight with its scales."""
        return quantize(torch.randn(shape, generator=draw, dtype=torch.float32) * 0.1)

    x = torch.randn(6, BLOCK * 2, generator=draw).to(torch.bfloat16)
    weight, scale = fp8(BLOCK, BLOCK * 2)
    (up, up_scale), (down, down_scale) = fp8(2, BLOCK * 2, BLOCK * 2), fp8(2, BLOCK * 2, BLOCK)
    shares, ids = torch.full((6, 2), 0.5), torch.tensor([[0, 1]] * 6)
    pack = torch.ops._C.convert_weight_packed
    one = _product(x, pack(weight), scale, BLOCK, None)
    scales = (up_scale, down_scale)
    many = _packed_experts(x, Experts((pack(up), pack(down)), scales, BLOCK), shares, ids)
    pairs = (
        (one, linear(x, dequantize(weight, scale))),
        (many, _widened_experts(x, Experts((up, down), scales, BLOCK), shares, ids)),
    )
    return all(torch.allclose(got.float(), want.float(), rtol=0.02, atol=0.05) for got, want in pairs)
