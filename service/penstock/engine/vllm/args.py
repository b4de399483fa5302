"""Turn settings and checkpoint into vLLM's arguments, and into the profile: which features are on or off, and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.config.schema import EngineSettings
from penstock.engine.vllm.checkpoint import ModelCheckpoint
from penstock.engine.vllm.features import Devices, Resolved, resolve, yarn_factor
from penstock.engine.vllm.parallel import ExpertLayout
from penstock.errors import ConfigError
from penstock.types import Feature

SPECULATION_REFUSES = {
    "spec.sampling.min_p": "vLLM does not apply min_p while MTP speculates (engine.mtp = off allows it)",
    "spec.sampling.logit_bias": "vLLM does not apply logit_bias while MTP speculates (engine.mtp = off allows it)",
}
_CPU_BLOCK_TOKENS = 128
_MAX_IMAGES = 256
"""Upper bound of limits.max_images."""
_CACHE_GIB = 0.5
"""Of processed pictures: a turn that shows the same picture again does not process it again."""
_KEEP_TOWER = {"ignore": ["*visual.*"]}
"""Of weights that become FP8 while loading: the tower stays bfloat16, as in FP8 checkpoints; its widths cut blocks."""


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """`arguments` are keywords of `AsyncEngineArgs`; `environment` must be set before vLLM is first imported."""

    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    profile: tuple[Feature, ...]
    unsupported_fields: Mapping[str, str] = field(default_factory=dict)
    layout: ExpertLayout | None = None
    """Layout of the experts; None where they are not counted."""


def plan_engine(settings: EngineSettings, checkpoint: ModelCheckpoint, devices: Devices) -> EnginePlan:
    """Return the plan. Raise ConfigError where a `required` feature is impossible or settings contradict each other."""
    resolved = resolve(settings, checkpoint, devices)
    arguments: dict[str, Any] = {
        "model": checkpoint.model,
        "revision": settings.revision or None,
        "served_model_name": settings.served_model_name or None,
        "dtype": "bfloat16",
        "max_model_len": resolved.window_tokens,
        "max_num_seqs": resolved.max_sequences,
        "max_num_batched_tokens": settings.max_batch_tokens,
        "enable_prefix_caching": resolved.prefix_caching.enabled,
        "kv_cache_dtype": "fp8" if resolved.fp8_kv_cache.enabled else "auto",
        "reasoning_parser": "penstock_qwen3",
        "tensor_parallel_size": resolved.parallel.tensor,
        "pipeline_parallel_size": resolved.parallel.stages if resolved.parallel.stages > 1 else None,
        "language_model_only": "ConditionalGeneration" in checkpoint.architecture and not resolved.images.enabled,
        # Statistics go to the stat logger that the engine is given; vLLM's own loggers would only cost time.
        "disable_log_stats": True,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        # JSON allows white space without end, and an uncertain model writes it until its tokens are spent.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "worker_extension_cls": "penstock.engine.vllm.worker.WorkerReport",
    }
    if resolved.mtp.enabled:
        arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": settings.mtp_draft_tokens}
        arguments["per_request_spec_decode_metrics"] = "summary"
    if resolved.images.enabled:
        arguments |= _images(settings, checkpoint)
    if resolved.yarn.enabled and checkpoint.rope.get("rope_type") != "yarn":
        arguments["hf_overrides"] = _yarn(checkpoint, resolved.window_tokens)
    arguments |= _cpu(settings) if devices.kind == "cpu" else _gpu(settings, checkpoint, resolved, devices)
    if settings.nodes > 1:
        arguments |= _several_nodes(settings)
    if devices.kind == "cpu" and settings.extra_args.get("enable_expert_parallel"):
        raise ConfigError(
            "engine.extra_args: enable_expert_parallel crashes vLLM's CPU build at the first step; leave it out"
        )
    arguments |= settings.extra_args
    return EnginePlan(
        arguments={name: value for name, value in arguments.items() if value is not None},
        environment=_environment(settings, checkpoint, devices, resolved),
        profile=resolved.profile,
        unsupported_fields=SPECULATION_REFUSES if resolved.mtp.enabled else {},
        layout=_layout(checkpoint, resolved) if resolved.routing.enabled else None,
    )


def _images(settings: EngineSettings, checkpoint: ModelCheckpoint) -> dict[str, Any]:
    """Return vLLM's arguments where images are read. The service bounds the images of a call itself."""
    most = {"limit_mm_per_prompt": {"image": _MAX_IMAGES, "video": 0}, "mm_processor_cache_gb": _CACHE_GIB}
    if checkpoint.image_pixels is None or checkpoint.image_pixels[1] <= settings.image_pixels:
        return most
    # vLLM makes room for one of the largest images at its start; no image that comes is larger than this.
    least = min(checkpoint.image_pixels[0], settings.image_pixels)
    size = {"shortest_edge": least, "longest_edge": settings.image_pixels}
    return most | {"mm_processor_kwargs": {"images_kwargs": {"size": size}}}


