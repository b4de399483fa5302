"""Counting on vLLM's routers, without an engine: padding and dummy steps stay out, and off leaves nothing behind."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from penstock.config.schema import EngineSettings
from penstock.engine.vllm import experts
from penstock.engine.vllm.args import plan_engine
from penstock.engine.vllm.checkpoint import card_checkpoint, read_checkpoint
from penstock.engine.vllm.features import Devices
from penstock.engine.vllm.parallel import ExpertLayout
from penstock.errors import ConfigError, FeatureOff

from .test_engine_vllm_profile import H100, plan

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.cpu_build]
EXPERTS, PER_TOKEN = 8, 2


class Layer(torch.nn.Module):
    """As vLLM's MoERunner: a router of its own, and its place in the model."""

    def __init__(self, layer_id: int, *, is_monolithic: bool = False) -> None:
        from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

        super().__init__()
        self.layer_id, self.is_monolithic = layer_id, is_monolithic
        self.router = CPURouter(PER_TOKEN, EXPERTS)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.router.select_experts(logits, logits)[1]


def model(*layers: Layer) -> torch.nn.Module:
    return torch.nn.ModuleList(layers)


def logits(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(seed))


def expected(*chosen: torch.Tensor) -> list[int]:
    return torch.cat(chosen).flatten().bincount(minlength=EXPERTS).tolist()


def step(padding: torch.Tensor | None):
    """A step whose last tokens are padding, as the runner tells its layers."""
    context = SimpleNamespace(is_padding=padding)
    return patch.multiple(experts, get_forward_context=lambda: context, is_forward_context_available=lambda: True)


def test_every_layer_is_counted_by_its_index() -> None:
    layers = [Layer(3), Layer(5)]
    tally = experts.RouterTally(model(*layers))
    assert tally.start() == 2
    chosen = [[layer(logits(tokens, layer.layer_id)) for tokens in (7, 1, 300)] for layer in layers]
    assert tally.rows() == [[3, *expected(*chosen[0])], [5, *expected(*chosen[1])]]
    assert sum(tally.rows()[0][1:]) == 308 * PER_TOKEN


def test_more_steps_than_are_kept_are_counted_too() -> None:
    layer = Layer(0)
    tally = experts.RouterTally(model(layer))
    tally.start()
    chosen = [layer(logits(3, seed)) for seed in range(3 * experts._FLUSH_STEPS + 5)]
    assert len(tally._seen[0]) < experts._FLUSH_STEPS + 1
    chosen.append(layer(logits(experts._FLUSH_TOKENS + 1)))
    chosen.append(layer(logits(1)))
    assert len(tally._seen[0]) == 1
    assert tally.rows() == [[0, *expected(*chosen)]]


def test_padding_and_dummy_steps_are_not_counted() -> None:
    layers = [Layer(0), Layer(1)]
    tally = experts.RouterTally(model(*layers))
    tally.start()
    mask = torch.zeros(16, dtype=torch.bool)
    mask[5:8] = True
    with step(mask[:8]):
        padded = [layer(logits(8)) for layer in layers]
    with step(torch.ones(4, dtype=torch.bool)):
        _ = [layer(logits(4)) for layer in layers]
    mask[:] = True  # the runner uses one buffer again and again
    with step(torch.zeros(6, dtype=torch.bool)):
        whole = [layer(logits(6)) for layer in layers]
    rows = tally.rows()
    for index in range(2):
        assert rows[index] == [index, *expected(padded[index][:5], whole[index])]


def test_off_leaves_nothing_on_the_routers() -> None:
    layer = Layer(0)
    tally = experts.RouterTally(model(layer))
    assert layer.router.capture_fn is None
    tally.start()
    assert layer.router.capture_fn is not None
    chosen = layer(logits(4))
    tally.stop()
    assert layer.router.capture_fn is None
    layer(logits(4))
    assert tally.rows() == [[0, *expected(chosen)]]


def test_kernels_that_choose_by_themselves_cannot_be_counted() -> None:
    assert experts.RouterTally(model(Layer(0, is_monolithic=True))).start() == 0


