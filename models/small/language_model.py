"""Define the whole model: vision tower, trunk, head and MTP layer, with the official checkpoints' parameter names.

model.visual.*    model.language_model.*    lm_head.*    mtp.*
"""

from dataclasses import dataclass

from torch import Tensor, nn

from models.small.config import IMAGE_PAD
from models.small.positions import Grid
from models.small.trunk import MultiTokenPredictor, Trunk, initialise
from models.small.vision import VisionTower


@dataclass(frozen=True)
class Pictures:
    """The pictures of a batch, in the order of their tokens: all patches (N, pixel values), and each one's grid."""

    pixels: Tensor
    grids: list[Grid]


@dataclass(frozen=True)
class States:
    """Hold what the trunk made of a batch: embeddings, states after the final norm (B, T, D), mean balance loss."""

    embedded: Tensor
    hidden: Tensor
    balance: Tensor


class SightedTrunk(nn.Module):
    """A vision tower and a trunk."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.language_model = Trunk(config["text_config"])
        self.visual = VisionTower(config["vision_config"])

    def embed(self, ids: Tensor, pictures: Pictures | None = None) -> Tensor:
        """Return the embeddings of ids (B, T), with the pictures' tokens in place of `<|image_pad|>`."""
        embedded = self.language_model.embed_tokens(ids)
        if pictures is None:
            return embedded
        tokens = self.visual(pictures.pixels, pictures.grids).to(embedded.dtype)
        return embedded.masked_scatter((ids == IMAGE_PAD)[..., None], tokens)


class SmallModel(nn.Module):
    """The model for training. `config` is the content of config.json."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        text = config["text_config"]
        self.config = config
        self.model = SightedTrunk(config)
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        self.mtp = MultiTokenPredictor(text)
        for part in (self.model.language_model, self.lm_head, self.mtp):
            part.apply(lambda module: initialise(module, text["initializer_range"]))

    def forward(self, ids: Tensor, positions: Tensor | None = None, pictures: Pictures | None = None) -> States:
        """Run the trunk over ids (B, T). A batch with pictures needs `positions` (3, B, T)."""
        embedded = self.model.embed(ids, pictures)
        hidden, balance = self.model.language_model.states(embedded, positions)
        return States(embedded, hidden, balance)

    def drafts(self, states: States, count: int, positions: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return what `MultiTokenPredictor.drafts` does: `count` drafts' hidden states, and their balance loss."""
        return self.mtp.drafts(states.embedded, states.hidden, count, positions)