def _layout(checkpoint: ModelCheckpoint, resolved: Resolved) -> ExpertLayout:
    spread = resolved.parallel
    ranks = spread.tensor * spread.data if spread.experts else 1
    layers, per_token = (int(checkpoint.text.get(key) or 1) for key in ("num_hidden_layers", "num_experts_per_tok"))
    return ExpertLayout(layers, checkpoint.experts, per_token, ranks)


def _cpu(settings: EngineSettings) -> dict[str, Any]:
    return {
        # Compiling pays off after minutes of decoding, and needs a C++ compiler at run time.
        "enforce_eager": True,
        # vLLM's own default, set explicitly. Otherwise the engine core resets the size that the Gated DeltaNet states
        # need (384 tokens for the demo model) to 128 after its start. Prompt chunks then end between block boundaries,
        # no state is kept there, and the prefix cache finds nothing for a repeated prompt. GPUs are not affected.
        # Upstream: vllm/v1/engine/core.py `__post_init__` after the handshake, vllm/platforms/cpu.py, vLLM 0.32.0.
        "block_size": _CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
    }


def _gpu(settings: EngineSettings, checkpoint: ModelCheckpoint, resolved: Resolved, devices: Devices) -> dict[str, Any]:
    made_fp8 = resolved.fp8_weights.enabled and checkpoint.quantization is None
    spread = resolved.parallel
    return {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "quantization": "fp8_per_block" if made_fp8 else None,
        "quantization_config": _KEEP_TOWER if made_fp8 and resolved.images.enabled else None,
        "data_parallel_size": spread.data if spread.data > 1 else None,
        "enable_expert_parallel": spread.experts,
        "enable_eplb": spread.eplb,
        "gdn_prefill_backend": None if devices.compiles_cuda else "triton",
        "enable_return_routed_experts": True if resolved.routing.enabled else None,
    }


def _several_nodes(settings: EngineSettings) -> dict[str, Any]:
    """Return vLLM's own arguments for several nodes, without Ray (decision 12)."""
    return {
        "distributed_executor_backend": "mp",
        "nnodes": settings.nodes,
        "node_rank": settings.node_rank,
        "master_addr": settings.leader_address,
        "master_port": settings.leader_port,
    }


def _yarn(checkpoint: ModelCheckpoint, window: int) -> dict[str, Any]:
    """Return overrides that extend the positions with YaRN, in the text model's part where there are others."""
    native = checkpoint.native_context_tokens
    rope = checkpoint.rope | {
        "rope_type": "yarn",
        "factor": yarn_factor(window, native),
        "original_max_position_embeddings": native,
    }
    overrides = {"rope_parameters": rope}
    return {"text_config": overrides} if "ConditionalGeneration" in checkpoint.architecture else overrides


def _environment(
    settings: EngineSettings, checkpoint: ModelCheckpoint, devices: Devices, resolved: Resolved
) -> dict[str, str]:
    """Return environment variables for this process and its children."""
    environment = {
        "VLLM_LOGGING_LEVEL": settings.log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(max(1.0, settings.load_seconds))),
        "TOKENIZERS_PARALLELISM": "false",
        # A forked engine would share the service's sockets and locks; on a CPU vLLM spawns in any case.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if sys.prefix != sys.base_prefix and "VLLM_CACHE_ROOT" not in os.environ:
        # vLLM caches facts of a model class, which saves a subprocess at the next start. The cache is kept in the
        # Python environment unless the operator sets its place, as needed with a read-only root.
        environment["VLLM_CACHE_ROOT"] = str(Path(sys.prefix) / "cache" / "vllm")
    if checkpoint.is_local:
        environment["HF_HUB_OFFLINE"] = "1"
    if not devices.compiles_cuda:
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if devices.kind == "cpu":
        # vLLM marks a few helpers for torch.compile even where eager is enforced: the first request with logprobs
        # then waits 20 s for a C++ compiler.
        environment["TORCH_COMPILE_DISABLE"] = "1"
        environment["VLLM_CPU_OMP_THREADS_BIND"] = _cores(settings, resolved.parallel.tensor // settings.nodes)
    if resolved.yarn.enabled:
        environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    if settings.log_level not in ("DEBUG", "INFO"):
        environment |= {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-torch._library"}
    return environment


def _cores(settings: EngineSettings, ranks: int) -> str:
    """Return VLLM_CPU_OMP_THREADS_BIND. vLLM's "auto" counts NUMA nodes; more ranks than these need listed cores."""
    cores = sorted(os.sched_getaffinity(0))
    if settings.omp_threads_bind != "auto" or ranks <= 1 or len(cores) < ranks:
        return settings.omp_threads_bind
    share = len(cores) // ranks
    return "|".join(",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks))
