"""Turn settings, checkpoint and devices into the profile: which engine features are on, which are off, and why.

Pure, and done before vLLM is imported: a `required` feature that is impossible shows in a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.config.schema import EngineSettings
from penstock.engine.sizing.cache import CacheSettings
from penstock.engine.vllm.checkpoint import PICTURE_FILE, ModelCheckpoint
from penstock.engine.vllm.concurrency import plan_concurrency
from penstock.engine.vllm.parallel import Parallel, plan_parallel
from penstock.engine.vllm.switches import impossible, switch
from penstock.errors import ConfigError
from penstock.types import Feature

DeviceKind = Literal["cpu", "gpu"]
LARGEST_YARN_TOKENS = 1_010_000
"""Limit that Qwen names for these models; about a factor of 4 on 262,144."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of this machine.

    `bytes_each` and `capability` (CUDA's compute capability) are None where they are not known. `reads_fp8_cache` is
    whether attention can read an FP8 cache there, `compiles_cuda` whether FlashInfer, nvcc and ninja
    are installed.
    """

    kind: DeviceKind
    count: int = 1
    bytes_each: int | None = None
    reads_fp8_cache: bool = True
    capability: tuple[int, int] | None = None
    compiles_cuda: bool = True


@dataclass(frozen=True, slots=True)
class Resolved:
    """The decisions: each feature, the parallel layout, and the sizes that follow."""

    fp8_weights: Feature
    fp8_kv_cache: Feature
    mtp: Feature
    prefix_caching: Feature
    yarn: Feature
    engine_budget: Feature
    routing: Feature
    images: Feature
    parallel: Parallel
    window_tokens: int
    max_sequences: int
    """Maximum requests in a step of one replica."""
    described: tuple[Feature, ...]

    @property
    def profile(self) -> tuple[Feature, ...]:
        """Return all features in the order in which they are shown."""
        switched = (self.fp8_weights, self.fp8_kv_cache, self.mtp, self.prefix_caching)
        return (
            *switched,
            *self.described,
            *self.parallel.features,
            self.yarn,
            self.engine_budget,
            self.routing,
            self.images,
        )


def resolve(settings: EngineSettings, checkpoint: ModelCheckpoint, devices: Devices) -> Resolved:
    """Decide all features. Raise ConfigError where a `required` one is impossible or settings contradict each other."""
    window, yarn = _window(settings, checkpoint)
    prefix_caching = switch("prefix_caching", settings.prefix_caching)
    parallel = plan_parallel(settings, checkpoint, devices.kind, devices.count, devices.bytes_each)
    fp8_weights, fp8_kv_cache = _fp8_weights(settings, checkpoint, devices.kind), _fp8_kv_cache(settings, devices)
    mtp = _mtp(settings, checkpoint)
    images = _images(settings, checkpoint, parallel.tensor)
    tower = checkpoint.tower(settings.images) if images.enabled else None
    cached = CacheSettings(
        kv_fp8=fp8_kv_cache.enabled,
        drafted=settings.mtp_draft_tokens if mtp.enabled else 0,
        prefix_caching=prefix_caching.enabled,
    )
    usable = None
    if devices.kind == "gpu" and devices.bytes_each is not None:
        usable = devices.bytes_each * settings.gpu_memory_utilization
    sequences = settings.max_concurrent_requests or plan_concurrency(
        checkpoint, parallel, usable, fp8_weights=fp8_weights.enabled, cached=cached, tower=tower
    )
    return Resolved(
        fp8_weights=fp8_weights,
        fp8_kv_cache=fp8_kv_cache,
        mtp=mtp,
        prefix_caching=prefix_caching,
        yarn=yarn,
        engine_budget=switch("engine_budget", settings.engine_budget),
        routing=_routing(settings, checkpoint, devices.kind, prefix_caching, parallel),
        images=images,
        parallel=parallel,
        window_tokens=window,
        max_sequences=sequences,
        described=_described(settings, devices),
    )


def _fp8_weights(settings: EngineSettings, checkpoint: ModelCheckpoint, device: DeviceKind) -> Feature:
    name, wanted = "fp8_weights", settings.fp8_weights
    if checkpoint.quantization == "fp8":
        if wanted == "off":
            raise ConfigError(
                f"engine.fp8_weights is off, but the checkpoint {checkpoint.model} is FP8; set it to auto, or name a "
                "bfloat16 checkpoint"
            )
        return Feature(name, True, "e4m3", "the checkpoint is FP8")
    if checkpoint.quantization is not None:
        return impossible(name, wanted, f"the checkpoint is {checkpoint.quantization}", checkpoint.quantization)
    if wanted == "off":
        return Feature(name, False, "bfloat16", "switched off")
    if device == "cpu":
        why = "the checkpoint is bfloat16, and only a GPU makes it FP8 while loading (`penstock quantize` writes one)"
        return impossible(name, wanted, why, "bfloat16")
    return Feature(name, True, "e4m3, made while loading", switch(name, wanted).reason)


def _fp8_kv_cache(settings: EngineSettings, devices: Devices) -> Feature:
    if not devices.reads_fp8_cache and settings.fp8_kv_cache != "off":
        lacks = "this CPU has no AVX-512"
        if devices.capability is not None:
            lacks = "attention reads it from compute capability 8.9 on, this GPU has {}.{}".format(*devices.capability)
        return impossible("fp8_kv_cache", settings.fp8_kv_cache, lacks, "bfloat16")
    return switch("fp8_kv_cache", settings.fp8_kv_cache, on="e4m3")


def _mtp(settings: EngineSettings, checkpoint: ModelCheckpoint) -> Feature:
    if checkpoint.mtp_layers == 0 and settings.mtp != "off":
        return impossible("mtp", settings.mtp, "the checkpoint has no multi-token prediction layer")
    return switch("mtp", settings.mtp, on=f"{settings.mtp_draft_tokens} drafted per step")


def _routing(
    settings: EngineSettings,
    checkpoint: ModelCheckpoint,
    device: DeviceKind,
    prefix_caching: Feature,
    parallel: Parallel,
) -> Feature:
    name, wanted = "routing", settings.routing
    if not checkpoint.experts and wanted != "off":
        return impossible(name, wanted, "the model has no experts")
    if device == "cpu":
        return switch(name, wanted, on="all tokens computed")
    if wanted == "auto":
        why = "its cost on a GPU has not been measured; engine.routing = on counts there, too"
        return Feature(name, False, "", why)
    if not prefix_caching.enabled and wanted != "off":
        return impossible(name, wanted, "vLLM returns routed experts with prefix caching only")
    if parallel.stages > 1 and wanted != "off":
        return impossible(name, wanted, "vLLM returns routed experts without pipeline stages only")
    return switch(name, wanted, on="tokens of finished runs")


def _images(settings: EngineSettings, checkpoint: ModelCheckpoint, tensor: int) -> Feature:
    name, wanted = "images", settings.images
    if not checkpoint.vision:
        return impossible(name, wanted, "the checkpoint has no vision tower")
    if not checkpoint.reads_pictures:
        return impossible(name, wanted, f"{checkpoint.model} has no {PICTURE_FILE}")
    heads = int(checkpoint.vision.get("num_heads") or 0)
    if heads % tensor:
        return impossible(name, wanted, f"{tensor} devices per replica do not divide the tower's {heads} heads")
    edge = int(checkpoint.vision.get("patch_size") or 0) * int(checkpoint.vision.get("spatial_merge_size") or 0)
    return switch(name, wanted, on=f"a token per {edge} x {edge} pixels" if edge else "")


def _window(settings: EngineSettings, checkpoint: ModelCheckpoint) -> tuple[int, Feature]:
    native = checkpoint.native_context_tokens
    wanted = settings.max_context_tokens or native
    if checkpoint.rope.get("rope_type") == "yarn":
        if wanted > native:
            raise ConfigError(f"engine.max_context_tokens must be at most {native}, the checkpoint's, got {wanted}")
        return wanted, Feature("yarn", True, f"{native:,} tokens", "in the checkpoint")
    if wanted <= native:
        return wanted, impossible("yarn", settings.yarn, f"the window fits in the native {native:,} tokens")
    if settings.yarn == "off":
        raise ConfigError(
            f"engine.max_context_tokens must be at most {native}, the native window, with engine.yarn off; got {wanted}"
        )
    if settings.yarn == "auto" and native != 262_144:
        raise ConfigError(
            f"engine.max_context_tokens must be at most {native}, the checkpoint's, got {wanted}; YaRN is not tested "
            "for this model, engine.yarn = on allows it"
        )
    if wanted > max(LARGEST_YARN_TOKENS, 4 * native):
        most = max(LARGEST_YARN_TOKENS, 4 * native)
        raise ConfigError(f"engine.max_context_tokens must be at most {most}, the limit of YaRN, got {wanted}")
    return wanted, Feature("yarn", True, f"factor {yarn_factor(wanted, native):g}", f"the window is beyond {native:,}")


def yarn_factor(wanted: int, native: int) -> float:
    """Return the smallest whole factor that is enough: a larger one costs short prompts more accuracy."""
    return float(max(2, -(-wanted // native)))


def _described(settings: EngineSettings, devices: Devices) -> tuple[Feature, ...]:
    """Return features that cannot be switched here but are part of the profile."""
    chunk = f"{settings.max_batch_tokens} tokens" if settings.max_batch_tokens else ""
    more: tuple[Feature, ...] = ()
    if devices.kind == "cpu":
        runner = Feature("model_runner", True, "V1", "V2 needs Triton, which has no CPU backend here")
        backend = Feature("attention_backend", True, "CPU_ATTN", "the only one on a CPU")
    else:
        runner = Feature("model_runner", True, "", "vLLM's choice")
        chosen = settings.extra_args.get("attention_backend")
        backend = Feature("attention_backend", True, str(chosen or ""), "asked for" if chosen else "vLLM's choice")
        more = (flashinfer(devices),)
    chunked = Feature("chunked_prefill", True, chunk, "prefix caching of Gated DeltaNet states needs it")
    return chunked, runner, backend, *more


def flashinfer(devices: Devices) -> Feature:
    """Return whether vLLM may use FlashInfer's kernels, some of which are compiled at first use.

    On Hopper, vLLM selects one for the prefill of Gated DeltaNet without a check whether FlashInfer is installed or can
    compile it; the first token would then never come.
    """
    if devices.compiles_cuda:
        return Feature("flashinfer", True, "", "vLLM's choice; kernels that are not built yet compile at the start")
    return Feature(
        "flashinfer",
        False,
        "",
        "it needs flashinfer-python, and nvcc and ninja to compile its kernels; one is not here",
    )
