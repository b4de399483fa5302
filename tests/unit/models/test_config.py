"""The small model's config.json: read by the official classes, fit for FP8 block scales and tensor parallelism."""

from typing import Any

from models.small import config


def test_special_ids_are_the_order_of_the_special_tokens() -> None:
    assert config.SPECIAL_TOKENS[config.THINK_CLOSE] == "</think>"
    assert config.SPECIAL_TOKENS[config.TOOL_RESPONSE_CLOSE] == "</tool_response>"
    assert config.SPECIAL_TOKENS[config.IMAGE_PAD] == "<|image_pad|>"
    assert config.SPECIAL_TOKENS[config.VIDEO_PAD] == "<|video_pad|>"


def test_the_official_classes_read_the_configuration() -> None:
    from transformers import Qwen3_5MoeConfig

    read: Any = Qwen3_5MoeConfig(**config.model_config())
    assert (read.image_token_id, read.vision_config.depth) == (config.IMAGE_PAD, 4)
    assert read.text_config.layer_types.count("full_attention") == 2
    assert read.head_dtype == "float32"
    assert read.text_config.eos_token_id == config.IM_END


def test_block_scales_and_two_ranks_fit() -> None:
    text, vision = config.text_config(), config.vision_config()
    widths = ("hidden_size", "head_dim", "moe_intermediate_size", "shared_expert_intermediate_size")
    assert all(text[name] % 128 == 0 for name in widths)
    assert vision["hidden_size"] % 128 == vision["intermediate_size"] % 128 == 0
    counts = ("num_attention_heads", "num_key_value_heads", "linear_num_key_heads", "num_experts")
    assert all(text[name] % 2 == 0 for name in counts)
    rope = text["rope_parameters"]
    assert sum(rope["mrope_section"]) == text["head_dim"] * rope["partial_rotary_factor"] / 2
