"""How a model is spread over devices: tensor, data and expert parallel, and EPLB. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.config.schema import EngineSettings, Switch
from penstock.engine.sizing import weights as sizes
from penstock.engine.sizing.cache import plan_cache
from penstock.engine.sizing.shape import read_shape
from penstock.engine.vllm.checkpoint import ModelCheckpoint
from penstock.engine.vllm.switches import impossible, switch
from penstock.errors import ConfigError
from penstock.types import Feature

_WEIGHTS_SHARE = 0.75
"""Of the memory vLLM may use: the rest is KV cache, states and activations."""

_NEARLY = 0.9
"""Of the most contexts: a width that holds so many is as good."""

_ELSEWHERE = frozenset({"distributed_executor_backend", "nnodes", "data_parallel_size", "data_parallel_size_local"})


@dataclass(frozen=True, slots=True)
class Parallel:
    tensor: int
    stages: int
    data: int
    experts: bool
    eplb: bool
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class _Room:
    """GPUs of each node, the memory of each (None: not known), the share of it that weights may take, and the nodes."""

    each: int
    bytes_each: int | None
    share: float
    nodes: int

    @property
    def total(self) -> int:
        return self.each * self.nodes

    def holds(self, size: int, gpus: int) -> bool:
        return gpus * (self.bytes_each or 0) * self.share >= size


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """The experts as served: `ranks` hold them by whole experts, 1 where each device has a part of every expert."""

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
    """As few devices per replica as hold the weights, the rest as replicas; with experts spread over one node's GPUs,
    the width that holds most contexts. `count` and `bytes_each` are this node's devices, and each node has as many.
    Raises `ConfigError`."""
    room = _Room(count, bytes_each, settings.gpu_memory_utilization * _WEIGHTS_SHARE, settings.nodes)
    tensor, stages, why = _layout(settings, checkpoint, device, room)
    # Machines that `extra_args` names are vLLM's own business; then its counts hold, not the GPUs seen here.
    elsewhere = not _ELSEWHERE.isdisjoint(settings.extra_args)
    data, why_data = settings.data_parallel_size, "asked for"
    if data is None:
        data = 1 if device == "cpu" or elsewhere else max(1, room.total // (tensor * stages))
        why_data = "one engine" if data == 1 else f"{room.total} GPUs hold the model {data} times"
    if device == "cpu" and data > 1:
        raise ConfigError("engine.data_parallel_size: vLLM's CPU build runs one replica; start more services instead")
    if not elsewhere:
        _check_ranks(device, tensor, data, stages, room)
    if checkpoint.heads and checkpoint.heads % tensor:
        raise ConfigError(f"engine.tensor_parallel_size: {tensor} does not divide {checkpoint.heads} attention heads")
    experts = _experts(settings, checkpoint, device, tensor * data)
    eplb = _eplb(settings, experts)
    over = f" over {room.nodes} nodes" if room.nodes > 1 else ""
    staged = (Feature("pipeline_parallel", True, str(stages), why),) if stages > 1 else ()
    features = (
        Feature("tensor_parallel", tensor > 1, str(tensor), why),
        *staged,
        Feature("data_parallel", data > 1, str(data), why_data + over),
        experts,
        eplb,
    )
    return Parallel(tensor, stages, data, experts.enabled, eplb.enabled, features)


def _layout(settings: EngineSettings, checkpoint: ModelCheckpoint, device: str, room: _Room) -> tuple[int, int, str]:
    """(tensor, stages, why). A replica stays within a node where it fits: tensor parallel ranks talk in every layer."""
    tensor = settings.tensor_parallel_size
    stages = int(str(settings.extra_args.get("pipeline_parallel_size", 0))) or settings.pipeline_parallel_size
    if device == "cpu":
        why = "asked for" if tensor else "one process per node" if room.nodes > 1 else "one process unless asked for"
        return tensor or (room.nodes if stages is None else 1), stages or 1, why
    if tensor is not None:
        return tensor, stages or 1, "asked for"
    if stages is None and (spread := _most_contexts(settings, checkpoint, room)):
        return spread
    return _fit(settings, checkpoint, room, stages)


def _most_contexts(settings: EngineSettings, checkpoint: ModelCheckpoint, room: _Room) -> tuple[int, int, str] | None:
    """The width with which the node's GPUs hold most contexts of the whole window, its experts spread over all.

    More devices per replica than key-value heads keep each head several times; more replicas keep more copies of all
    but the experts. None where that is not the question: a dense model, several nodes, sizes not known, or replicas
    asked for.
    """
    ranks, experts = room.each, checkpoint.experts
    told = (
        settings.data_parallel_size
        or settings.expert_parallel == "off"
        or not _ELSEWHERE.isdisjoint(settings.extra_args)
    )
    if told or not experts or room.nodes > 1 or not room.bytes_each or ranks == 1 or experts % ranks:
        return None
    try:
        shape = read_shape(checkpoint.text)
    except ConfigError:
        return None
    window = settings.max_context_tokens or checkpoint.native_context_tokens
    fp8 = checkpoint.quantization == "fp8" or (checkpoint.quantization is None and settings.fp8_weights != "off")
    drafted = settings.mtp_draft_tokens if settings.mtp != "off" and checkpoint.mtp_layers else 0
    found: list[tuple[float, int]] = []
    for tensor in (2**power for power in range(ranks.bit_length())):
        if ranks % tensor or (checkpoint.heads and checkpoint.heads % tensor):
            continue
        layout = sizes.ParallelLayout(tensor, ranks // tensor, experts=True)
        weights = sizes.weight_bytes(shape, fp8, draft=drafted > 0, layout=layout)
        if not room.holds(weights, 1):
            continue
        try:
            cache = plan_cache(shape, layout, kv_fp8=settings.fp8_kv_cache != "off", drafted=drafted)
        except ConfigError:
            continue
        free = int(room.bytes_each * settings.gpu_memory_utilization) - weights
        found.append((layout.data * cache.sequences(free, window), tensor))
    if not found:
        return None
    # Fewer devices per replica exchange less: a wider one has to hold noticeably more.
    most = max(contexts for contexts, _ in found)
    contexts, tensor = next(one for one in found if one[0] >= most * _NEARLY)
    return (
        tensor,
        1,
        f"{tensor} of {ranks} GPUs per replica: about the most contexts, {contexts:.0f} of {window:,} tokens",
    )


def _check_ranks(device: str, tensor: int, data: int, stages: int, room: _Room) -> None:
    ranks, said = tensor * data * stages, f"{tensor} (tensor) x {data} (data) x {stages} (pipeline) parallel"
    if device == "gpu" and room.nodes == 1 and ranks > room.each:
        raise ConfigError(f"{said} is more than {room.each} GPUs")
    if device == "gpu" and room.nodes > 1 and ranks != room.total:
        raise ConfigError(f"{said} is not {room.each} GPUs on each of {room.nodes} nodes (engine.nodes)")
    if ranks % room.nodes:
        raise ConfigError(f"engine.nodes: {said} cannot be shared out evenly among {room.nodes} nodes")


def _fit(
    settings: EngineSettings, checkpoint: ModelCheckpoint, room: _Room, stages: int | None
) -> tuple[int, int, str]:
    """The smallest power of two of GPUs whose memory holds the weights; beyond a node, stages on so many nodes."""
    size = checkpoint.weight_bytes(fp8=settings.fp8_weights != "off")
    if not room.bytes_each or not size:
        return room.each, stages or room.nodes, "one GPU" if room.total == 1 else "all GPUs: sizes are not known"
    said = f"{size / 1e9:.0f} GB of weights, {room.bytes_each / 1e9:.0f} GB per GPU"
    tensor = 1
    while not room.holds(size, tensor * (stages or 1)):
        tensor *= 2
    if tensor <= room.each:
        return tensor, stages or 1, said
    for nodes in range(2, room.nodes + 1):
        if stages is None and room.nodes % nodes == 0 and room.holds(size, room.each * nodes):
            return room.each, nodes, said
    raise ConfigError(
        f"{checkpoint.model} does not fit: {said}, so {tensor} GPUs are needed and there are {room.total}"
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
