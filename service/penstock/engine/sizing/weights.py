"""List every matrix of a Qwen3.5-class model: shape, precision in FP8 checkpoints, distribution in vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from fractions import Fraction

from penstock.engine.sizing.shape import Shape

BLOCK = 128
"""FP8 checkpoints have one float32 scale per 128 x 128 weights."""
NVFP4_GROUP = 16
"""NVFP4 checkpoints have one FP8 scale per 16 weights and one float32 per matrix.

Only the model's own experts are converted; those of the draft layer stay bfloat16.
"""
_VOCABULARY_STEP = 64
"""vLLM rounds the rows of embedding and head up to a multiple of this."""


class Part(Enum):
    """Enumerate what a matrix is for, which decides when it is read."""

    EMBEDDING = auto()  # looked up row by row
    HEAD = auto()  # read once per step, and once per draft
    MIXER = auto()  # attention and Gated DeltaNet
    DENSE = auto()  # router, shared expert, or a dense model's feed-forward; norms
    EXPERTS = auto()  # only those that the step's tokens are routed to
    VISION = auto()  # read for images only


class Spread(Enum):
    """Enumerate over which devices a matrix is divided; data-parallel replicas repeat everything but the experts."""

    EVERYWHERE = auto()  # each device has a complete copy
    TENSOR = auto()
    KV_HEADS = auto()  # over tensor-parallel devices, down to one head each
    EXPERTS = auto()  # whole experts over all devices with expert parallelism, else as TENSOR


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Hold a layout: `tensor` devices per replica, `data` replicas, and whether experts are spread over all."""

    tensor: int = 1
    data: int = 1
    experts: bool = False

    @property
    def ranks(self) -> int:
        """Return the number of devices."""
        return self.tensor * self.data

    @property
    def expert_ranks(self) -> int:
        """Return the number of devices over which one set of experts is divided."""
        return self.ranks if self.experts else self.tensor


