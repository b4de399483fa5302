"""From settings and checkpoint to vLLM's arguments, and the profile that says what is on, what is off and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from penstock.config import EngineSettings, Switch
from penstock.engine_vllm.checkpoint import Checkpoint
from penstock.errors import ConfigError
from penstock.types import Feature

Device = Literal["cpu", "gpu"]

SPECULATION_REFUSES = {
    "spec.sampling.min_p": "vLLM does not apply min_p while MTP speculates (engine.mtp = off allows it)",
    "spec.sampling.logit_bias": "vLLM does not apply logit_bias while MTP speculates (engine.mtp = off allows it)",
}


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """`arguments` are `AsyncEngineArgs` keywords; `environment` must be set before vLLM is first imported."""

    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    profile: tuple[Feature, ...]
    unsupported_fields: Mapping[str, str] = field(default_factory=dict)


def plan_engine(settings: EngineSettings, checkpoint: Checkpoint, device: Device) -> EnginePlan:
    """Raises `ConfigError` where something `required` is impossible or the window is larger than the model's."""
    mtp = _mtp(settings, checkpoint)
    prefix = _switch("prefix_caching", settings.prefix_caching)
    fp8_kv = _switch("fp8_kv_cache", settings.fp8_kv_cache, on="e4m3")
    weights = _weights(checkpoint)
    parallel = _parallel(settings, checkpoint, device)
    arguments: dict[str, Any] = {
        "model": checkpoint.model,
        "served_model_name": settings.served_model_name or None,
        "dtype": "bfloat16",
        "max_model_len": _window(settings, checkpoint),
        "max_num_seqs": settings.max_concurrent_requests,
        "max_num_batched_tokens": settings.max_batch_tokens,
        "enable_prefix_caching": prefix.enabled,
        "kv_cache_dtype": "fp8" if fp8_kv.enabled else "auto",
        "reasoning_parser": "qwen3",
        "tensor_parallel_size": settings.tensor_parallel_size,
        "language_model_only": "ConditionalGeneration" in checkpoint.architecture,
        # The stat logger that the engine is given is all that listens; vLLM's own would only cost time.
        "disable_log_stats": True,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        "worker_extension_cls": "penstock.engine_vllm.worker.WorkerReport",
    }
    if mtp.enabled:
        arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": settings.mtp_draft_tokens}
        arguments["per_request_spec_decode_metrics"] = "summary"
    arguments |= _cpu(settings) if device == "cpu" else _gpu(settings, checkpoint)
    arguments |= settings.extra_args
    return EnginePlan(
        arguments={name: value for name, value in arguments.items() if value is not None},
        environment=_environment(settings, checkpoint, device),
        profile=(weights, fp8_kv, mtp, prefix, *parallel),
        unsupported_fields=SPECULATION_REFUSES if mtp.enabled else {},
    )


def _cpu(settings: EngineSettings) -> dict[str, Any]:
    return {
        # Compiling pays off after minutes of decoding, and needs a C++ compiler at run time.
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
    }


def _gpu(settings: EngineSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    many_experts = settings.tensor_parallel_size > 1 and checkpoint.experts > 0
    return {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_expert_parallel": many_experts,
        "enable_eplb": many_experts,
    }


def _environment(settings: EngineSettings, checkpoint: Checkpoint, device: Device) -> dict[str, str]:
    """Variables for this process and its children."""
    environment = {
        "VLLM_LOGGING_LEVEL": settings.log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if sys.prefix != sys.base_prefix:
        # What vLLM remembers of a model class saves a subprocess at the next start; kept with its environment.
        environment["VLLM_CACHE_ROOT"] = str(Path(sys.prefix) / "cache" / "vllm")
    if checkpoint.is_local:
        environment["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        # vLLM marks a few helpers for torch.compile even where eager is enforced: the first request with logprobs
        # then waits 20 s for a C++ compiler.
        environment["TORCH_COMPILE_DISABLE"] = "1"
        environment["VLLM_CPU_OMP_THREADS_BIND"] = _cores(settings)
    if settings.log_level not in ("DEBUG", "INFO"):
        environment |= {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-torch._library"}
    return environment


def _cores(settings: EngineSettings) -> str:
    """vLLM's "auto" counts NUMA nodes; ranks beyond them have to be told their cores, rank by rank."""
    ranks, cores = settings.tensor_parallel_size, sorted(os.sched_getaffinity(0))
    if settings.omp_threads_bind != "auto" or ranks == 1 or len(cores) < ranks:
        return settings.omp_threads_bind
    share = len(cores) // ranks
    return "|".join(",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks))


def _window(settings: EngineSettings, checkpoint: Checkpoint) -> int:
    wanted, native = settings.max_context_tokens, checkpoint.native_context_tokens
    if wanted is not None and wanted > native:
        raise ConfigError(f"engine.max_context_tokens: {wanted} is more than the checkpoint's {native}")
    return wanted or native


def _mtp(settings: EngineSettings, checkpoint: Checkpoint) -> Feature:
    if checkpoint.mtp_layers == 0 and settings.mtp != "off":
        return _impossible("mtp", settings.mtp, "the checkpoint has no multi-token prediction layer")
    return _switch("mtp", settings.mtp, on=f"{settings.mtp_draft_tokens} drafted per step")


def _weights(checkpoint: Checkpoint) -> Feature:
    if checkpoint.quantization == "fp8":
        return Feature("fp8_weights", True, "e4m3", "the checkpoint is FP8")
    return Feature("fp8_weights", False, "bfloat16", f"the checkpoint is {checkpoint.quantization or 'bfloat16'}")


def _parallel(settings: EngineSettings, checkpoint: Checkpoint, device: Device) -> tuple[Feature, ...]:
    size = settings.tensor_parallel_size
    tensor = Feature("tensor_parallel", size > 1, str(size), "engine.tensor_parallel_size")
    if device == "cpu":
        reason = "crashes in vLLM's CPU build"
    elif not checkpoint.experts:
        reason = "the model has no experts"
    else:
        reason = "one device" if size == 1 else "default with more than one device"
    on = device == "gpu" and size > 1 and checkpoint.experts > 0
    return tensor, Feature("expert_parallel", on, "with EPLB" if on else "", reason)


def _switch(name: str, wanted: Switch, on: str = "") -> Feature:
    reason = {"auto": "default", "on": "asked for", "required": "required", "off": "switched off"}[wanted]
    return Feature(name, wanted != "off", on if wanted != "off" else "", reason)


def _impossible(name: str, wanted: Switch, reason: str) -> Feature:
    if wanted == "required":
        raise ConfigError(f"engine.{name} is required, but {reason}")
    return Feature(name, False, "", reason)
