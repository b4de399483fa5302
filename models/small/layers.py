"""Define Qwen3.5-MoE in plain PyTorch for training, with the parameter names of the official checkpoints.

It does not use Transformers for two reasons. The whole sequence fits in one delta-rule chunk, which is several times
faster on a CPU. And the MTP layer, which Transformers does not have, is trained with it.
Shapes: B sequences, T tokens, D hidden, H heads, K head dimension (128), E experts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.small.gated_delta import gated_delta_rule


class RMSNorm(nn.Module):
    """A zero-centred norm: the stored weight is the gain minus one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], 1.0 + self.weight, self.eps)


class GatedNorm(nn.Module):
    """Normalise each head, then gate it with SiLU; the stored weight is the gain itself."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps) * F.silu(gate)


class ShiftedProducts(torch.autograd.Function):
    """A causal depthwise convolution of x (B, T, C) with taps (C, kernel), the last tap on the token itself.

    A grouped Conv1d of this shape is slow on a CPU, and automatic gradients of slices fill whole tensors with zeros.
    All is in float32: a product of two types takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        """Return the sum of each tap's product with the tokens before."""
        ctx.save_for_backward(x, taps)
        length, last = x.shape[1], taps.shape[1] - 1
        out = x * taps[:, last]
        for back in range(1, min(last + 1, length)):
            out[:, back:].addcmul_(x[:, : length - back], taps[:, last - back])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the taps."""
        (x, taps), (grad,) = ctx.saved_tensors, grads
        length, last = x.shape[1], taps.shape[1] - 1
        to_x, to_taps = grad * taps[:, last], torch.zeros_like(taps)
        to_taps[:, last] = (grad * x).sum((0, 1))
        for back in range(1, min(last + 1, length)):
            later, earlier = grad[:, back:], x[:, : length - back]
            to_x[:, : length - back].addcmul_(later, taps[:, last - back])
            to_taps[:, last - back] = (later * earlier).sum((0, 1))
        return to_x, to_taps


class GatedDeltaNet(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, self.head_dim = config["hidden_size"], config["linear_key_head_dim"]
        self.key_width = config["linear_num_key_heads"] * self.head_dim
        self.value_width = config["linear_num_value_heads"] * config["linear_value_head_dim"]
        value_heads, self.kernel = config["linear_num_value_heads"], config["linear_conv_kernel_dim"]
        self.repeats = value_heads // config["linear_num_key_heads"]
        channels = 2 * self.key_width + self.value_width
        self.conv1d = nn.Conv1d(channels, channels, self.kernel, groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(value_heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(value_heads).uniform_(0.01, 16)))
        self.norm = GatedNorm(config["linear_value_head_dim"], config["rms_norm_eps"])
        self.out_proj = nn.Linear(self.value_width, hidden, bias=False)
        self.in_proj_qkv = nn.Linear(hidden, channels, bias=False)
        self.in_proj_z = nn.Linear(hidden, self.value_width, bias=False)
        self.in_proj_b = nn.Linear(hidden, value_heads, bias=False)
        self.in_proj_a = nn.Linear(hidden, value_heads, bias=False)

    def _convolve(self, x: Tensor) -> Tensor:
        """Return the causal depthwise convolution with SiLU; input and output are (B, T, channels)."""
        return F.silu(ShiftedProducts.apply(x.float(), self.conv1d.weight[:, 0]))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values in one, then output gate, beta and decay before their activations.

        One product instead of four: those with a column for each head alone are as slow as the large ones.
        """
        parts = (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a)
        weight = torch.cat([part.weight for part in parts])
        return F.linear(x, weight).split([part.out_features for part in parts], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        qkv, gate, beta, decay = self._project(x)
        qkv = self._convolve(qkv)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in qkv.split([self.key_width, self.key_width, self.value_width], dim=-1)
        )
        if self.repeats > 1:
            q, k = (part.repeat_interleave(self.repeats, dim=1) for part in (q, k))
        beta = beta.sigmoid().transpose(1, 2)
        log_decay = (-self.A_log.exp() * F.softplus(decay + self.dt_bias)).transpose(1, 2)
        out = gated_delta_rule(q, k, v, log_decay, beta).transpose(1, 2)
        return self.out_proj(self.norm(out, gate.unflatten(-1, (-1, self.head_dim))).flatten(-2))