@dataclass(frozen=True, slots=True)
class Matrix:
    """Describe `count` equal matrices: FP8 with scales where `fp8`, else `bytes_each` per element."""

    name: str
    part: Part
    rows: int
    columns: int
    spread: Spread
    count: int = 1
    fp8: bool = False
    bytes_each: int = 2
    draft: bool = False

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return self.count * self.rows * self.columns

    @property
    def scales(self) -> int:
        """Return the number of scales in an FP8 checkpoint."""
        return self.count * -(-self.rows // BLOCK) * -(-self.columns // BLOCK) if self.fp8 else 0

    def bytes(self, fp8: bool, nvfp4: bool = False) -> int:
        """Return the bytes. With `nvfp4`, the model's experts take half a byte per weight, and their scales."""
        if nvfp4:
            if self.part is not Part.EXPERTS or self.draft:
                return self.elements * self.bytes_each
            return -(-self.elements // 2) + -(-self.elements // NVFP4_GROUP) + 4 * self.count
        return self.elements + 4 * self.scales if fp8 and self.fp8 else self.elements * self.bytes_each

    def share(self, shape: Shape, layout: ParallelLayout) -> Fraction:
        """Return the share of the bytes on one device."""
        match self.spread:
            case Spread.EVERYWHERE:
                return Fraction(1)
            case Spread.TENSOR:
                return Fraction(1, layout.tensor)
            case Spread.KV_HEADS:
                return Fraction(1, min(layout.tensor, shape.kv_heads))
            case Spread.EXPERTS:
                return Fraction(1, layout.expert_ranks)


def inventory(shape: Shape, draft: bool = True) -> list[Matrix]:
    """Return all weights of the text model; without `draft`, those that vLLM loads without MTP."""
    found = [*_ends(shape)]
    found += [_times(matrix, shape.linear_layers) for matrix in _delta_net(shape)]
    found += [_times(matrix, shape.full_layers) for matrix in _attention(shape)]
    found += [_times(matrix, shape.layers) for matrix in _feed_forward(shape)]
    if draft and shape.draft_layers:
        layer = [*_attention(shape), *_feed_forward(shape)]
        ends = [Matrix("mtp.fc", Part.DENSE, shape.hidden, 2 * shape.hidden, Spread.TENSOR), _norms(shape, 3)]
        found += [_times(matrix, shape.draft_layers, draft=True) for matrix in layer]
        found += [_times(matrix, 1, draft=True) for matrix in ends]
    return [matrix for matrix in found if matrix.elements]


def bytes_of(
    matrices: Iterable[Matrix], fp8: bool, shape: Shape, layout: ParallelLayout | None = None, nvfp4: bool = False
) -> int:
    """Return the bytes of the matrices; with a layout, those of one device, rounded up."""
    alone = layout or ParallelLayout()
    total = sum((matrix.bytes(fp8, nvfp4) * matrix.share(shape, alone) for matrix in matrices), Fraction(0))
    return -(-total.numerator // total.denominator)


def weight_bytes(
    shape: Shape, fp8: bool, draft: bool = True, layout: ParallelLayout | None = None, nvfp4: bool = False
) -> int:
    """Return the bytes of the whole model, or of one device of a layout."""
    return bytes_of(inventory(shape, draft), fp8, shape, layout, nvfp4=nvfp4)


def parameters(shape: Shape, draft: bool = False) -> int:
    """Return the number of parameters as in model names: without the draft layer."""
    return sum(matrix.elements for matrix in inventory(shape, draft))


def active_parameters(shape: Shape) -> int:
    """Return the parameters that one token uses: its experts only, and no embedding."""
    share = Fraction(shape.experts_per_token, shape.experts) if shape.experts else Fraction(1)
    counted = (
        matrix.elements * (share if matrix.part is Part.EXPERTS else 1)
        for matrix in inventory(shape, draft=False)
        if matrix.part is not Part.EMBEDDING
    )
    return int(sum(counted, Fraction(0)))


def _times(matrix: Matrix, count: int, draft: bool = False) -> Matrix:
    return replace(matrix, count=matrix.count * count, draft=draft)


def _norms(shape: Shape, count: int) -> Matrix:
    return Matrix("norms", Part.DENSE, 1, shape.hidden, Spread.EVERYWHERE, count)


def _ends(shape: Shape) -> Iterator[Matrix]:
    rows = -(-shape.vocab // _VOCABULARY_STEP) * _VOCABULARY_STEP
    yield Matrix("embed_tokens", Part.EMBEDDING, rows, shape.hidden, Spread.TENSOR)
    if not shape.tied:
        yield Matrix("lm_head", Part.HEAD, rows, shape.hidden, Spread.TENSOR)
    yield _norms(shape, 1)


def _delta_net(shape: Shape) -> Iterator[Matrix]:
    heads, values = shape.linear_values, shape.linear_values * shape.linear_value_dim
    mixer = Part.MIXER
    yield Matrix("in_proj_qkv", mixer, shape.convolved, shape.hidden, Spread.TENSOR, fp8=True)
    yield Matrix("in_proj_z", mixer, values, shape.hidden, Spread.TENSOR, fp8=True)
    yield Matrix("out_proj", mixer, shape.hidden, values, Spread.TENSOR, fp8=True)
    yield Matrix("in_proj_ba", mixer, 2 * heads, shape.hidden, Spread.TENSOR)
    yield Matrix("conv1d", mixer, shape.convolved, shape.kernel, Spread.TENSOR)
    yield Matrix("dt_bias", mixer, heads, 1, Spread.TENSOR)
    yield Matrix("A_log", mixer, heads, 1, Spread.TENSOR, bytes_each=4)
    yield Matrix("linear_attn.norm", mixer, shape.linear_value_dim, 1, Spread.EVERYWHERE)


def _attention(shape: Shape) -> Iterator[Matrix]:
    width, pair = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    mixer = Part.MIXER
    yield Matrix("q_proj", mixer, width * (2 if shape.gated else 1), shape.hidden, Spread.TENSOR, fp8=True)
    yield Matrix("kv_proj", mixer, pair, shape.hidden, Spread.KV_HEADS, count=2, fp8=True)
    yield Matrix("o_proj", mixer, shape.hidden, width, Spread.TENSOR, fp8=True)
    yield Matrix("qk_norm", mixer, 2 * shape.head_dim, 1, Spread.EVERYWHERE)


def _feed_forward(shape: Shape) -> Iterator[Matrix]:
    yield _norms(shape, 2)
    yield from _gated("mlp", Part.DENSE, shape, shape.inner)
    if shape.experts:
        yield Matrix("router", Part.DENSE, shape.experts, shape.hidden, Spread.EVERYWHERE)
        yield Matrix("shared_expert_gate", Part.DENSE, 1, shape.hidden, Spread.EVERYWHERE)
        yield from _gated("shared_expert", Part.DENSE, shape, shape.shared_inner)
        yield from _gated("experts", Part.EXPERTS, shape, shape.expert_inner, shape.experts)


def _gated(name: str, part: Part, shape: Shape, inner: int, count: int = 1) -> Iterator[Matrix]:
    spread = Spread.EXPERTS if part is Part.EXPERTS else Spread.TENSOR
    yield Matrix(f"{name}.gate_up", part, inner, shape.hidden, spread, 2 * count, fp8=True)
    yield Matrix(f"{name}.down", part, shape.hidden, inner, spread, count, fp8=True)
