"""Count the tokens of each expert, with vLLM's own routers.

On a CPU the workers count (`RouterTally`). They count every computed token, with drafts that are rejected later, since
the experts compute them too. They do not count tokens from the prefix cache, padding, or the draft layer's own experts.
On a GPU, where steps are replayed as CUDA graphs without Python, vLLM returns the experts of each run that ends by
itself (`OutputTally`): of accepted tokens only. That path has not run on a GPU here.
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
    """Counts in a worker, from its routers. It counts in bulk: to count each small step would cost 2 % of it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._routers: dict[int, Any] = {}
        for module in model.modules():
            router = getattr(module, "router", None)
            # A monolithic kernel selects the experts itself and does not call its router.
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
        """Count from now on. Return the number of counted layers."""
        for layer, router in self._routers.items():
            router.set_capture_fn(partial(self._saw, layer))
        return len(self._routers)

    def stop(self) -> None:
        """Detach from the routers; the counts stay."""
        for router in self._routers.values():
            router.set_capture_fn(None)

    def rows(self) -> Rows:
        """Return the counts so far."""
        self._flush()
        return [[layer, *counts.tolist()] for layer, counts in self._counts.items()]

    def _saw(self, layer: int, expert_ids: torch.Tensor) -> None:
        """Keep one step's `expert_ids` of shape (tokens, experts per token). A router makes a new tensor every time."""
        if layer == self._first:
            self._begin_step(len(expert_ids), len(self._seen[layer]))
        if self._padding is not None:
            expert_ids = expert_ids[~self._padding[: len(expert_ids)]]
        self._seen[layer].append(expert_ids)

    def _begin_step(self, tokens: int, unflushed_steps: int) -> None:
        """Find the step's padding, which is at its end or all of a dummy step. The last token shows if there is any."""
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
    """Return the counts of all workers, each of which counted its own layers."""
    layers = {row[0]: array("q", row[1:]) for rows in workers for row in rows}
    return ExpertCounts(layout.experts_per_token, layout.ranks, layers)


class OutputTally:
    """Counts in the service, from the experts that vLLM returns with finished runs."""

    def __init__(self, layout: ExpertLayout) -> None:
        self._layout = layout
        self._counts = np.zeros((layout.layers, layout.experts), dtype=np.int64)

    def finished(self, routed: np.ndarray, cached_tokens: int) -> None:
        """Count a finished run without its cached tokens, which were counted before.

        `routed` has shape (tokens, layers, experts per token), for prompt and output.
        """
        layers, experts = self._counts.shape
        offsets = (np.arange(layers, dtype=np.int64) * experts)[None, :, None]
        for start in range(cached_tokens, len(routed), _CHUNK_TOKENS):
            flat = (routed[start : start + _CHUNK_TOKENS].astype(np.int64) + offsets).ravel()
            self._counts += np.bincount(flat, minlength=layers * experts).reshape(layers, experts)

    def counts(self) -> ExpertCounts:
        """Return the counts so far."""
        layers = {layer: array("q", row.tobytes()) for layer, row in enumerate(self._counts)}
        return ExpertCounts(self._layout.experts_per_token, self._layout.ranks, layers)
