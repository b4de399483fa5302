"""Define the trunk and the MTP layer, and their initial weights."""

import torch
from torch import Tensor, nn

from models.small.layers import DecoderLayer, RMSNorm


class Trunk(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(DecoderLayer(config, layer_type) for layer_type in config["layer_types"])
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids (B, T) to hidden states after the final norm (B, T, D) and the mean balance loss."""
        return self.states(self.embed_tokens(ids))

    def states(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Do the same from embeddings (B, T, D), at `positions` (3, B, T) where they are not those of plain text."""
        balances = []
        for layer in self.layers:
            x, balance, _ = layer(x, positions=positions)
            balances.append(balance)
        return self.norm(x), torch.stack(balances).mean()


class MultiTokenPredictor(nn.Module):
    """The draft layer, computed as vLLM's qwen3_5_mtp does: one layer, applied again for each further draft token."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(config, "full_attention")])
        self.norm = RMSNorm(hidden, eps)
        self.pre_fc_norm_embedding = RMSNorm(hidden, eps)
        self.pre_fc_norm_hidden = RMSNorm(hidden, eps)

    def forward(
        self,
        next_embedding: Tensor,
        hidden: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Map the embedding of token t + 1 and the hidden state at t to that for token t + 2, (B, T, D) each.

        `positions` (3, B, T) are those of token t, as in the engine.
        """
        both = torch.cat((self.pre_fc_norm_embedding(next_embedding), self.pre_fc_norm_hidden(hidden)), dim=-1)
        out, balance, cache = self.layers[0](self.fc(both), past, positions)
        return self.norm(out), balance, cache

    def drafts(
        self, embedded: Tensor, hidden: Tensor, count: int, positions: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the hidden states of `count` successive drafts, teacher-forced, and the mean balance loss.

        Row t of draft n (0 <= t < T - 1) belongs to the trunk's hidden state of token t - n. Its logits predict token
        t + 2 and have no meaning for t < n. As in the engine, a draft's token uses the first draft's keys for the
        tokens before it, and its own key for itself.
        """
        following, state, past, outs, balances = embedded[:, 1:], hidden[:, :-1], None, [], []
        before = None if positions is None else positions[..., :-1]
        for _ in range(count):
            out, balance, cache = self(following, state, past, before)
            past = past or cache
            outs.append(out)
            balances.append(balance)
            state = torch.cat((torch.zeros_like(out[:, :1]), out[:, :-1]), dim=1)
        return outs, torch.stack(balances).mean()


def initialise(module: nn.Module, std: float) -> None:
    """Draw the module's own matrices and expert stacks from a normal distribution; norms and decays stay."""
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("gate_up_proj", "down_proj") or (name == "weight" and parameter.dim() == 2):
            nn.init.normal_(parameter, std=std)
