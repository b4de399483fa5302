"""What one device holds: weights, working space, and in what is left, the cache. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.capacity.devices import Device
from penstock.sizes.cache import CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS, Cache, plan_cache
from penstock.sizes.shape import Shape
from penstock.sizes.weights import Layout, weight_bytes


@dataclass(frozen=True, slots=True)
class Setup:
    """What is served on what, and how: the answer of the service's own planning, or given.

    `drafted` is the draft length, 0 where MTP is off. `fixed_bytes` per device are for what is no tensor of the model.
    `cache_bytes` is given where the cache's size is configured rather than what is left (a CPU).
    """

    model: str
    shape: Shape
    device: Device
    count: int
    layout: Layout
    fp8_weights: bool
    kv_fp8: bool
    drafted: int
    prefix_caching: bool
    window_tokens: int
    max_sequences: int
    batch_tokens: int
    utilization: float
    fixed_bytes: int
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device."""

    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    fixed_bytes: int
    cache_bytes: int
    cache: Cache

    @property
    def fits(self) -> bool:
        """Weights and working space, and one block of cache."""
        return self.cache_bytes >= self.cache.block_bytes

    def sequences(self, tokens: int, replicas: int) -> float:
        """That fit at once over all replicas, each of so many tokens."""
        return replicas * self.cache.sequences(self.cache_bytes, tokens)


def plan_memory(setup: Setup) -> Memory:
    cpu = setup.device.kind == "cpu"
    cache = plan_cache(
        setup.shape,
        setup.layout,
        kv_fp8=setup.kv_fp8,
        drafted=setup.drafted,
        prefix_caching=setup.prefix_caching,
        least_block_tokens=CPU_BLOCK_TOKENS if cpu else GPU_BLOCK_TOKENS,
    )
    usable = int(setup.device.memory_bytes * setup.utilization)
    weights = weight_bytes(setup.shape, setup.fp8_weights, draft=setup.drafted > 0, layout=setup.layout)
    activations = activation_bytes(setup)
    left = usable - weights - activations - setup.fixed_bytes
    return Memory(
        usable_bytes=usable,
        weight_bytes=weights,
        activation_bytes=activations,
        fixed_bytes=setup.fixed_bytes,
        cache_bytes=left if setup.cache_bytes is None else setup.cache_bytes,
        cache=cache,
    )


def activation_bytes(setup: Setup) -> int:
    """The largest step: its tokens' inputs and inner rows in the experts, eight more rows of the hidden width, and
    logits twice in float32."""
    shape, layout = setup.shape, setup.layout
    whole_experts = layout.experts or layout.tensor == 1
    inner = shape.expert_inner if whole_experts else -(-shape.expert_inner // layout.tensor)
    rows = shape.experts_per_token * (shape.hidden + 2 * inner) or 2 * -(-shape.inner // layout.tensor)
    step = setup.batch_tokens * 2 * (rows + 8 * shape.hidden)
    logits = setup.max_sequences * (1 + setup.drafted) * shape.vocab * 4 * 2
    return step + logits
