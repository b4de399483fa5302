"""The vision tower on paper: parameters of Transformers' own classes, its shares on devices, and tokens of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from penstock.config.schema import EngineSettings
from penstock.engine.sizing.vision import (
    VisionShape,
    encoded_bytes,
    encoding_bytes,
    read_vision,
    vision_inventory,
    vision_parameters,
    vision_weight_bytes,
)
from penstock.engine.vllm.cards import CARDS
from penstock.engine.vllm.checkpoint import card_checkpoint
from penstock.engine.vllm.compat import declare_torchvision_operators
from penstock.engine.vllm.features import Devices, resolve
from penstock.errors import ConfigError

BIG, SMALL = "Qwen/Qwen3.5-397B-A17B-FP8", "Qwen/Qwen3.5-35B-A3B-FP8"
SQUARE = 4_194_304


def card(name: str = BIG) -> VisionShape:
    return read_vision(card_checkpoint(name).vision)


def in_transformers(kind: str, config: Mapping[str, Any]) -> int:
    """The parameters of the official class, which allocates nothing on the meta device."""
    declare_torchvision_operators()
    import transformers

    module = getattr(transformers.models, kind)
    configuration, model = {
        "qwen3_5_moe": ("Qwen3_5MoeVisionConfig", "Qwen3_5MoeVisionModel"),
        "qwen3_vl": ("Qwen3VLVisionConfig", "Qwen3VLVisionModel"),
    }[kind]
    with torch.device("meta"):
        made = getattr(module, model)(getattr(module, configuration)(**config))
    return sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize("name", CARDS)
def test_parameters_are_those_of_the_official_class(name: str) -> None:
    vision = card_checkpoint(name).vision
    assert vision_parameters(read_vision(vision)) == in_transformers("qwen3_5_moe", vision)


def test_layers_whose_output_goes_to_the_text_model_have_mergers_of_their_own() -> None:
    """Qwen3-VL has them; Qwen3.5 has none."""
    vision = card_checkpoint(BIG).vision | {"deepstack_visual_indexes": [8, 16, 24]}
    assert vision_parameters(read_vision(vision)) == in_transformers("qwen3_vl", vision)


def test_the_large_models_tower_has_less_than_half_a_billion_parameters_in_bfloat16() -> None:
    assert vision_parameters(card(BIG)) == 456_010_480
    assert vision_parameters(card(SMALL)) == 446_571_248
    assert vision_weight_bytes(card(BIG)) == 2 * 456_010_480


def test_a_device_has_its_share_of_matrices_and_all_norms_positions_and_patches() -> None:
    shape = card()
    whole = 1152 * 3 * 2 * 16 * 16 + 1152 + 2304 * 1152  # patches and positions
    whole += 27 * (4 * 1152 + 1152 + 1152)  # two norms, biases of proj and fc2
    whole += 2 * 1152 + 4096  # the merger's norm and last bias
    divided = vision_parameters(shape) - whole
    for tensor in (1, 2, 4, 8, 16):
        assert vision_weight_bytes(shape, tensor) == 2 * (divided // tensor + whole)
    with pytest.raises(ConfigError, match="32 devices do not divide 16 heads of the vision tower"):
        vision_weight_bytes(shape, 32)


@pytest.mark.parametrize(
    ("pixels", "tokens"), [(1, 64), (65_536, 64), (1_048_576, 1024), (SQUARE, 4096), (40_000_000, 4096)]
)
def test_a_token_is_a_square_of_32_pixels(pixels: int, tokens: int) -> None:
    assert card().token_pixels == 1024
    assert card().tokens(pixels, SQUARE) == tokens


def test_operations_are_two_per_weight_and_row_and_attention_of_all_patches() -> None:
    patches, shape = 4 * 1024, card()
    block = 4 * 1152**2 + 2 * 1152 * 4304
    merger = 4608**2 + 4608 * 4096
    embedding = 1536 * 1152
    expected = 2 * patches * (27 * block + embedding) + 2 * 1024 * merger + 27 * 4 * patches**2 * 1152
    assert shape.operations(1024) == expected


def test_the_engine_makes_room_for_the_largest_image_or_a_steps_tokens() -> None:
    shape = card()
    assert encoded_bytes(shape, 4096, 2048) == 4096 * 4096 * 2
    assert encoded_bytes(shape, 4096, 8192) == 8192 * 4096 * 2
    # Two images of 4,096 tokens are in a step of 8,192, and one in a step of 6,000.
    one = encoding_bytes(shape, 4096, 2048)
    assert one == 4 * 4096 * 2 * (1536 + 3 * 1152 + 8 * 1152)
    assert encoding_bytes(shape, 4096, 6000) == one
    assert encoding_bytes(shape, 4096, 8192) == 2 * one
    assert encoding_bytes(shape, 4096, 2048, tensor=8) < one / 2


def test_only_the_tower_is_for_images() -> None:
    assert {matrix.part.name for matrix in vision_inventory(card())} == {"VISION"}


def test_what_a_config_lacks_is_named() -> None:
    vision = card_checkpoint(BIG).vision
    with pytest.raises(ConfigError, match=r"lacks vision_config\.depth"):
        read_vision({name: value for name, value in vision.items() if name != "depth"})
    with pytest.raises(ConfigError, match="not a number"):
        read_vision(vision | {"patch_size": [16, 16]})


def test_replicas_that_the_towers_heads_do_not_divide_into_read_no_images() -> None:
    checkpoint = card_checkpoint(BIG)
    devices = Devices("gpu", 32, 80 * 10**9)
    wide = EngineSettings(tensor_parallel_size=32)
    feature = resolve(wide, checkpoint, devices).images
    assert (feature.enabled, feature.reason) == (
        False,
        "32 devices per replica do not divide the tower's 16 heads",
    )
    with pytest.raises(ConfigError, match=r"engine\.images"):
        resolve(wide.model_copy(update={"images": "required"}), checkpoint, devices)
