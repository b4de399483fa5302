"""How many requests one replica's step takes: as many as its memory has a use for. Pure."""

from __future__ import annotations

from typing import Literal

from penstock.config.schema import EngineSettings
from penstock.engine.sizing.cache import plan_cache
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.weights import ParallelLayout, weight_bytes
from penstock.engine.vllm.checkpoint import ModelCheckpoint
from penstock.engine.vllm.parallel import Parallel
from penstock.errors import ConfigError

LEAST, MOST = 64, 1024
"""A step of fewer leaves a GPU idle; more is beyond what vLLM itself takes by default on the largest."""
TYPICAL_TOKENS = 8192
"""Prompt and output of the requests that are counted; longer ones wait in vLLM's own queue for their cache."""
# Of the memory that vLLM may use, for activations and what is no tensor of the model.
_WORKING_SHARE = 0.1


def plan_concurrency(
    settings: EngineSettings,
    checkpoint: ModelCheckpoint,
    device: Literal["cpu", "gpu"],
    bytes_each: int | None,
    parallel: Parallel,
    *,
    fp8_weights: bool,
    fp8_kv_cache: bool,
    mtp: bool,
    prefix_caching: bool,
) -> int:
    """The most requests in a step of one replica: the configured number, else by memory; `LEAST` where that is not
    known, and on a CPU, whose step gains nothing from more."""
    if settings.max_concurrent_requests is not None:
        return settings.max_concurrent_requests
    if device == "cpu" or bytes_each is None:
        return LEAST
    drafted = settings.mtp_draft_tokens if mtp else 0
    layout = ParallelLayout(parallel.tensor, parallel.data, parallel.experts)
    try:
        shape = read_shape(checkpoint.text)
        cache = plan_cache(shape, layout, kv_fp8=fp8_kv_cache, drafted=drafted, prefix_caching=prefix_caching)
    except ConfigError:
        return LEAST  # config.json does not say enough
    # Stages share layers, and with them weights and cache.
    weights = weight_bytes(shape, fp8_weights, draft=mtp, layout=layout) // parallel.stages
    free = int(bytes_each * settings.gpu_memory_utilization * (1 - _WORKING_SHARE)) - weights
    # Each request's logits, drafts included, twice in float32, beside its cache.
    each = cache.bytes_of(TYPICAL_TOKENS) // parallel.stages + (1 + drafted) * shape.vocab * 4 * 2
    fitting = free // each // 8 * 8
    return min(max(fitting, LEAST), MOST)
