"""Settings and checkpoint to vLLM's arguments: pure, so golden. No engine runs here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.vllm.args import plan_engine
from penstock.engine.vllm.checkpoint import ModelCheckpoint, card_checkpoint, read_checkpoint
from penstock.engine.vllm.devices import _has_avx512
from penstock.engine.vllm.features import Devices
from penstock.engine.vllm.sampling import thought_tokens_in_prompt
from penstock.engine.vllm.start import default_sampling
from penstock.errors import ConfigError
from penstock.types import EarlyExit, EarlyExitAdvice, Markers, Sampling

CHECKPOINT = ModelCheckpoint(
    model="/models/m",
    is_local=True,
    architecture="Qwen3_5MoeForCausalLM",
    vocab_size=512,
    native_context_tokens=4096,
    mtp_layers=1,
    experts=8,
    quantization=None,
    eos_ids=frozenset({2}),
)
CPU = Devices("cpu")


def features(plan):
    return {feature.name: feature for feature in plan.profile}


def test_defaults_on_a_cpu():
    plan = plan_engine(EngineSettings(), CHECKPOINT, CPU)
    assert plan.arguments == {
        "model": "/models/m",
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "enable_prefix_caching": True,
        "kv_cache_dtype": "fp8",
        "reasoning_parser": "penstock_qwen3",
        "tensor_parallel_size": 1,
        "language_model_only": False,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "worker_extension_cls": "penstock.engine.vllm.worker.WorkerReport",
        "speculative_config": {"method": "mtp", "num_speculative_tokens": 2},
        "per_request_spec_decode_metrics": "summary",
        "enforce_eager": True,
        "block_size": 128,
        "kv_cache_memory_bytes": 2**30,
    }
    on = {name for name, feature in features(plan).items() if feature.enabled}
    described = {"chunked_prefill", "model_runner", "attention_backend"}
    assert on - described == {"mtp", "fp8_kv_cache", "prefix_caching", "engine_budget", "routing"}
    assert set(plan.unsupported_fields) == {"spec.sampling.min_p", "spec.sampling.logit_bias"}


def test_a_cpu_that_cannot_read_an_fp8_cache_keeps_bfloat16(tmp_path):
    plan = plan_engine(EngineSettings(), CHECKPOINT, Devices("cpu", reads_fp8_cache=False))
    assert plan.arguments["kv_cache_dtype"] == "auto"
    cache = features(plan)["fp8_kv_cache"]
    assert (cache.enabled, cache.reason) == (False, "this CPU has no AVX-512")
    with pytest.raises(ConfigError, match="fp8_kv_cache is required, but this CPU"):
        plan_engine(EngineSettings(fp8_kv_cache="required"), CHECKPOINT, Devices("cpu", reads_fp8_cache=False))
    cpuinfo = tmp_path / "cpuinfo"
    for flags, expected in (("fpu avx2", False), ("fpu avx2 avx512f avx512bw", True)):
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        assert _has_avx512(cpuinfo) is expected
    assert _has_avx512(tmp_path / "none")


def test_without_mtp_nothing_is_refused():
    plan = plan_engine(EngineSettings(mtp="off"), CHECKPOINT, CPU)
    assert "speculative_config" not in plan.arguments
    assert not plan.unsupported_fields


@pytest.mark.parametrize(
    ("settings", "checkpoint"),
    [
        ({"mtp": "required"}, {"mtp_layers": 0}),
        ({"fp8_weights": "required"}, {}),
        ({"fp8_weights": "off"}, {"quantization": "fp8"}),
        ({"fp8_weights": "required"}, {"quantization": "awq"}),
        ({"expert_parallel": "required"}, {}),
        ({"extra_args": {"enable_expert_parallel": True}}, {}),
        ({"eplb": "required"}, {}),
        ({"data_parallel_size": 2}, {}),
        ({"yarn": "required"}, {}),
        ({"max_context_tokens": 4097}, {}),
    ],
)
def test_the_impossible_is_told_before_anything_starts(settings, checkpoint):
    changed = ModelCheckpoint(**{name: getattr(CHECKPOINT, name) for name in ModelCheckpoint.__slots__} | checkpoint)
    with pytest.raises(ConfigError):
        plan_engine(EngineSettings(**settings), changed, CPU)


def test_extra_arguments_have_the_last_word():
    plan = plan_engine(EngineSettings(extra_args={"max_num_seqs": 3, "seed": 1}), CHECKPOINT, CPU)
    assert plan.arguments["max_num_seqs"] == 3
    assert plan.arguments["seed"] == 1


def test_greedy_checkpoints_stay_greedy_and_refused_fields_have_no_default():
    given = {"do_sample": False, "temperature": 0.7, "top_k": 20, "min_p": 0.1, "eos_token_id": 2}
    changed = ModelCheckpoint(
        **{name: getattr(CHECKPOINT, name) for name in ModelCheckpoint.__slots__} | {"generation_defaults": given}
    )
    assert default_sampling(changed, frozenset({"spec.sampling.min_p"})) == Sampling(temperature=0.0, top_k=20)


def test_the_demo_checkpoint_is_readable():
    checkpoint = read_checkpoint("")
    assert checkpoint.architecture == "Qwen3_5MoeForConditionalGeneration"
    assert checkpoint.mtp_layers == 1
    assert checkpoint.early_exit == EarlyExitAdvice(EarlyExit.MARKER, 0.05)
    assert checkpoint.eos_ids


@pytest.mark.parametrize(
    "advised",
    [
        {"sign": "off"},
        {"sign": "marker", "marker_probability": 0.01},
        {"sign": "marker", "marker_probability": True},
        {"sign": "probe", "more": 1},
        "marker",
    ],
)
def test_an_early_exit_that_no_checkpoint_can_advise_is_told(tmp_path, advised):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(DEMO_MODEL_DIR / name)
    (tmp_path / "generation_config.json").write_text(json.dumps({"penstock_early_exit": advised}))
    with pytest.raises(ConfigError, match=r"must be an object with sign \(marker or probe\).*, got "):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("fault", ["missing", "no config", "not json", "other architecture", "no weights"])
def test_a_bad_checkpoint_is_told_in_words(tmp_path, fault):
    config = {"architectures": ["Qwen3_5MoeForCausalLM"], "vocab_size": 8, "max_position_embeddings": 8}
    if fault == "other architecture":
        config["architectures"] = ["LlamaForCausalLM"]
    text = "{" if fault == "not json" else json.dumps(config)
    for name, content in {"config.json": text, "tokenizer.json": "{}", "model.safetensors": ""}.items():
        if not (fault == "no config" and name == "config.json") and not (fault == "no weights" and "safe" in name):
            (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError):
        read_checkpoint(str(tmp_path / "nowhere" if fault == "missing" else tmp_path))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ((1, 2), None),
        ((1, 3), 0),
        ((1, 3, 9), 1),
        ((3, 9, 4, 9), None),
        ((3, 9, 4, 3, 9, 9), 2),
        ((4, 3), 0),
        ((3, 3, 9), 1),
    ],
)
def test_thought_tokens_that_a_prompt_already_holds(prompt, expected):
    assert thought_tokens_in_prompt(prompt, Markers(open_id=3, close_id=4)) == expected


def test_an_object_store_is_read_by_vllms_own_streamer(monkeypatch):
    def pull_files(url, folder, allowed, ignored):
        assert (url, allowed) == ("s3://bucket/m/", ["config.json", "generation_config.json"])
        for name in allowed:
            (Path(folder) / name).write_bytes((DEMO_MODEL_DIR / name).read_bytes())

    monkeypatch.setitem(sys.modules, "runai_model_streamer", SimpleNamespace(pull_files=pull_files))
    checkpoint = read_checkpoint("s3://bucket/m")
    assert (checkpoint.model, checkpoint.is_local, checkpoint.experts) == ("s3://bucket/m", False, 16)


def test_an_object_store_without_the_streamer_is_refused_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "runai_model_streamer", None)
    with pytest.raises(ConfigError, match="runai-model-streamer"):
        read_checkpoint("s3://bucket/m")


@pytest.mark.parametrize(
    ("model", "gpus", "gigabytes", "most"),
    [
        ("Qwen/Qwen3.5-397B-A17B-FP8", 8, 141, 64),
        ("Qwen/Qwen3.5-397B-A17B-FP8", 8, 80, 64),
        ("Qwen/Qwen3.5-35B-A3B-FP8", 1, 141, 192),
    ],
)
def test_concurrent_requests_follow_the_memory(model: str, gpus: int, gigabytes: int, most: int) -> None:
    devices = Devices("gpu", gpus, gigabytes * 10**9)
    assert plan_engine(EngineSettings(), card_checkpoint(model), devices).arguments["max_num_seqs"] == most
    asked = EngineSettings(max_concurrent_requests=7)
    assert plan_engine(asked, card_checkpoint(model), devices).arguments["max_num_seqs"] == 7
    assert plan_engine(EngineSettings(), card_checkpoint(model), CPU).arguments["max_num_seqs"] == 64
