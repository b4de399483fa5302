"""Decide how a model is distributed over devices: tensor, data and expert parallelism, and EPLB. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.config.schema import EngineSettings, Switch
from penstock.engine.sizing import weights as sizes
from penstock.engine.sizing.cache import CacheSettings, plan_cache
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import vision_weight_bytes
from penstock.engine.vllm.checkpoint import ModelCheckpoint
from penstock.engine.vllm.switches import impossible, switch
from penstock.errors import ConfigError
from penstock.types import Feature

_WEIGHTS_SHARE = 0.75
"""Share of the memory that vLLM may use; the rest is for KV cache, states and activations."""

_NEARLY = 0.9
"""A tensor-parallel size with this share of the most contexts counts as equal to the best."""

_ELSEWHERE = frozenset({"distributed_executor_backend", "nnodes", "data_parallel_size", "data_parallel_size_local"})


@dataclass(frozen=True, slots=True)
class Parallel:
    """The sizes of the parallel dimensions, and the features of the profile that say why."""

    tensor: int
    stages: int
    data: int
    experts: bool
    eplb: bool
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class _GpuPool:
    """The GPUs of all nodes.

    `each` is the GPUs per node, `bytes_each` the memory of each (None: not known), `share` the share of it for weights.
    """

    each: int
    bytes_each: int | None
    share: float
    nodes: int

    @property
    def total(self) -> int:
        """Return the number of GPUs of all nodes."""
        return self.each * self.nodes

    def holds(self, size: int, gpus: int) -> bool:
        """Return whether the weights of `size` bytes fit on so many GPUs."""
        return gpus * (self.bytes_each or 0) * self.share >= size


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """The experts as served. `ranks` hold whole experts; it is 1 where each device has a part of every expert."""

    layers: int
    experts: int
    experts_per_token: int
    ranks: int


def plan_parallel(
    settings: EngineSettings,
    checkpoint: ModelCheckpoint,
    device: Literal["cpu", "gpu"],
    count: int = 1,
    bytes_each: int | None = None,
) -> Parallel:
    """Return as few devices per replica as hold the weights, and the rest as replicas.

    With experts distributed over one node's GPUs, return the tensor-parallel size with most contexts. `count` and
    `bytes_each` are this node's devices; each node has as many. Raise `ConfigError`.
    """
    pool = _GpuPool(count, bytes_each, settings.gpu_memory_utilization * _WEIGHTS_SHARE, settings.nodes)
    tensor, stages, why = _layout(settings, checkpoint, device, pool)
    # vLLM manages machines that `extra_args` names; then its own numbers apply, not the GPUs found here.
    elsewhere = not _ELSEWHERE.isdisjoint(settings.extra_args)
    data, why_data = settings.data_parallel_size, "asked for"
    if data is None:
        data = 1 if device == "cpu" or elsewhere else max(1, pool.total // (tensor * stages))
        why_data = "one engine" if data == 1 else f"{pool.total} GPUs hold the model {data} times"
    if device == "cpu" and data > 1:
        raise ConfigError(f"engine.data_parallel_size must be 1 on a CPU, got {data}; start more services instead")
    if not elsewhere:
        _check_ranks(device, tensor, data, stages, pool)
    if checkpoint.heads and checkpoint.heads % tensor:
        raise ConfigError(f"engine.tensor_parallel_size: {tensor} does not divide {checkpoint.heads} attention heads")
    experts = _experts(settings, checkpoint, device, tensor * data)
    eplb = _eplb(settings, experts)
    over = f" over {pool.nodes} nodes" if pool.nodes > 1 else ""
    staged = (Feature("pipeline_parallel", True, str(stages), why),) if stages > 1 else ()
    features = (
        Feature("tensor_parallel", tensor > 1, str(tensor), why),
        *staged,
        Feature("data_parallel", data > 1, str(data), why_data + over),
        experts,
        eplb,
    )
    return Parallel(tensor, stages, data, experts.enabled, eplb.enabled, features)


def _layout(settings: EngineSettings, checkpoint: ModelCheckpoint, device: str, pool: _GpuPool) -> tuple[int, int, str]:
    """Return (tensor, stages, why). A replica stays within a node if it fits: tensor parallelism needs fast links."""
    tensor = settings.tensor_parallel_size
    stages = int(str(settings.extra_args.get("pipeline_parallel_size", 0))) or settings.pipeline_parallel_size
    if device == "cpu":
        why = "asked for" if tensor else "one process per node" if pool.nodes > 1 else "one process unless asked for"
        return tensor or (pool.nodes if stages is None else 1), stages or 1, why
    if tensor is not None:
        return tensor, stages or 1, "asked for"
    if stages is None and (spread := _most_contexts(settings, checkpoint, pool)):
        return spread
    return _fit(settings, checkpoint, pool, stages)


def _most_contexts(
    settings: EngineSettings, checkpoint: ModelCheckpoint, pool: _GpuPool
) -> tuple[int, int, str] | None:
    """Return the tensor-parallel size with which one node's GPUs hold most contexts of the whole window.

    The experts are distributed over all GPUs. With more devices per replica than key-value heads, each head is kept
    several times; with more replicas, everything but the experts is. Return None where this does not apply: a dense
    model, several nodes, unknown sizes, or replicas that were asked for.
    """
    ranks, experts = pool.each, checkpoint.experts
    told = (
        settings.data_parallel_size
        or settings.expert_parallel == "off"
        or not _ELSEWHERE.isdisjoint(settings.extra_args)
    )
    if told or not experts or pool.nodes > 1 or not pool.bytes_each or ranks == 1 or experts % ranks:
        return None
    try:
        shape = read_shape(checkpoint.text)
    except ConfigError:
        return None
    window = settings.max_context_tokens or checkpoint.native_context_tokens
    fp8 = checkpoint.quantization == "fp8" or (checkpoint.quantization is None and settings.fp8_weights != "off")
    drafted = settings.mtp_draft_tokens if settings.mtp != "off" and checkpoint.mtp_layers else 0
    tower = checkpoint.tower(settings.images)
    found: list[tuple[float, int]] = []
    for tensor in (2**power for power in range(ranks.bit_length())):
        if ranks % tensor or (checkpoint.heads and checkpoint.heads % tensor):
            continue
        layout = sizes.ParallelLayout(tensor, ranks // tensor, experts=True)
        weights = sizes.weight_bytes(shape, fp8, draft=drafted > 0, layout=layout)
        try:
            weights += vision_weight_bytes(tower, tensor) if tower else 0
            if not pool.holds(weights, 1):
                continue
            cached = CacheSettings(kv_fp8=settings.fp8_kv_cache != "off", drafted=drafted)
            cache = plan_cache(shape, layout, cached)
        except ConfigError:
            continue
        free = int(pool.bytes_each * settings.gpu_memory_utilization) - weights
        found.append((layout.data * cache.sequences(free, window), tensor))
    if not found:
        return None
    # Fewer devices per replica exchange less data: a larger size must hold noticeably more contexts.
    most = max(contexts for contexts, _ in found)
    contexts, tensor = next(one for one in found if one[0] >= most * _NEARLY)
    return (
        tensor,
        1,
        f"{tensor} of {ranks} GPUs per replica: about the most contexts, {contexts:.0f} of {window:,} tokens",
    )


def _check_ranks(device: str, tensor: int, data: int, stages: int, pool: _GpuPool) -> None:
    ranks, said = tensor * data * stages, f"{tensor} (tensor) x {data} (data) x {stages} (pipeline) parallel"
    if device == "gpu" and pool.nodes == 1 and ranks > pool.each:
        raise ConfigError(f"{said} needs {ranks} GPUs, and there are {pool.each}")
    if device == "gpu" and pool.nodes > 1 and ranks != pool.total:
        raise ConfigError(
            f"{said} needs {ranks} GPUs, and {pool.nodes} nodes (engine.nodes) with {pool.each} each have {pool.total}"
        )
    if ranks % pool.nodes:
        raise ConfigError(f"engine.nodes: {said} cannot be divided evenly among {pool.nodes} nodes")


def _fit(
    settings: EngineSettings, checkpoint: ModelCheckpoint, pool: _GpuPool, stages: int | None
) -> tuple[int, int, str]:
    """Return the smallest power of two of GPUs that holds the weights; stages on several nodes if one is too small."""
    size = checkpoint.weight_bytes(fp8=settings.fp8_weights != "off")
    if not pool.bytes_each or not size:
        return pool.each, stages or pool.nodes, "one GPU" if pool.total == 1 else "all GPUs: sizes are not known"
    tower = checkpoint.tower(settings.images)
    size += vision_weight_bytes(tower) if tower else 0
    said = f"{size / 1e9:.0f} GB of weights, {pool.bytes_each / 1e9:.0f} GB per GPU"
    tensor = 1
    while not pool.holds(size, tensor * (stages or 1)):
        tensor *= 2
    if tensor <= pool.each:
        return tensor, stages or 1, said
    for nodes in range(2, pool.nodes + 1):
        if stages is None and pool.nodes % nodes == 0 and pool.holds(size, pool.each * nodes):
            return pool.each, nodes, said
    raise ConfigError(
        f"{checkpoint.model} does not fit: {said}, so {tensor} GPUs are needed and there are {pool.total}"
    )


def _experts(settings: EngineSettings, checkpoint: ModelCheckpoint, device: str, ranks: int) -> Feature:
    why_not = None
    if not checkpoint.experts:
        why_not = "the model has no experts"
    elif device == "cpu":
        why_not = "vLLM's CPU build crashes at the first step with it"
    elif ranks == 1:
        why_not = "there is one device"
    elif checkpoint.experts % ranks:
        why_not = f"{ranks} ranks do not divide {checkpoint.experts} experts"
    each = f"{checkpoint.experts // ranks} experts per rank" if ranks and checkpoint.experts else ""
    return _feature("expert_parallel", settings.expert_parallel, why_not, each)


def _eplb(settings: EngineSettings, experts: Feature) -> Feature:
    why_not = None if experts.enabled else "expert parallelism is off"
    return _feature("eplb", settings.eplb, why_not, "experts move between ranks with the load")


def _feature(name: str, wanted: Switch, why_not: str | None, value: str) -> Feature:
    if why_not is not None and wanted != "off":
        return impossible(name, wanted, why_not)
    return switch(name, wanted, value)
