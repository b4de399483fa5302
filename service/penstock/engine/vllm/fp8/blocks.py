"""Quantize weights to e4m3 with one float32 scale per block of 128 x 128, as the official FP8 checkpoints. Torch only.

A weight is about quantised * scale_inv of its block. ("Inverse" is the checkpoints' name for the factor that undoes the
quantisation.) The last two dimensions are rows and columns; any dimensions before them are experts.
"""

from __future__ import annotations

import torch

BLOCK = 128
LARGEST = 448.0
"""Largest value of e4m3, which has 3 mantissa bits: a weight is rounded by at most 1/16 of itself."""


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (e4m3 weight of the same shape, float32 scales of shape (..., rows / 128, columns / 128), rounded up)."""
    padded = _padded(weight.float())
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    largest = blocks.abs().amax(dim=(-3, -1), keepdim=True)
    # For a block of zeros any scale is right.
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    quantised = (blocks / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    whole = quantised.flatten(-4, -3).flatten(-2, -1)
    rows, columns = weight.shape[-2:]
    return whole[..., :rows, :columns].contiguous(), scale[..., 0, :, 0].contiguous()


def dequantize(
    quantised: torch.Tensor,
    scale: torch.Tensor,
    block: tuple[int, int] = (BLOCK, BLOCK),
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Return the weight in `dtype`; `scale` has one value per `block` of rows and columns."""
    rows, columns = quantised.shape[-2:]
    full = scale.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]
    return (_widened(quantised) * full).to(dtype)


def refine(scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Return the same scales for smaller blocks, which divide 128, for tensor-parallel shards that cut blocks."""
    return scale.repeat_interleave(BLOCK // block[0], -2).repeat_interleave(BLOCK // block[1], -1)


def _widened(quantised: torch.Tensor) -> torch.Tensor:
    """Return exact float32 values. The bits of e4m3 are those of a float16 / 256: ten times as fast as torch's cast."""
    bits = quantised.view(torch.int8).to(torch.int16)
    return ((bits & -32768) | ((bits & 127) << 7)).view(torch.float16).float() * 256.0


def _padded(weight: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape[-2:]
    return torch.nn.functional.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
