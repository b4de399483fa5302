"""Compute the memory of one device: weights, working memory, and the cache in the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from penstock.engine.sizing.cache import CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS, Cache, CacheSettings, plan_cache
from penstock.engine.sizing.shape import Shape
from penstock.engine.sizing.vision import VisionShape, encoded_bytes, encoding_bytes, vision_weight_bytes
from penstock.engine.sizing.weights import ParallelLayout, weight_bytes
from penstock.errors import ConfigError
from penstock_bench.capacity.devices import DeviceSpec


@dataclass(frozen=True, slots=True)
class Setup:
    """A model on its devices, as the service would plan it or as given.

    `drafted` is the draft length, 0 if MTP is off. `fixed_bytes` is the memory per device for everything that is no
    tensor of the model. `cache_bytes` is set if the size of the cache is configured (on a CPU), not what is left.
    `tower` is the vision tower, None where images are off; an image has at most `image_pixels`.
    """

    model: str
    shape: Shape
    device: DeviceSpec
    count: int
    layout: ParallelLayout
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
    nvfp4_weights: bool = False
    tower: VisionShape | None = None
    image_pixels: int = 0
    async_scheduling: bool = True

    @property
    def largest_image_tokens(self) -> int:
        """Return the tokens of the largest image; 0 where images are off."""
        return self.tower.tokens(self.image_pixels, self.image_pixels) if self.tower else 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device."""

    usable_bytes: int
    weight_bytes: int
    tower_bytes: int
    activation_bytes: int
    fixed_bytes: int
    cache_bytes: int
    cache: Cache

    @property
    def needed_bytes(self) -> int:
        """Return the bytes of all but the cache."""
        return self.weight_bytes + self.tower_bytes + self.activation_bytes + self.fixed_bytes

    @property
    def fits(self) -> bool:
        """Return whether weights, working memory and one block of cache fit."""
        return self.cache_bytes >= self.cache.block_bytes

    def sequences(self, tokens: int, replicas: int) -> float:
        """Return the number of sequences of `tokens` tokens that fit at once over all replicas."""
        return replicas * self.cache.sequences(self.cache_bytes, tokens)


def plan_memory(setup: Setup) -> Memory:
    """Return the parts of one device's memory. Raises ConfigError for a layout that is not possible."""
    cpu = setup.device.kind == "cpu"
    cache = plan_cache(
        setup.shape,
        setup.layout,
        CacheSettings(
            kv_fp8=setup.kv_fp8,
            drafted=setup.drafted,
            prefix_caching=setup.prefix_caching,
            min_block_tokens=CPU_BLOCK_TOKENS if cpu else GPU_BLOCK_TOKENS,
        ),
    )
    usable = int(setup.device.memory_bytes * setup.utilization)
    weights = weight_bytes(
        setup.shape, setup.fp8_weights, draft=setup.drafted > 0, layout=setup.layout, nvfp4=setup.nvfp4_weights
    )
    memory = Memory(
        usable_bytes=usable,
        weight_bytes=weights,
        tower_bytes=vision_weight_bytes(setup.tower, setup.layout.tensor) if setup.tower else 0,
        activation_bytes=activation_bytes(setup),
        fixed_bytes=setup.fixed_bytes,
        cache_bytes=setup.cache_bytes or 0,
        cache=cache,
    )
    return memory if setup.cache_bytes is not None else replace(memory, cache_bytes=usable - memory.needed_bytes)


MAX_DEVICES = 1024


def devices_needed(setup: Setup) -> tuple[int, ParallelLayout] | None:
    """Return the smallest number of devices, a power of two, that hold the model and one window per replica.

    Also returns their layout: the one with the most contexts of the whole window. None if `MAX_DEVICES` are not enough.
    """
    count = 1
    while count <= MAX_DEVICES:
        found = [
            (contexts, layout)
            for layout in layouts_of(setup, count, setup.device.kind == "gpu")
            if (contexts := _windows(setup, layout)) >= 1
        ]
        if found:
            return count, max(found, key=lambda one: one[0])[1]
        count *= 2
    return None


def layouts_of(setup: Setup, count: int, spreads_experts: bool) -> Iterator[ParallelLayout]:
    """Return the layouts of `count` devices.

    A replica has a power of two of them, which divides their number and the heads.

    With `spreads_experts` the experts are on all devices, if their number allows it.
    """
    experts = setup.shape.experts
    whole = spreads_experts and bool(experts) and count > 1 and experts % count == 0
    for power in range(count.bit_length()):
        if count % 2**power == 0 and setup.shape.heads % 2**power == 0:
            yield ParallelLayout(2**power, count // 2**power, whole)


def _windows(setup: Setup, layout: ParallelLayout) -> float:
    """Return the contexts of the whole window that all replicas hold; 0 if the layout is not possible."""
    try:
        memory = plan_memory(replace(setup, layout=layout, count=layout.ranks))
    except ConfigError:
        return 0.0
    found = memory.sequences(setup.window_tokens, layout.data) if memory.fits else 0.0
    return found if found >= layout.data else 0.0


def activation_bytes(setup: Setup) -> int:
    """Return the bytes of the largest step.

    These are its tokens' inputs and inner rows in the experts, eight more rows of the hidden width, and the logits
    twice in float32. With images, the encoded images of a step come on top; where it is larger, it is the tower's step,
    which vLLM runs before.
    """
    shape, layout = setup.shape, setup.layout
    whole_experts = layout.experts or layout.tensor == 1
    inner = shape.expert_inner if whole_experts else -(-shape.expert_inner // layout.tensor)
    rows = shape.experts_per_token * (shape.hidden + 2 * inner) or 2 * -(-shape.inner // layout.tensor)
    step = setup.batch_tokens * 2 * (rows + 8 * shape.hidden)
    logits = setup.max_sequences * (1 + setup.drafted) * shape.vocab * 4 * 2
    if setup.tower is None:
        return step + logits
    images = (setup.tower, setup.largest_image_tokens, setup.batch_tokens)
    return max(step + logits + encoded_bytes(*images), encoding_bytes(*images, layout.tensor))
