"""GPUs as NVIDIA's management library says them, without a GPU, and what is planned for them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock.config.schema import EngineSettings, LimitSettings
from penstock.engine.vllm import devices
from penstock.engine.vllm.args import plan_engine
from penstock.engine.vllm.checkpoint import card_checkpoint
from penstock.engine.vllm.features import Devices
from penstock.engine.vllm.worker import WorkerReport
from penstock.errors import ConfigError
from pydantic import ValidationError

GIB = 2**30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts GPUs of a compute capability in this machine; `free` gives their free memory, one value after the other."""

    def put(capability: tuple[int, int], count: int = 1, free: Iterator[int] | None = None) -> None:
        values = free or iter(lambda: 80 * GIB, None)
        library = SimpleNamespace(
            NVMLError=RuntimeError,
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetCount=lambda: count,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * GIB, free=next(values)),
            nvmlDeviceGetCudaComputeCapability=lambda _: capability,
        )
        monkeypatch.setitem(sys.modules, "pynvml", library)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Leaves these programs on PATH, a CUDA toolkit nowhere else, and FlashInfer where it is named."""

    def leave(*names: str) -> None:
        for name in names:
            (tmp_path / name).touch(mode=0o755)
        found = object() if "flashinfer" in names else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "flashinfer" else None)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("CUDA_PATH", "")
        monkeypatch.setenv("CUDA_HOME", "")
        monkeypatch.setattr(devices, "_CUDA_HOME", str(tmp_path / "none"))

    return leave


def planned(found: Devices, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """(features by name, arguments, environment)."""
    plan = plan_engine(EngineSettings(**settings), card_checkpoint("Qwen/Qwen3.5-35B-A3B-FP8"), found)
    return {row.name: row for row in plan.profile}, dict(plan.arguments), dict(plan.environment)


@pytest.mark.parametrize(("capability", "reads"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_an_fp8_cache_should_be_on_where_attention_reads_it(
    gpus: Callable[..., None], capability: tuple[int, int], reads: bool
) -> None:
    gpus(capability)
    found = devices.find_devices("gpu")
    assert (found.capability, found.reads_fp8_cache) == (capability, reads)
    features, arguments, _ = planned(found)
    assert features["fp8_kv_cache"].enabled is reads
    assert arguments["kv_cache_dtype"] == ("fp8" if reads else "auto")
    if not reads:
        assert "from compute capability 8.9 on" in features["fp8_kv_cache"].reason
        with pytest.raises(ConfigError, match="fp8_kv_cache is required, but attention reads it from"):
            planned(found, fp8_kv_cache="required")


@pytest.mark.parametrize(
    "there", [(), ("flashinfer", "nvcc"), ("flashinfer", "ninja"), ("nvcc", "ninja"), ("flashinfer", "nvcc", "ninja")]
)
def test_a_host_that_cannot_compile_should_get_kernels_that_need_no_compiler(
    gpus: Callable[..., None], tools: Callable[..., None], there: tuple[str, ...]
) -> None:
    gpus((9, 0))
    tools(*there)
    features, arguments, environment = planned(devices.find_devices("gpu"))
    compiles = len(there) == 3
    assert features["flashinfer"].enabled is compiles
    assert arguments.get("gdn_prefill_backend") == (None if compiles else "triton")
    assert environment.get("VLLM_USE_FLASHINFER_SAMPLER") == (None if compiles else "0")


def test_what_the_operator_asks_for_should_win_over_the_fallback() -> None:
    _, arguments, _ = planned(
        Devices("gpu", 1, 80 * GIB, compiles_cuda=False), extra_args={"gdn_prefill_backend": "flashinfer"}
    )
    assert arguments["gdn_prefill_backend"] == "flashinfer"


def test_a_dead_engines_memory_should_be_waited_for(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CHECK_SECONDS", 0.0)
    freed = iter([2 * GIB, 2 * GIB, 40 * GIB, 78 * GIB])
    gpus((9, 0), free=freed)
    assert devices.wait_until_free((79 * GIB,), 1e9)
    assert next(freed, None) is None, "it was looked at until it was free"
    gpus((9, 0), free=iter(lambda: 2 * GIB, None))
    assert not devices.wait_until_free((79 * GIB,), 0.0)


def test_nothing_should_be_waited_for_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert devices.free_bytes() == ()
    assert devices.wait_until_free((), 1e9)


@pytest.mark.parametrize("name", ["drafter", "speculator"])
def test_the_draft_layers_weights_should_count_under_either_runners_name(name: str) -> None:
    """Model Runner V1 says `drafter`, V2 says `speculator`."""

    def model(address: int) -> Any:
        tensor = SimpleNamespace(data_ptr=lambda: address, dtype="torch.bfloat16", nbytes=10)
        module = SimpleNamespace(named_parameters=lambda recurse: [("weight", tensor)])
        return SimpleNamespace(modules=lambda: [module])

    report = WorkerReport()
    report.model_runner = SimpleNamespace(model=model(1), **{name: SimpleNamespace(model=model(2))})
    assert report.weight_bytes() == {"bfloat16": 20}


def test_kernels_that_compile_at_the_first_token_should_be_waited_for() -> None:
    """nvcc takes minutes for FlashInfer's: an engine that compiles is no dead engine."""
    from penstock.engine.vllm.start import _DISTRIBUTIONS, _first_token_seconds

    seconds = {kind: _first_token_seconds(f"{name} 0.32.0") for kind, name in _DISTRIBUTIONS.items()}
    assert seconds["gpu"] >= 1800 > seconds["cpu"]


def test_no_configuration_should_allow_more_than_model_runner_v2_holds() -> None:
    """Its worker dies of more; tests/engine compares the numbers with vLLM's own."""
    for name, most in (("max_logit_biases", 1024), ("max_stop_strings", 64)):
        assert getattr(LimitSettings(**{name: most}), name) == most
        with pytest.raises(ValidationError, match=name):
            LimitSettings(**{name: most + 1})