def axes_of_pairs(pairs: int, section: list[int] | None) -> list[int]:
    """Return which position rotates each pair: 0 time, 1 height, 2 width.

    `section` has the pairs of each (`mrope_section`, interleaved): height and width take every third pair as long as
    theirs last, time takes the rest. Without it, all pairs are time's.
    """
    _, height, width = section or (pairs, 0, 0)
    return [axis if (axis := pair % 3) and pair // 3 < (height, width)[axis - 1] else 0 for pair in range(pairs)]


class Attention(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, self.head_dim = config["hidden_size"], config["head_dim"]
        heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.repeats = heads // key_heads
        self.q_proj = nn.Linear(hidden, heads * self.head_dim * 2, bias=False)
        self.k_proj = nn.Linear(hidden, key_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, key_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config["rms_norm_eps"])
        self.k_norm = RMSNorm(self.head_dim, config["rms_norm_eps"])
        rope = config["rope_parameters"]
        self.rotary = int(self.head_dim * rope["partial_rotary_factor"])
        steps = torch.arange(0, self.rotary, 2).float() / self.rotary
        self.register_buffer("frequencies", rope["rope_theta"] ** -steps, persistent=False)
        axes = axes_of_pairs(self.rotary // 2, rope.get("mrope_section"))
        self.register_buffer("axes", torch.tensor(axes), persistent=False)

    def _angles(self, length: int, positions: Tensor | None) -> Tensor:
        """Return the angle of each rotated pair, in a shape that fits (B, H, T, pairs)."""
        if positions is None:
            return torch.arange(length, device=self.frequencies.device).float()[:, None] * self.frequencies
        return (positions[self.axes].permute(1, 2, 0).float() * self.frequencies)[:, None]

    def _rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = angles.cos(), angles.sin()
        left, right, rest = x.split([self.rotary // 2, self.rotary // 2, self.head_dim - self.rotary], dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin, rest), dim=-1)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys and values as (B, H, T, K), and the output gate (B, T, H * K)."""
        angles = self._angles(x.shape[1], positions)
        q, gate = self.q_proj(x).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, dim=-1)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        q, k = (self._rotate(norm(part).transpose(1, 2), angles) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        v = v.transpose(1, 2)
        if self.repeats > 1:
            k, v = (part.repeat_interleave(self.repeats, dim=1) for part in (k, v))
        return q, k, v, gate.flatten(-2)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return causal attention.

        With `past` keys and values of the same T, a token uses `past` before it, and itself. `positions` (3, B, T) are
        time, height and width; without, token t is at t in all three.
        """
        q, k, v, gate = self.project(x, positions)
        if past is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            out = self._over_past(q, k, v, past)
        return self.o_proj(out.transpose(1, 2).flatten(-2) * gate.sigmoid()), (k, v)

    def _over_past(self, q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
        scores = q @ past[0].transpose(-1, -2)
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(-1)
        scores = scores.masked_fill(~visible, float("-inf"))
        scores = torch.cat((scores, (q * k).sum(-1, keepdim=True)), dim=-1) * self.head_dim**-0.5
        weights = scores.softmax(-1)
        return weights[..., :-1] @ past[1] + weights[..., -1:] * v


class GatedMLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """The weights of all routed experts, stacked as in the official checkpoints."""

    def __init__(self, experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Map x (N, D), chosen and weights (N, k) to (N, D)."""
        return self.all_experts(x, chosen, weights) if x.is_cuda else self.by_expert(x, chosen, weights)

    def by_expert(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Compute each token with its own experts: tokens are sorted by expert, and each expert has one matmul."""
        order = chosen.flatten().argsort(stable=True)
        rows = order // chosen.shape[1]
        counts = torch.bincount(chosen.flatten(), minlength=self.down_proj.shape[0]).tolist()
        outs = []
        for expert, part in enumerate(x[rows].split(counts)):
            gate, up = F.linear(part, self.gate_up_proj[expert]).chunk(2, dim=-1)
            outs.append(F.linear(F.silu(gate) * up, self.down_proj[expert]))
        weighted = torch.cat(outs).float() * weights.flatten()[order, None]
        return torch.zeros_like(weighted[: len(x)]).index_add(0, rows, weighted)

    def all_experts(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Compute each token with every expert, and weigh the outputs of those not chosen with 0.

        On a GPU two large matmuls take less time than many small ones, and the host need not wait for the counts.
        """
        experts, hidden, width = self.down_proj.shape
        gate, up = F.linear(x, self.gate_up_proj.flatten(0, 1)).view(-1, experts, 2, width).unbind(2)
        shares = torch.zeros(len(x), experts, device=x.device).scatter(1, chosen, weights)
        weighted = F.silu(gate) * up * shares[..., None].to(up.dtype)
        return F.linear(weighted.flatten(1), self.down_proj.transpose(0, 1).reshape(hidden, -1)).float()


class SparseMoE(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, self.top_k = config["hidden_size"], config["num_experts_per_tok"]
        self.gate = nn.Linear(hidden, config["num_experts"], bias=False)
        self.experts = Experts(config["num_experts"], hidden, config["moe_intermediate_size"])
        self.shared_expert = GatedMLP(hidden, config["shared_expert_intermediate_size"])
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, T, D) to the same shape and the load-balance loss: 1 if even, E if one expert gets all tokens."""
        flat = x.flatten(0, 1)
        probabilities = self.gate(flat).float().softmax(-1)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        out = self.experts(flat, chosen, weights / weights.sum(-1, keepdim=True))
        out = out + self.shared_expert(flat) * self.shared_expert_gate(flat).sigmoid()
        experts = probabilities.shape[-1]
        share = F.one_hot(chosen.flatten(), experts).float().mean(0)
        balance = experts * (share * probabilities.mean(0)).sum()
        return out.view_as(x), balance


class DecoderLayer(nn.Module):
    def __init__(self, config: dict, layer_type: str) -> None:
        super().__init__()
        if layer_type == "full_attention":
            self.self_attn = Attention(config)
        else:
            self.linear_attn = GatedDeltaNet(config)
        self.mlp = SparseMoE(config)
        self.input_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, object]:
        """Map (B, T, D) to the same shape, the balance loss, and keys and values (None in a delta-rule layer)."""
        normed, cache = self.input_layernorm(x), None
        if hasattr(self, "self_attn"):
            mixed, cache = self.self_attn(normed, past, positions)
        else:
            mixed = self.linear_attn(normed)
        x = x + mixed
        out, balance = self.mlp(self.post_attention_layernorm(x))
        return x + out, balance, cache
