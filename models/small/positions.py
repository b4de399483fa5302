"""Count positions as Qwen3.5 does: text counts one by one, a picture's tokens have a row and a column.

All tokens of a picture share one time. Their heights and widths count from that time on, and the text after the picture
goes on behind the larger of the two. A token of text has the same position three times.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.small.config import IMAGE_PAD, MERGE_SIZE

Grid = tuple[int, int]
"""Height and width of a picture in patches."""


def picture_tokens(grid: Grid) -> int:
    """Return how many `<|image_pad|>` stand for a picture of `grid`."""
    return (grid[0] // MERGE_SIZE) * (grid[1] // MERGE_SIZE)


def positions(ids: Sequence[int], grids: Sequence[Grid] = ()) -> Tensor:
    """Return time, height and width of each token, (3, T). `grids` are those of the pictures, in their order.

    Raises:
        ValueError: A run of `<|image_pad|>` is not as long as its picture, or their numbers differ.
    """
    parts, now, left = [], 0, list(grids)
    for is_picture, length in _runs(ids):
        if not is_picture:
            parts.append(torch.arange(now, now + length).expand(3, -1))
            now += length
            continue
        if not left or picture_tokens(left[0]) != length:
            expected = picture_tokens(left[0]) if left else 0
            raise ValueError(f"the picture at this place has {expected} tokens, got {length} <|image_pad|>")
        rows, columns = (size // MERGE_SIZE for size in left.pop(0))
        height = torch.arange(rows).repeat_interleave(columns)
        parts.append(torch.stack((torch.zeros_like(height), height, torch.arange(columns).repeat(rows))) + now)
        now += max(rows, columns)
    if left:
        raise ValueError(f"{len(left)} of {len(grids)} pictures have no <|image_pad|>")
    return torch.cat(parts, dim=1)


def batch_positions(rows: Sequence[Sequence[int]], grids: Sequence[Sequence[Grid]]) -> Tensor | None:
    """Return the positions of unpadded rows, (3, B, T), zero in the padding on the right; None if all are plain text.

    `grids` are the pictures of each row.
    """
    if not any(grids):
        return None
    out = torch.zeros(3, len(rows), max(map(len, rows)), dtype=torch.long)
    for index, (ids, pictures) in enumerate(zip(rows, grids, strict=True)):
        out[:, index, : len(ids)] = positions(ids, pictures)
    return out


def _runs(ids: Sequence[int]) -> Iterator[tuple[bool, int]]:
    """Yield runs of `<|image_pad|>` and of other tokens, as (is it a picture, length)."""
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (ids[end] == IMAGE_PAD) != (ids[start] == IMAGE_PAD):
            yield ids[start] == IMAGE_PAD, end - start
            start = end
