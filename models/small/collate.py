"""Put examples together into the tensors of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.small.config import END_OF_TEXT
from models.small.encoding import Example
from models.small.language_model import Pictures
from models.small.positions import batch_positions


def pad(rows: list[list], fill: float) -> list[list]:
    """Pad rows on the right to equal lengths. With causal layers this changes nothing before the padding."""
    longest = max(map(len, rows))
    return [row + [fill] * (longest - len(row)) for row in rows]


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to equal lengths; with causal layers this changes nothing before the padding."""

    ids: Tensor
    """Token ids (B, T)."""
    weights: Tensor
    """Loss weight of each token (B, T)."""
    positions: Tensor | None
    """Positions (3, B, T) where there are pictures."""
    pictures: Pictures | None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        pictures = self.pictures and Pictures(self.pictures.pixels.to(device), self.pictures.grids)
        positions = None if self.positions is None else self.positions.to(device)
        return Batch(self.ids.to(device), self.weights.to(device), positions, pictures)


def collate(group: list[Example]) -> Batch:
    """Return the batch of a group of examples."""
    rows = [item.ids for item in group]
    shown = [one for item in group for one in item.pictures]
    pictures = Pictures(torch.cat([patches for patches, _ in shown]), [grid for _, grid in shown]) if shown else None
    return Batch(
        torch.tensor(pad(rows, END_OF_TEXT)),
        torch.tensor(pad([item.weights for item in group], 0.0)),
        batch_positions(rows, [[grid for _, grid in item.pictures] for item in group]),
        pictures,
    )
