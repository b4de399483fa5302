"""Presets should be plans that the service makes its own: accepted on the GPUs they name, with an honest size."""

from __future__ import annotations

import math
import tomllib

import pytest
import yaml
from penstock.config.schema import Config
from penstock.engine.vllm.args import plan_engine
from penstock.engine.vllm.checkpoint import card_checkpoint
from penstock.engine.vllm.features import Devices
from penstock_gateway.settings import Settings as GatewaySettings

from tests.chart.chart import CHART, configuration, container, is_gateways, needs_helm, of_kind, render

pytestmark = needs_helm
GPU_BYTES = 80 * 10**9
PRESETS = [path.stem for path in sorted((CHART / "presets").glob("qwen*.yaml"))]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_service_should_plan_what_the_preset_says(preset: str) -> None:
    objects = render({"preset": preset})
    said = tomllib.loads(configuration(objects))["engine"]
    settings = Config.model_validate({"engine": said | {"leader_address": "leader"}}).engine
    gpus = int(container(objects)["resources"]["limits"]["nvidia.com/gpu"])

    plan = plan_engine(settings, card_checkpoint(settings.model), Devices("gpu", gpus, GPU_BYTES))

    assert plan.arguments["max_model_len"] == settings.max_context_tokens
    sizes = [plan.arguments.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline", "data")]
    assert math.prod(sizes) == gpus * settings.nodes
    assert plan.arguments.get("nnodes", 1) == settings.nodes
    switched_on = {feature.name for feature in plan.profile if feature.enabled}
    assert switched_on >= {"fp8_weights", "fp8_kv_cache", "mtp", "images"}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_startup_budget_should_rest_on_the_weights_real_size(preset: str) -> None:
    values = yaml.safe_load((CHART / "presets" / f"{preset}.yaml").read_text())
    size = card_checkpoint(values["config"]["engine"]["model"]).weight_bytes(fp8=True)
    assert values["model"]["sizeGiB"] * 2**30 == pytest.approx(size, rel=0.15)
    assert values["model"]["sizeGiB"] * 2**30 >= size * 0.98


@pytest.mark.parametrize("preset", PRESETS)
def test_messages_should_be_as_large_as_the_images_that_are_on(preset: str) -> None:
    """A drained call moves as one message, with its images: 1.4 times their bytes."""
    off = {"engine": {"images": "off"}}
    shown, without, fixed = (
        Config.model_validate(said | {"engine": said["engine"] | {"leader_address": "leader"}})
        for said in (
            tomllib.loads(configuration(render({"preset": preset, "config": config})))
            for config in ({}, off, {"server": {"max_message_bytes": 9 * 2**20}})
        )
    )
    assert shown.engine.images == "required"
    assert without.engine.images == "off"
    assert shown.max_message_bytes - without.max_message_bytes >= shown.limits.max_image_bytes
    assert shown.max_message_bytes > shown.limits.max_image_bytes + (shown.resolved_limits.max_prompt_bytes or 0)
    assert fixed.max_message_bytes == 9 * 2**20


@pytest.mark.parametrize("preset", PRESETS)
def test_the_gateways_bodies_should_hold_the_windows_text_and_the_images(preset: str) -> None:
    objects = render({"preset": preset, "gateway": {"enabled": True}})
    settings = Config.model_validate({"engine": tomllib.loads(configuration(objects))["engine"] | {"nodes": 1}})
    (deployment,) = [found for found in of_kind(objects, "Deployment") if is_gateways(found)]
    (box,) = deployment["spec"]["template"]["spec"]["containers"]
    limit = "--limit=max_body_bytes="
    said = [one.removeprefix(limit) for one in box["args"] if one.startswith(limit)]
    most = int(said[0]) if said else GatewaySettings().max_body_bytes
    assert most >= settings.limits.max_image_bytes * 4 / 3 + (settings.resolved_limits.max_prompt_bytes or 0)


def test_every_preset_should_say_whether_images_are_on() -> None:
    for path in (CHART / "presets").glob("*.yaml"):
        said = yaml.safe_load(path.read_text())["config"]["engine"]["images"]
        assert said == ("required" if path.stem in PRESETS else "auto"), path.stem


def test_every_preset_should_be_told_of_in_the_readme() -> None:
    text = (CHART / "README.md").read_text()
    for path in (CHART / "presets").glob("*.yaml"):
        assert f"| `{path.stem}` |" in text
