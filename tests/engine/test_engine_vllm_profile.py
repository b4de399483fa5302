"""The profile: golden plans for the official models on GPUs, YaRN, what is refused, and how fast a refusal is told."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.vllm.args import plan_engine
from penstock.engine.vllm.checkpoint import card_checkpoint, read_checkpoint
from penstock.engine.vllm.features import Devices
from penstock.engine.vllm.probe import budget_fault
from penstock.engine.vllm.start import in_vllms_types, line
from penstock.errors import ConfigError
from penstock.types import Markers

pytestmark = pytest.mark.filterwarnings("ignore")
H100, H200 = 80 * 10**9, 141 * 10**9
H100_SEEN = int(79.1 * 2**30)
"""What a framework sees of an H100."""


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that started in this process before runs without the hub; the models planned here only have names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def plan(name: str, count: int, memory: int, **settings: object):
    return plan_engine(EngineSettings(**settings), card_checkpoint(name), Devices("gpu", count, memory))


GOLDEN = {
    "model": "Qwen/Qwen3.5-35B-A3B-FP8",
    "dtype": "bfloat16",
    "max_model_len": 262_144,
    "max_num_seqs": 64,
    "enable_prefix_caching": True,
    "kv_cache_dtype": "fp8",
    "reasoning_parser": "penstock_qwen3",
    "tensor_parallel_size": 1,
    "language_model_only": False,
    "limit_mm_per_prompt": {"image": 256, "video": 0},
    "mm_processor_cache_gb": 0.5,
    "mm_processor_kwargs": {"images_kwargs": {"size": {"shortest_edge": 65_536, "longest_edge": 4_194_304}}},
    "disable_log_stats": True,
    "enable_log_requests": False,
    "use_tqdm_on_load": False,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    "worker_extension_cls": "penstock.engine.vllm.worker.WorkerReport",
    "speculative_config": {"method": "mtp", "num_speculative_tokens": 2},
    "per_request_spec_decode_metrics": "summary",
    "gpu_memory_utilization": 0.9,
    "enable_expert_parallel": False,
    "enable_eplb": False,
}
MADE_FP8 = {"quantization": "fp8_per_block", "quantization_config": {"ignore": ["*visual.*"]}}
SPREAD = {"enable_expert_parallel": True, "enable_eplb": True}


@pytest.mark.parametrize(
    ("name", "count", "memory", "changes"),
    [
        ("Qwen/Qwen3.5-35B-A3B-FP8", 1, H100, {}),
        ("Qwen/Qwen3.5-35B-A3B-FP8", 4, H100, {"data_parallel_size": 4, "max_num_seqs": 128, **SPREAD}),
        ("Qwen/Qwen3.5-35B-A3B", 1, H100, MADE_FP8),
        ("Qwen/Qwen3.5-27B-FP8", 2, H100, {"data_parallel_size": 2}),
        (
            "Qwen/Qwen3.5-122B-A10B-FP8",
            4,
            H100,
            {"tensor_parallel_size": 2, "data_parallel_size": 2, "max_num_seqs": 72, **SPREAD},
        ),
        ("Qwen/Qwen3.5-122B-A10B-FP8", 4, H200, {"data_parallel_size": 4, "max_num_seqs": 88, **SPREAD}),
        (
            "Qwen/Qwen3.5-397B-A17B-FP8",
            8,
            H100,
            {"tensor_parallel_size": 4, "data_parallel_size": 2, **SPREAD},
        ),
        (
            "Qwen/Qwen3.5-397B-A17B-FP8",
            8,
            H100_SEEN,
            {"tensor_parallel_size": 2, "data_parallel_size": 4, **SPREAD},
        ),
        ("Qwen/Qwen3.5-397B-A17B-FP8", 8, H200, {"data_parallel_size": 8, **SPREAD}),
    ],
)
def test_defaults_on_gpus(name, count, memory, changes):
    from vllm.engine.arg_utils import AsyncEngineArgs

    planned = plan(name, count, memory)
    assert planned.arguments == GOLDEN | {"model": name} | changes
    assert AsyncEngineArgs(**planned.arguments).model == name


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"tensor_parallel_size": 8}, (8, None)),
        ({"data_parallel_size": 1}, (8, None)),
        ({"expert_parallel": "off"}, (8, None)),
    ],
)
def test_a_layout_that_is_asked_for_or_holds_no_spread_experts_is_left_alone(settings, sizes):
    arguments = plan("Qwen/Qwen3.5-397B-A17B-FP8", 8, H100_SEEN, **settings).arguments
    assert (arguments["tensor_parallel_size"], arguments.get("data_parallel_size")) == sizes


def test_every_feature_says_why():
    for feature in plan("Qwen/Qwen3.5-122B-A10B-FP8", 4, H100).profile:
        assert feature.reason
        assert feature.name in line(feature)


def test_a_model_that_does_not_fit_is_told_with_the_sizes():
    with pytest.raises(ConfigError, match="406 GB of weights, 80 GB per GPU, so 8 GPUs are needed and there are 4"):
        plan("Qwen/Qwen3.5-397B-A17B-FP8", 4, H100)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tensor_parallel_size": 4, "data_parallel_size": 4}, "needs 16 GPUs, and there are 8"),
        ({"tensor_parallel_size": 3}, "does not divide"),
        ({"max_context_tokens": 2_000_000}, "must be at most 1048576, the limit of YaRN, got 2000000"),
        (
            {"max_context_tokens": 1_010_000, "yarn": "off"},
            "must be at most 262144, the native window, with engine.yarn off; got 1010000",
        ),
    ],
)
def test_contradictions_on_gpus(settings, said):
    with pytest.raises(ConfigError, match=said):
        plan("Qwen/Qwen3.5-122B-A10B-FP8", 8, H100, **settings)


def test_stages_and_machines_beyond_this_one_are_vllms_own():
    planned = plan(
        "Qwen/Qwen3.5-122B-A10B-FP8", 4, H100, tensor_parallel_size=2, extra_args={"pipeline_parallel_size": 2}
    )
    assert "data_parallel_size" not in planned.arguments
    far = {"distributed_executor_backend": "ray"}
    planned = plan("Qwen/Qwen3.5-397B-A17B-FP8", 1, H100, tensor_parallel_size=16, extra_args=far)
    assert planned.arguments["tensor_parallel_size"] == 16


NODES = {"nodes": 2, "leader_address": "10.0.0.1"}


@pytest.mark.parametrize(
    ("count", "memory", "settings", "sizes"),
    [
        # Where it fits into a node, the others hold it too, and experts are spread over all.
        (8, H100, {}, (8, None, 2)),
        (4, H200, {}, (4, 2, None)),
        (4, H100, {}, (4, 2, None)),
        (8, H100, {"pipeline_parallel_size": 2}, (4, 2, 2)),
        (8, H100, {"tensor_parallel_size": 16}, (16, None, None)),
        (8, H100, {"tensor_parallel_size": 8, "data_parallel_size": 1, "pipeline_parallel_size": 2}, (8, 2, None)),
    ],
)
def test_several_nodes_are_vllms_own_way(count, memory, settings, sizes):
    from vllm.engine.arg_utils import AsyncEngineArgs

    planned = plan("Qwen/Qwen3.5-397B-A17B-FP8", count, memory, **NODES, node_rank=1, **settings)
    kinds = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    assert tuple(planned.arguments.get(kind) for kind in kinds) == sizes
    arguments = AsyncEngineArgs(**planned.arguments)
    assert (arguments.nnodes, arguments.node_rank, arguments.master_addr) == (2, 1, "10.0.0.1")
    assert (arguments.distributed_executor_backend, arguments.master_port) == ("mp", 29501)


@pytest.mark.parametrize(
    ("count", "settings", "said"),
    [
        (8, {"tensor_parallel_size": 8, "data_parallel_size": 1}, "needs 8 GPUs, and 2 nodes .* have 16"),
        (2, {}, "does not fit"),
        (8, {"tensor_parallel_size": 8, "data_parallel_size": 3}, "needs 24 GPUs, and 2 nodes .* have 16"),
    ],
)
def test_several_nodes_use_all_their_gpus(count, settings, said):
    with pytest.raises(ConfigError, match=said):
        plan("Qwen/Qwen3.5-397B-A17B-FP8", count, H100, **NODES, **settings)


def test_a_revision_pins_config_and_weights():
    planned = plan("Qwen/Qwen3.5-35B-A3B-FP8", 1, H100, revision="0123abc")
    assert planned.arguments["revision"] == "0123abc"


def test_loading_may_take_longer_than_vllms_ten_minutes():
    planned = plan("Qwen/Qwen3.5-397B-A17B-FP8", 8, H100)
    assert int(planned.environment["VLLM_ENGINE_READY_TIMEOUT_S"]) >= 3600


def test_an_operators_own_cache_place_wins(monkeypatch):
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    assert "VLLM_CACHE_ROOT" in plan("Qwen/Qwen3.5-35B-A3B-FP8", 1, H100).environment
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/cache/vllm")
    assert "VLLM_CACHE_ROOT" not in plan("Qwen/Qwen3.5-35B-A3B-FP8", 1, H100).environment


def test_a_window_beyond_the_native_one_is_yarn():
    planned = plan("Qwen/Qwen3.5-35B-A3B-FP8", 1, H100, max_context_tokens=1_010_000)
    rope = planned.arguments["hf_overrides"]["text_config"]["rope_parameters"]
    assert rope == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 262_144,
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
    assert planned.environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1"
    yarn = next(feature for feature in planned.profile if feature.name == "yarn")
    assert (yarn.enabled, yarn.value) == (True, "factor 4")


def test_vllm_reads_the_stretched_window_as_it_is_meant(monkeypatch):
    """vLLM's own configuration objects, from the demo checkpoint; no engine."""
    from penstock.engine.vllm import compat
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs

    envs.disable_envs_cache()  # as `start` does: an engine that runs beside this test has had it remembered
    settings = EngineSettings(max_context_tokens=65_536, yarn="on")
    planned = plan_engine(settings, read_checkpoint(str(DEMO_MODEL_DIR)), Devices("cpu"))
    for name, value in planned.environment.items():
        monkeypatch.setenv(name, value)
    compat.general_plugin()
    config = AsyncEngineArgs(**in_vllms_types(planned.arguments)).create_engine_config()
    assert config.model_config.max_model_len == 65_536
    rope = config.model_config.hf_text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["partial_rotary_factor"]) == ("yarn", 2.0, 0.25)
    assert config.cache_config.enable_prefix_caching
    assert config.speculative_config.num_speculative_tokens == 2


