"""Write a checkpoint folder in the official layout, which vLLM and Transformers load.

python -m models.small.export --random --out DIR               random weights, for tests that need only the shapes
python -m models.small.export --checkpoint RUN.pt --out DIR    weights of a training run
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from models.small.config import generation_config, model_config, preprocessor_config, video_preprocessor_config
from models.small.language_model import SmallModel
from models.small.tokenizer import load_tokenizer, save_tokenizer


def checkpoint_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters in bfloat16 with their official names. Experts stay fused as (E, 2I, D) and (E, D, I)."""
    return {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}


def save_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write model.safetensors, which everybody may read."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # save_file lets only the owner read it


def export(model: SmallModel, folder: Path, tokenizer: Tokenizer) -> int:
    """Write weights, configurations, tokenizer and template. Return the number of parameters."""
    tensors = checkpoint_tensors(model)
    write_checkpoint(folder, tensors, model_config(), preprocessor_config(), tokenizer)
    return sum(tensor.numel() for tensor in tensors.values())


def write_checkpoint(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict, pictures: dict, tokenizer: Tokenizer
) -> None:
    """Write all files of a checkpoint. `config` and `pictures` become config.json and preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder)
    contents = {
        "config.json": config,
        "generation_config.json": generation_config(),
        "preprocessor_config.json": pictures,
        "video_preprocessor_config.json": video_preprocessor_config(pictures),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder)


def main(words: Sequence[str] | None = None) -> None:
    """Export from the command line, or with these words of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--random", action="store_true", help="random weights")
    source.add_argument("--checkpoint", type=Path, help="a file written by models.small.train")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(words)
    torch.manual_seed(0)
    model = SmallModel(model_config())
    if arguments.checkpoint:
        model.load_state_dict(torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)["model"])
    count = export(model, arguments.out, load_tokenizer())
    print(f"{arguments.out}: {count:,} parameters, {2 * count / 1e6:.1f} MB in bfloat16")


if __name__ == "__main__":
    main()