def test_what_finished_runs_bring_is_counted_without_what_was_cached() -> None:
    tally = experts.OutputTally(ExpertLayout(2, EXPERTS, PER_TOKEN, 4))
    draw = np.random.default_rng(0)
    routed = draw.integers(0, EXPERTS, (10_000, 2, PER_TOKEN)).astype(np.uint8)
    tally.finished(routed, 3)
    tally.finished(routed[:5], 5)
    counts = tally.counts()
    assert (counts.ranks, counts.experts_per_token) == (4, PER_TOKEN)
    for layer in range(2):
        assert list(counts.layers[layer]) == np.bincount(routed[3:, layer].ravel(), minlength=EXPERTS).tolist()


def test_workers_of_pipeline_stages_are_put_together() -> None:
    layout = ExpertLayout(2, 2, 1, 1)
    counts = experts.merged(layout, [[[0, 4, 5]], [], [[1, 6, 7]]])
    assert {layer: list(row) for layer, row in counts.layers.items()} == {0: [4, 5], 1: [6, 7]}


@pytest.mark.parametrize(
    ("settings", "enabled", "why"),
    [
        ({}, True, "default"),
        ({"routing": "off"}, False, "switched off"),
    ],
)
def test_on_a_cpu_it_is_on(settings: dict, enabled: bool, why: str) -> None:
    planned = plan_engine(EngineSettings(**settings), read_checkpoint(""), Devices("cpu"))
    [feature] = [feature for feature in planned.profile if feature.name == "routing"]
    assert (feature.enabled, feature.reason) == (enabled, why)
    assert planned.layout == (ExpertLayout(6, 16, PER_TOKEN, 1) if enabled else None)
    assert "enable_return_routed_experts" not in planned.arguments


def test_on_a_gpu_it_must_be_asked_for() -> None:
    name = "Qwen/Qwen3.5-397B-A17B-FP8"
    assert plan(name, 8, H100).layout is None
    asked = plan(name, 8, H100, routing="on")
    assert asked.arguments["enable_return_routed_experts"] is True
    assert asked.layout == ExpertLayout(60, 512, 10, 8)


def test_a_model_without_experts_has_none_to_count() -> None:
    checkpoint = card_checkpoint("Qwen/Qwen3.5-27B-FP8")
    planned = plan_engine(EngineSettings(), checkpoint, Devices("gpu", 1, H100))
    assert [f.reason for f in planned.profile if f.name == "routing"] == ["the model has no experts"]
    with pytest.raises(ConfigError, match=r"engine\.routing is required, but the model has no experts"):
        plan_engine(EngineSettings(routing="required"), checkpoint, Devices("gpu", 1, H100))


async def test_an_engine_that_does_not_count_says_why() -> None:
    from penstock.engine.vllm.engine import VllmEngine
    from penstock.types import Feature

    engine = VllmEngine.__new__(VllmEngine)
    engine._layout = None
    engine._card = SimpleNamespace(profile=(Feature("routing", False, "", "switched off"),))  # type: ignore[assignment]
    with pytest.raises(FeatureOff, match="not counted: switched off"):
        await engine.expert_counts()


async def test_counting_is_switched_on_and_off_while_the_engine_runs() -> None:
    from penstock.engine.vllm.engine import VllmEngine

    asked: list[object] = []

    async def collective_rpc(method: str, args: tuple[object, ...] = ()) -> list[object]:
        asked.append((method, *args))
        return [4 if args == (True,) else 0] if method == "count_experts" else [[[0, 3, 1]]]

    engine = VllmEngine.__new__(VllmEngine)
    engine._llm = SimpleNamespace(collective_rpc=collective_rpc)
    engine._card = SimpleNamespace(profile=())  # type: ignore[assignment]
    layout = ExpertLayout(4, 2, 1, 1)
    assert await engine.count_experts(layout) == 4
    assert list((await engine.expert_counts()).layers[0]) == [3, 1]
    assert await engine.count_experts(None) == 0
    with pytest.raises(FeatureOff):
        await engine.expert_counts()
    assert asked == [("count_experts", True), ("expert_counts",), ("count_experts", False)]