@pytest.mark.cpu_build
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("engine.expert_parallel=required", "engine.expert_parallel is required, but vLLM's CPU build crashes"),
        ("engine.yarn=required", "engine.yarn is required, but the window fits in the native"),
        ('engine.extra_args={"enable_expert_parallel": true}', "enable_expert_parallel crashes"),
    ],
)
def test_the_impossible_stops_the_start_before_anything_loads(setting, said):
    command = [
        sys.executable,
        "-m",
        "penstock",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--device",
        "cpu",
        "--set",
        setting,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert said in done.stderr
    # One message, under its heading, after what was said on the way.
    _, _, told = done.stderr.partition("invalid configuration:\n")
    assert len(told.splitlines()) == 1, done.stderr
    assert "loading" not in done.stdout


class Overshooting:
    """An engine that lets every thought run `extra` tokens past its budget."""

    def __init__(self, extra: int) -> None:
        self.extra = extra
        self.card = SimpleNamespace(markers=Markers(3, 4), forces_budget=True, eos_ids=frozenset({2}))
        self.tokenizer = SimpleNamespace(encode=lambda text: [9, 9])

    async def stream(self, request):
        thought = request.thought_budget_tokens + self.extra
        yield SimpleNamespace(token_ids=(7,) * thought + (4, 8))


async def test_the_probe_sees_a_budget_that_does_not_hold():
    assert await budget_fault(Overshooting(0)) is None
    assert "3 tokens pass a budget of 0" in await budget_fault(Overshooting(3))
