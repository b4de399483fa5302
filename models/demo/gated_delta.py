"""Compute the gated delta rule over a short sequence in one chunk: a few batched matmuls and one triangular solve."""

import torch
from torch import Tensor


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """Return the outputs (B, H, T, K) of the delta-rule recurrence from an empty state.

    q, k, v: (B, H, T, K); log_decay <= 0 and beta in (0, 1): (B, H, T). Cost grows with T squared: meant for T up to a
    few hundred. The recurrence is S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t') + beta_t v_t k_t', o_t = S_t q_t.
    """
    # In float32 also under autocast: errors of the solve would accumulate.
    with torch.autocast(q.device.type, enabled=False):
        return _one_chunk(*(part.float() for part in (q, k, v, log_decay, beta)))


def _one_chunk(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    q = _unit(q) * q.shape[-1] ** -0.5
    k = _unit(k)
    total = log_decay.cumsum(-1)
    length = q.shape[-2]
    # Decay from token j to token i; masked before exp, because above the diagonal it would overflow.
    above = torch.ones(length, length, dtype=torch.bool).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(above, float("-inf")).exp()
    # The part of token j under the key of token i is subtracted from its value: (I + A) u = beta v.
    system = (k * beta[..., None]) @ k.transpose(-1, -2) * decay
    values = torch.linalg.solve_triangular(system, v * beta[..., None], upper=False, unitriangular=True)
    return (q @ k.transpose(-1, -2) * decay) @ values
