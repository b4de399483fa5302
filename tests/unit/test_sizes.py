"""Sizes on paper against what is known: names of models, stored tensors, and what vLLM logged on GPUs."""

from __future__ import annotations

import json
import struct
from collections import Counter

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from penstock.engine.sizing.cache import CPU_BLOCK_TOKENS, CacheSettings, plan_cache
from penstock.engine.sizing.shape import Shape, read_shape
from penstock.engine.sizing.vision import vision_weight_bytes
from penstock.engine.sizing.weights import ParallelLayout, active_parameters, inventory, parameters, weight_bytes
from penstock.engine.vllm.cards import CARDS
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock.errors import ConfigError

GIB = 2**30


def card(name: str) -> Shape:
    return read_shape(CARDS[f"Qwen/Qwen3.5-{name}"])


def demo() -> Shape:
    return read_shape(read_checkpoint(str(DEMO_MODEL_DIR)).text)


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("397B-A17B", 397, 17), ("122B-A10B", 122, 10), ("35B-A3B", 35, 3), ("27B", 27, 27)],
)
def test_the_cards_come_out_at_the_billions_in_their_names(name: str, billions: float, active: float) -> None:
    assert parameters(card(name)) / 1e9 == pytest.approx(billions, rel=0.015)
    # Names count the embedding too, of which a token uses one row.
    assert active_parameters(card(name)) / 1e9 == pytest.approx(active, rel=0.11)


@pytest.mark.parametrize(("folder", "fp8"), [(DEMO_MODEL_DIR, False), (DEMO_MODEL_FP8_DIR, True)])
def test_the_demo_models_bytes_are_those_of_its_file(folder, fp8) -> None:
    with (folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    stored: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            stored[name.rsplit(".")[-1]] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    # vLLM keeps A_log in float32, the file in bfloat16.
    tower = read_checkpoint(str(folder)).tower("required")
    assert tower is not None
    assert weight_bytes(demo(), fp8) + vision_weight_bytes(tower) == sum(stored.values()) + stored["A_log"]


PUBLIC_LOGS = {
    # Two RTX 3090, Qwen3.8-27B-FP8 (the 27B's shape): github.com/mitchross/talos-argocd-proxmox/pull/1995
    "27B on two, no MTP": ("27B", ParallelLayout(2), 0, 4.99, 131_072, 302_921),
    # The same model with three drafts: github.com/noonghunna/club-3090/pull/594
    "27B on two, MTP": ("27B", ParallelLayout(2), 3, 5.33, 262_144, 300_220),
    # One RTX 5090, Qwen3.6-35B-A3B: github.com/noonghunna/club-3090/issues/612
    "35B on one, no MTP": ("35B-A3B", ParallelLayout(), 0, 5.98, 131_072, 567_978),
}


@pytest.mark.parametrize("case", PUBLIC_LOGS)
def test_cache_sizes_are_those_that_vllm_logged_on_gpus(case: str) -> None:
    name, layout, drafted, available_gib, window, logged = PUBLIC_LOGS[case]
    cache = plan_cache(card(name), layout, CacheSettings(kv_fp8=True, drafted=drafted))
    assert cache.tokens(int(available_gib * GIB), window) == logged


def test_block_sizes_are_those_that_vllm_logged() -> None:
    assert plan_cache(card("27B"), ParallelLayout(2), CacheSettings(kv_fp8=True)).block_tokens == 1568
    assert (
        plan_cache(
            demo(), ParallelLayout(), CacheSettings(kv_fp8=True, drafted=2, min_block_tokens=CPU_BLOCK_TOKENS)
        ).block_tokens
        == 384
    )


def test_beyond_its_heads_tensor_parallel_keeps_copies_of_the_cache() -> None:
    per_token = [
        plan_cache(card("397B-A17B"), ParallelLayout(n), CacheSettings(kv_fp8=True)).kv_bytes_per_token
        for n in (1, 2, 4, 8)
    ]
    assert per_token == [15_360, 7_680, 7_680, 7_680]


def test_a_device_has_its_share_and_what_is_not_divided() -> None:
    shape = card("397B-A17B")
    whole = weight_bytes(shape, fp8=True)
    eight = weight_bytes(shape, fp8=True, layout=ParallelLayout(8, 1, experts=True))
    assert whole / 8 < eight < whole / 8 * 1.01
    replicas = weight_bytes(shape, fp8=True, layout=ParallelLayout(1, 8, experts=True))
    experts = sum(m.bytes(True) for m in inventory(shape) if m.name.startswith("experts."))
    assert replicas == whole - experts * 7 // 8
    alone = weight_bytes(shape, fp8=True, layout=ParallelLayout(1, 8, experts=False))
    assert alone == whole


def test_no_draft_layer_without_mtp() -> None:
    shape = card("35B-A3B")
    assert weight_bytes(shape, True) - weight_bytes(shape, True, draft=False) > 0.8e9
    assert plan_cache(shape, ParallelLayout(), CacheSettings(kv_fp8=True)).draft_kv_bytes_per_token == 0


def test_a_model_without_recurrent_layers_has_keys_and_values_alone() -> None:
    text = dict(CARDS["Qwen/Qwen3.5-35B-A3B"], layer_types=["full_attention"] * 40)
    cache = plan_cache(read_shape(text), ParallelLayout(), CacheSettings(kv_fp8=False))
    assert (cache.state_bytes, cache.state_blocks, cache.block_tokens) == (0, 0, 16)
    assert cache.kv_bytes_per_token == 40 * 2 * 2 * 256 * 2


def test_what_a_config_lacks_is_named() -> None:
    text = dict(CARDS["Qwen/Qwen3.5-35B-A3B"])
    del text["num_key_value_heads"]
    with pytest.raises(ConfigError, match="lacks num_key_value_heads"):
        read_shape(text)


@pytest.mark.parametrize(
    ("tensor", "said"), [(3, "3 devices do not divide 2 key-value"), (32, "Gated DeltaNet key heads")]
)
def test_heads_that_do_not_divide_are_told(tensor: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_cache(card("397B-A17B"), ParallelLayout(tensor), CacheSettings(kv_fp8=True))
