"""Which experts the tokens went to, from vLLM's own routers.

On a CPU the workers count (`RouterTally`): every token that is computed, drafts that are rejected later included, since
the experts work on them all the same; not what comes from the prefix cache, not padding, not the draft layer's own
experts. On a GPU, where steps are replayed as CUDA graphs and no Python runs in them, vLLM returns the experts of each
run that ends by itself (`OutputTally`): of accepted tokens alone. No GPU has run that path here.
"""

from __future__ import annotations

from array import array
from functools import partial
from typing import Any

import numpy as np
import torch
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter

from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.engine.vllm.parallel import ExpertLayout

_FLUSH_STEPS, _FLUSH_TOKENS = 64, 8192
_CHUNK_TOKENS = 4096
Rows = list[list[int]]
"""Per layer: its index in the model, then the tokens of each expert."""


class RouterTally:
    """In a worker: hangs on the routers, and counts in bulk, because counting each small step would cost 2 % of it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._routers: dict[int, Any] = {}
        for module in model.modules():
            router = getattr(module, "router", None)
            # A monolithic kernel chooses the experts itself and never asks its router.
            if isinstance(router, FusedMoERouter) and not getattr(module, "is_monolithic", False):
                self._routers[int(module.layer_id)] = router
        self._first = next(iter(self._routers), -1)
        self._counts = {
            layer: torch.zeros(router.global_num_experts, dtype=torch.int64) for layer, router in self._routers.items()
        }
        self._seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in self._routers}
        self._unflushed_tokens = 0
        self._padding: torch.Tensor | None = None

    def start(self) -> int:
        """From now on; the number of layers that will be counted."""
        for layer, router in self._routers.items():
            router.set_capture_fn(partial(self._saw, layer))
        return len(self._routers)

    def stop(self) -> None:
        """Nothing is left on the routers; what was counted stays."""
        for router in self._routers.values():
            router.set_capture_fn(None)

    def rows(self) -> Rows:
        self._flush()
        return [[layer, *counts.tolist()] for layer, counts in self._counts.items()]

    def _saw(self, layer: int, expert_ids: torch.Tensor) -> None:
        """`expert_ids`: (tokens, experts per token), of one step. A router makes a new tensor every time."""
        if layer == self._first:
            self._begin_step(len(expert_ids), len(self._seen[layer]))
        if self._padding is not None:
            expert_ids = expert_ids[~self._padding[: len(expert_ids)]]
        self._seen[layer].append(expert_ids)

    def _begin_step(self, tokens: int, unflushed_steps: int) -> None:
        """Padding is at a step's end, and all of a dummy step; a look at the last token tells whether there is any."""
        if self._unflushed_tokens > _FLUSH_TOKENS or unflushed_steps >= _FLUSH_STEPS:
            self._flush()
        self._unflushed_tokens += tokens
        mask = get_forward_context().is_padding if is_forward_context_available() else None
        self._padding = mask.clone() if mask is not None and len(mask) and bool(mask[-1]) else None

    def _flush(self) -> None:
        for layer, seen in self._seen.items():
            if seen:
                counts = self._counts[layer]
                counts += torch.cat(seen).flatten().bincount(minlength=len(counts))
                seen.clear()
        self._unflushed_tokens = 0


def merged(layout: ExpertLayout, workers: list[Rows]) -> ExpertCounts:
    """Return the counts of all workers, each with the layers that it counted."""
    layers = {row[0]: array("q", row[1:]) for rows in workers for row in rows}
    return ExpertCounts(layout.experts_per_token, layout.ranks, layers)


class OutputTally:
    """In the service: counts the experts that vLLM returns with what is finished."""

    def __init__(self, layout: ExpertLayout) -> None:
        self._layout = layout
        self._counts = np.zeros((layout.layers, layout.experts), dtype=np.int64)

    def finished(self, routed: np.ndarray, cached_tokens: int) -> None:
        """`routed`: (tokens, layers, experts per token), prompt and output; what was cached was counted before."""
        layers, experts = self._counts.shape
        offsets = (np.arange(layers, dtype=np.int64) * experts)[None, :, None]
        for start in range(cached_tokens, len(routed), _CHUNK_TOKENS):
            flat = (routed[start : start + _CHUNK_TOKENS].astype(np.int64) + offsets).ravel()
            self._counts += np.bincount(flat, minlength=layers * experts).reshape(layers, experts)

    def counts(self) -> ExpertCounts:
        layers = {layer: array("q", row.tobytes()) for layer, row in enumerate(self._counts)}
        return ExpertCounts(self._layout.experts_per_token, self._layout.ranks, layers)
