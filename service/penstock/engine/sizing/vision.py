"""Compute the size of a Qwen3.5-class vision tower: its weights, an image's tokens, and the memory to encode images.

The tower stays bfloat16, also in FP8 checkpoints. See vllm/model_executor/models/qwen3_vl.py
`Qwen3_VisionTransformer`, vllm/multimodal/encoder_budget.py `MultiModalBudget`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.engine.sizing.weights import Matrix, Part, Spread
from penstock.errors import ConfigError

MIN_PIXELS = 65_536
"""The official image processor scales a smaller image up to so many pixels."""
_ELEMENT_BYTES = 2


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Hold the dimensions of the tower. Widths are in elements.

    `patch` is the edge of a patch in pixels, `merge` the edge of an image's token in patches, `positions` the entries
    of the table of learned positions, `deepstack` the number of layers whose output goes to the text model, too.
    """

    depth: int
    hidden: int
    inner: int
    heads: int
    positions: int
    channels: int
    patch: int
    frames: int
    merge: int
    out_hidden: int
    deepstack: int

    @property
    def token_pixels(self) -> int:
        """Return the pixels of an image that are one token."""
        return (self.patch * self.merge) ** 2

    @property
    def patch_values(self) -> int:
        """Return the numbers that a patch consists of. An image is repeated to fill the frames."""
        return self.channels * self.frames * self.patch**2

    def tokens(self, pixels: int, most_pixels: int) -> int:
        """Return the tokens of an image of so many pixels, which is scaled to at most `most_pixels`.

        The sides are rounded to whole tokens, so that an image's own count may differ by some percent.
        """
        return max(1, min(max(pixels, MIN_PIXELS), most_pixels) // self.token_pixels)

    def operations(self, tokens: int) -> int:
        """Return the operations to encode an image of so many tokens: two per weight and row, and its attention."""
        patches = tokens * self.merge**2
        total = self.depth * 4 * patches**2 * self.hidden
        for matrix in vision_inventory(self):
            if matrix.rows > 1 and matrix.name != "pos_embed":
                total += 2 * matrix.elements * (tokens if matrix.name.startswith("merger") else patches)
        return total


def read_vision(vision: Mapping[str, Any]) -> VisionShape:
    """Return the dimensions in the vision part of config.json. Raise ConfigError naming a missing one."""
    try:
        return VisionShape(
            depth=int(vision["depth"]),
            hidden=int(vision["hidden_size"]),
            inner=int(vision["intermediate_size"]),
            heads=int(vision["num_heads"]),
            positions=int(vision["num_position_embeddings"]),
            channels=int(vision.get("in_channels") or 3),
            patch=int(vision["patch_size"]),
            frames=int(vision.get("temporal_patch_size") or 2),
            merge=int(vision["spatial_merge_size"]),
            out_hidden=int(vision["out_hidden_size"]),
            deepstack=len(vision.get("deepstack_visual_indexes") or ()),
        )
    except KeyError as error:
        name = f"vision_config.{error.args[0]}"
        raise ConfigError(f"config.json lacks {name}, which the tower's size depends on") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.json has a size in vision_config that is not a number: {error}") from None


def vision_inventory(shape: VisionShape) -> list[Matrix]:
    """Return all weights of the tower, with their distribution over the devices of a replica."""
    found = [
        Matrix("patch_embed", Part.VISION, shape.hidden, shape.patch_values, Spread.EVERYWHERE),
        _bias("patch_embed", shape.hidden, Spread.EVERYWHERE),
        Matrix("pos_embed", Part.VISION, shape.positions, shape.hidden, Spread.EVERYWHERE),
    ]
    found += [replace(matrix, count=matrix.count * shape.depth) for matrix in _block(shape)]
    merged = shape.hidden * shape.merge**2
    found += _merger("merger", shape, merged, shape.hidden)
    deepstack = _merger("merger_deepstack", shape, merged, merged)
    found += [replace(matrix, count=matrix.count * shape.deepstack) for matrix in deepstack]
    return [matrix for matrix in found if matrix.elements]


def vision_parameters(shape: VisionShape) -> int:
    """Return the number of the tower's parameters."""
    return sum(matrix.elements for matrix in vision_inventory(shape))


def vision_weight_bytes(shape: VisionShape, tensor: int = 1) -> int:
    """Return the bytes of the tower on one device of a replica of `tensor` devices.

    Raises:
        ConfigError: `tensor` does not divide its heads.
    """
    if shape.heads % tensor:
        raise ConfigError(f"{tensor} devices do not divide {shape.heads} heads of the vision tower")
    divided = sum(one.elements for one in vision_inventory(shape) if one.spread is Spread.TENSOR)
    whole = sum(one.elements for one in vision_inventory(shape) if one.spread is Spread.EVERYWHERE)
    return _ELEMENT_BYTES * (-(-divided // tensor) + whole)


def encoded_bytes(shape: VisionShape, image_tokens: int, batch_tokens: int) -> int:
    """Return the bytes of encoded images for which vLLM makes room: a step's tokens, or the largest image."""
    return _budget(image_tokens, batch_tokens) * shape.out_hidden * (1 + shape.deepstack) * _ELEMENT_BYTES


def encoding_bytes(shape: VisionShape, image_tokens: int, batch_tokens: int, tensor: int = 1) -> int:
    """Return the bytes of the tower's largest step, an estimate: vLLM's start runs it to see what is left.

    These are the images' patches, three rows of the hidden width (the input, its norm and the positions), and the
    larger of attention's rows (queries, keys and values, their rotated copies, the result) and the inner rows.

    Args:
        shape: The tower.
        image_tokens: Tokens of the largest image.
        batch_tokens: Tokens of a step.
        tensor: Devices of a replica.
    """
    patches = _budget(image_tokens, batch_tokens) // image_tokens * image_tokens * shape.merge**2
    rows = shape.patch_values + 3 * shape.hidden + max(8 * shape.hidden, 2 * shape.inner) // tensor
    return patches * rows * _ELEMENT_BYTES


def _budget(image_tokens: int, batch_tokens: int) -> int:
    """Return the tokens of images in a step."""
    return max(image_tokens, batch_tokens)


def _bias(name: str, width: int, spread: Spread) -> Matrix:
    return Matrix(f"{name}.bias", Part.VISION, 1, width, spread)


def _norm(name: str, width: int) -> Matrix:
    return Matrix(name, Part.VISION, 1, width, Spread.EVERYWHERE, count=2)


def _column(name: str, rows: int, columns: int) -> Iterator[Matrix]:
    """Yield a matrix whose rows are divided, and its bias with them."""
    yield Matrix(name, Part.VISION, rows, columns, Spread.TENSOR)
    yield _bias(name, rows, Spread.TENSOR)


def _row(name: str, rows: int, columns: int) -> Iterator[Matrix]:
    """Yield a matrix whose columns are divided; each device has its whole bias."""
    yield Matrix(name, Part.VISION, rows, columns, Spread.TENSOR)
    yield _bias(name, rows, Spread.EVERYWHERE)


def _block(shape: VisionShape) -> Iterator[Matrix]:
    yield _norm("norm1", shape.hidden)
    yield from _column("attn.qkv", 3 * shape.hidden, shape.hidden)
    yield from _row("attn.proj", shape.hidden, shape.hidden)
    yield _norm("norm2", shape.hidden)
    yield from _column("mlp.linear_fc1", shape.inner, shape.hidden)
    yield from _row("mlp.linear_fc2", shape.hidden, shape.inner)


def _merger(name: str, shape: VisionShape, merged: int, normed: int) -> list[Matrix]:
    """Return what makes one token of `merge` x `merge` patches."""
    return [
        Matrix(f"{name}.norm", Part.VISION, 1, normed, Spread.EVERYWHERE, count=2),
        *_column(f"{name}.linear_fc1", merged, merged),
        *_row(f"{name}.linear_fc2", shape.out_hidden, merged),
    ]
