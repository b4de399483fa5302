"""Decide how many requests one replica runs in a step: as many as its memory can serve. Pure."""

from __future__ import annotations

from penstock.engine.sizing.cache import CacheSettings, plan_cache
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import VisionShape, vision_weight_bytes
from penstock.engine.sizing.weights import ParallelLayout, weight_bytes
from penstock.engine.vllm.checkpoint import ModelCheckpoint
from penstock.engine.vllm.parallel import Parallel
from penstock.errors import ConfigError

MIN_REQUESTS, MAX_REQUESTS = 64, 1024
"""Fewer requests in a step leave a GPU idle; more are above vLLM's own default on the largest GPUs."""
TYPICAL_TOKENS = 8192
"""Prompt and output of a request in this calculation; longer requests wait in vLLM's own queue for their cache."""
_WORKING_SHARE = 0.1
"""Share of the memory that vLLM may use for activations and all that is not a tensor of the model."""


# Model, layout and memory, and what was decided about weights, cache and images.
def plan_concurrency(
    checkpoint: ModelCheckpoint,
    parallel: Parallel,
    usable_bytes: float | None,
    *,
    fp8_weights: bool,
    cached: CacheSettings,
    tower: VisionShape | None = None,
) -> int:
    """Return the maximum requests in a step of one replica, by the memory that is left for them.

    Args:
        checkpoint: The model.
        parallel: How it is distributed.
        usable_bytes: Memory of each GPU that vLLM may use. None gives `MIN_REQUESTS`: on a CPU, whose step gains
            nothing from more, and where the memory is not known.
        fp8_weights: Whether the weights are FP8.
        cached: How the engine keeps its cache.
        tower: The vision tower, which each device has a part of; None where images are off.
    """
    if usable_bytes is None:
        return MIN_REQUESTS
    layout = ParallelLayout(parallel.tensor, parallel.data, parallel.experts)
    try:
        shape = read_shape(checkpoint.text)
        cache = plan_cache(shape, layout, cached)
        vision = vision_weight_bytes(tower, layout.tensor) if tower else 0
    except ConfigError:
        return MIN_REQUESTS  # config.json does not have all sizes
    # Each stage has a part of the layers, and with them of weights and cache.
    weights = weight_bytes(shape, fp8_weights, draft=cached.drafted > 0, layout=layout) // parallel.stages
    free = int(usable_bytes * (1 - _WORKING_SHARE)) - weights - vision
    # Each request needs its cache and twice its logits in float32, drafts included.
    each = cache.bytes_of(TYPICAL_TOKENS) // parallel.stages + (1 + cached.drafted) * shape.vocab * 4 * 2
    fitting = free // each // 8 * 8
    return min(max(fitting, MIN_REQUESTS), MAX_REQUESTS)
