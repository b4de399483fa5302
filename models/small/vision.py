"""Define Qwen3.5's vision tower in plain PyTorch for training, with the parameter names of the official checkpoints.

It does not use Transformers' `Qwen3_5MoeVisionModel`, because that computes attention picture by picture and the patch
embedding as a three-dimensional convolution, and batches of small pictures spend more time there than they need. Here,
pictures with the same number of patches share one attention call.
Shapes: N patches of all pictures, D hidden, H heads, K head dimension.
"""

from collections import Counter
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.small.positions import Grid

Rotation = tuple[Tensor, Tensor]
Groups = list[tuple[int, int]]
"""How many pictures follow each other that have the same number of patches, and this number."""


@lru_cache(maxsize=1024)
def patch_places(grid: Grid, merge: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each patch. The patches of one token, `merge` on each side, follow each other."""
    height, width = grid
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(
        height // merge, merge, width // merge, merge, 2
    )
    rows, columns = places.transpose(1, 2).reshape(-1, 2).unbind(-1)
    return rows, columns


@lru_cache(maxsize=1024)
def table_weights(grid: Grid, merge: int, side: int) -> tuple[Tensor, Tensor]:
    """Return 4 entries of the position table and their weights for each patch, (patches, 4) each: a bilinear sample.

    The table is a square of `side`; the picture's corners are the table's, whatever its size.
    """
    entries, weights = [], []
    axes = []
    for places, length in zip(patch_places(grid, merge), grid, strict=True):
        exact = places * (side - 1) / max(length - 1, 1)
        low = exact.floor().long()
        axes.append(((low, 1 - (exact - low)), ((low + 1).clamp(max=side - 1), exact - low)))
    for row, row_weight in axes[0]:
        for column, column_weight in axes[1]:
            entries.append(row * side + column)
            weights.append(row_weight * column_weight)
    return torch.stack(entries, -1), torch.stack(weights, -1)


class Attention(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_heads"]
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, rotation: Rotation, groups: Groups) -> Tensor:
        """Return attention within each picture for x (N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = (self._rotate(part, rotation).to(v.dtype) for part in (q, k))
        outs = []
        for parts in zip(*(part.split([a * b for a, b in groups]) for part in (q, k, v)), groups, strict=True):
            count, patches = parts[-1]
            group = (part.view(count, patches, *part.shape[1:]).transpose(1, 2) for part in parts[:-1])
            outs.append(F.scaled_dot_product_attention(*group).transpose(1, 2).reshape(count * patches, -1))
        return self.proj(torch.cat(outs))

    @staticmethod
    def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
        cos, sin = rotation
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class MLP(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.linear_fc2 = nn.Linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config["hidden_size"], eps=1e-6)
        self.norm2 = nn.LayerNorm(config["hidden_size"], eps=1e-6)
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Rotation, groups: Groups) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation, groups)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        edge = (config["temporal_patch_size"], config["patch_size"], config["patch_size"])
        self.proj = nn.Conv3d(config["in_channels"], config["hidden_size"], edge, stride=edge)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map patches (N, pixel values) to (N, D). The convolution's windows do not overlap: it is one product."""
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class Merger(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.width = config["hidden_size"] * config["spatial_merge_size"] ** 2
        self.norm = nn.LayerNorm(config["hidden_size"], eps=1e-6)
        self.linear_fc1 = nn.Linear(self.width, self.width)
        self.linear_fc2 = nn.Linear(self.width, config["out_hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(self.norm(x).view(-1, self.width))))


class VisionTower(nn.Module):
    """The tower, with the parameter names of `model.visual`."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.merge = config["spatial_merge_size"]
        self.side = round(config["num_position_embeddings"] ** 0.5)
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config["num_position_embeddings"], config["hidden_size"])
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["depth"]))
        self.merger = Merger(config)
        quarter = config["hidden_size"] // config["num_heads"] // 4
        self.register_buffer("frequencies", 10000.0 ** -(torch.arange(quarter) / quarter), persistent=False)
        self.apply(lambda module: _initialise(module, config["initializer_range"]))

    def forward(self, pixels: Tensor, grids: list[Grid]) -> Tensor:
        """Map the patches of all pictures (N, pixel values), in the image processor's order, to tokens (N / 4, D)."""
        device = pixels.device
        entries, weights = (
            torch.cat(parts).to(device)
            for parts in zip(*(table_weights(grid, self.merge, self.side) for grid in grids), strict=True)
        )
        places = F.embedding_bag(entries, self.pos_embed.weight, per_sample_weights=weights, mode="sum")
        x = self.patch_embed(pixels) + places
        sizes = [height * width for height, width in grids]
        order = sorted(range(len(grids)), key=sizes.__getitem__)
        rows = torch.cat([torch.arange(len(x)).split(sizes)[index] for index in order]).to(device)
        groups = [(count, size) for size, count in sorted(Counter(sizes).items())]
        x, rotation = x[rows], self._rotation([grids[index] for index in order])
        for block in self.blocks:
            x = block(x, rotation, groups)
        tokens = rows.view(-1, self.merge**2)[:, 0] // self.merge**2
        return self.merger(x)[tokens.argsort()]

    def _rotation(self, grids: list[Grid]) -> Rotation:
        """Return cosines and sines, (N, 1, K / 2) each: half of the pairs turns by row, the other half by column."""
        places = torch.cat([torch.stack(patch_places(grid, self.merge), -1) for grid in grids])
        angles = (places.to(self.frequencies.device)[..., None] * self.frequencies).flatten(1)[:, None]
        return angles.cos(), angles.sin()


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
        nn.init.zeros_(module.bias)
