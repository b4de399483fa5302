"""Write a checkpoint of 83 million random weights in the official layout, with Transformers' own classes.

python -m models.official_layout --out DIR    in bfloat16 and in FP8, a few seconds

It has what the large checkpoints have and `models.small` has not: layers by `full_attention_interval`, attention heads
of 256 and of 72 (in the tower), widths in the tower that FP8 blocks cut, more rows of the vocabulary than the tokenizer
has ids, and an image processor that takes 16 megapixels. For tests of the way from a checkpoint to a reply.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from penstock.engine.vllm.compat import declare_torchvision_operators
from penstock.engine.vllm.fp8.write import write

from models.small import config as small
from models.small.export import checkpoint_tensors, write_checkpoint
from models.small.tokenizer import load_tokenizer

VOCAB_SIZE = small.VOCAB_SIZE + 128
"""Rows of embedding and head; the last ones stand for no token, as in the official checkpoints."""
IMAGE_PIXELS = (65_536, 16_777_216)
"""Area in pixels to which the official image processor scales what is smaller or larger."""


def layout_config() -> dict[str, Any]:
    """Return the content of config.json."""
    text = {
        **small.text_config(),
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "full_attention_interval": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "num_experts": 22,
        "num_experts_per_tok": 4,
    }
    del text["layer_types"]
    text["rope_parameters"] = {**text["rope_parameters"], "rope_theta": 10_000_000, "mrope_section": [11, 11, 10]}
    vision = {
        **small.vision_config(),
        "depth": 3,
        "hidden_size": 576,
        "intermediate_size": 2152,
        "num_heads": 8,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 48 * 48,
    }
    return {**small.model_config(), "text_config": text, "vision_config": vision}


def official_layout(folder: Path) -> Path:
    """Write the checkpoint in bfloat16 and in FP8 under `folder`. Return the folder of the one in FP8."""
    declare_torchvision_operators()
    torch.manual_seed(0)
    config, (least, most) = layout_config(), IMAGE_PIXELS
    pictures = small.preprocessor_config() | {"size": {"shortest_edge": least, "longest_edge": most}}
    target = folder / "bfloat16"
    write_checkpoint(target, _tensors(config), config, pictures, load_tokenizer())
    write(target, folder / "fp8")
    return folder / "fp8"


def _tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of Transformers' class, and those of the draft layer (MTP), which that class leaves out."""
    from transformers import (
        Qwen3_5MoeConfig,
        Qwen3_5MoeForConditionalGeneration,
        Qwen3_5MoeTextConfig,
        Qwen3_5MoeTextModel,
    )

    found = checkpoint_tensors(Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(**config)))
    # The draft layer is one of full attention; one of another random model is as random as its own.
    text = config["text_config"]
    interval, width = text["full_attention_interval"], text["hidden_size"]
    whole = Qwen3_5MoeTextModel(Qwen3_5MoeTextConfig(**{**text, "num_hidden_layers": interval}))
    found |= {f"mtp.layers.0.{name}": value for name, value in checkpoint_tensors(whole.layers[-1]).items()}
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    found |= {f"mtp.{name}.weight": torch.zeros(width, dtype=torch.bfloat16) for name in norms}
    return found | {"mtp.fc.weight": (torch.randn(width, 2 * width) * text["initializer_range"]).to(torch.bfloat16)}


def main() -> None:
    """Write the checkpoint from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    print(official_layout(parser.parse_args().out))


if __name__ == "__main__":
    main()
