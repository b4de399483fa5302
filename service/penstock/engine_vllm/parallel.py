"""How a model is spread over devices: tensor, data and expert parallel, and EPLB. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.config import EngineSettings, Switch
from penstock.engine_vllm.checkpoint import Checkpoint
from penstock.engine_vllm.switches import impossible, switch
from penstock.errors import ConfigError
from penstock.types import Feature

_WEIGHTS_SHARE = 0.75
"""Of the memory vLLM may use: the rest is KV cache, states and activations."""

_ELSEWHERE = frozenset({"distributed_executor_backend", "nnodes", "data_parallel_size", "data_parallel_size_local"})


@dataclass(frozen=True, slots=True)
class Parallel:
    tensor: int
    data: int
    experts: bool
    eplb: bool
    features: tuple[Feature, ...]


def plan_parallel(
    settings: EngineSettings,
    checkpoint: Checkpoint,
    device: Literal["cpu", "gpu"],
    count: int = 1,
    bytes_each: int | None = None,
) -> Parallel:
    """As few devices per replica as hold the weights, the rest as replicas. Raises `ConfigError`."""
    tensor, why = settings.tensor_parallel_size, "asked for"
    if tensor is None:
        tensor, why = (
            (1, "one process unless asked for") if device == "cpu" else _fit(settings, checkpoint, count, bytes_each)
        )
    # Stages and machines beyond this one are vLLM's own arguments; then its counts hold, not the GPUs seen here.
    stages = int(str(settings.extra_args.get("pipeline_parallel_size", 1)))
    elsewhere = not _ELSEWHERE.isdisjoint(settings.extra_args)
    data, why_data = settings.data_parallel_size, "asked for"
    if data is None:
        data = 1 if device == "cpu" or elsewhere else max(1, count // (tensor * stages))
        why_data = "one engine" if data == 1 else f"{count} GPUs hold the model {data} times"
    if device == "cpu" and data > 1:
        raise ConfigError("engine.data_parallel_size: vLLM's CPU build runs one replica; start more services instead")
    if device == "gpu" and not elsewhere and tensor * data * stages > count:
        raise ConfigError(f"{tensor} (tensor) x {data} (data) x {stages} (pipeline) parallel is more than {count} GPUs")
    if checkpoint.heads and checkpoint.heads % tensor:
        raise ConfigError(f"engine.tensor_parallel_size: {tensor} does not divide {checkpoint.heads} attention heads")
    experts = _experts(settings, checkpoint, device, tensor * data)
    eplb = _eplb(settings, experts)
    features = (
        Feature("tensor_parallel", tensor > 1, str(tensor), why),
        Feature("data_parallel", data > 1, str(data), why_data),
        experts,
        eplb,
    )
    return Parallel(tensor, data, experts.enabled, eplb.enabled, features)


def _fit(settings: EngineSettings, checkpoint: Checkpoint, count: int, bytes_each: int | None) -> tuple[int, str]:
    """The smallest power of two of GPUs whose memory holds the weights."""
    size = checkpoint.weight_bytes(fp8=settings.fp8_weights != "off")
    if not bytes_each or not size:
        return 1 if count == 1 else count, "one GPU" if count == 1 else "all GPUs: sizes are not known"
    room = bytes_each * settings.gpu_memory_utilization * _WEIGHTS_SHARE
    tensor = 1
    while tensor * room < size:
        tensor *= 2
    said = f"{size / 1e9:.0f} GB of weights, {bytes_each / 1e9:.0f} GB per GPU"
    if tensor > count:
        raise ConfigError(f"{checkpoint.model} does not fit: {said}, so {tensor} GPUs are needed and there are {count}")
    return tensor, said


def _experts(settings: EngineSettings, checkpoint: Checkpoint, device: str, ranks: int) -> Feature:
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
