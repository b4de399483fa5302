"""Compute the gated delta rule chunk by chunk: a few batched matmuls and one triangular solve for each."""

import torch
from torch import Tensor

CHUNK = 160
"""Most tokens of a chunk: its cost grows with the square of its length, and each chunk has a cost of its own."""

SMALLEST_LOG_DECAY = -80.0
"""Decays below exp of it count as that: 1.8e-35."""


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return the outputs (B, H, T, K) of the delta-rule recurrence from an empty state.

    q, k, v: (B, H, T, K); log_decay <= 0 and beta in (0, 1): (B, H, T). The recurrence is
    S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t') + beta_t v_t k_t', o_t = S_t q_t.
    """
    # In float32 also under autocast: errors of the solve would accumulate.
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, log_decay, beta = (part.float() for part in (q, k, v, log_decay, beta))
        q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
        # All chunks but the last are equally long, and none is short.
        pieces = max(1, -(-q.shape[-2] // chunk))
        length = -(-q.shape[-2] // pieces)
        outs, state = [], None
        for parts in zip(*(part.split(length, dim=2) for part in (q, k, v, log_decay, beta)), strict=True):
            out, state = _one_chunk(*parts, state)
            outs.append(out)
        return torch.cat(outs, dim=2)


def _one_chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a chunk's outputs, and the state after it as (B, H, K, V). `state` is the one before it, or None."""
    total = log_decay.cumsum(-1)
    # Decay from token j to token i. Above the diagonal exp would overflow; far below it, it is slow for tiny numbers.
    decay = (total[..., :, None] - total[..., None, :]).clamp(min=SMALLEST_LOG_DECAY, max=0.0).exp().tril()
    # What the keys already find in the state before the chunk is subtracted from the values.
    from_start = total.exp()[..., None]
    if state is not None:
        v = v - (k * from_start) @ state
    # The part of token j under the key of token i is subtracted from its value: (I + A) u = beta v.
    system = (k * beta[..., None]) @ k.transpose(-1, -2) * decay
    values = torch.linalg.solve_triangular(system, v * beta[..., None], upper=False, unitriangular=True)
    out = (q @ k.transpose(-1, -2) * decay) @ values
    to_end = (total[..., -1:] - total).exp()[..., None]
    after = (k * to_end).transpose(-1, -2) @ values
    if state is not None:
        out = out + (q * from_start) @ state
        after = after + state * total[..., -1, None, None].exp()
    return out, after
