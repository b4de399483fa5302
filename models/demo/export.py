"""Write a checkpoint folder that vLLM and Transformers load.

python -m models.demo.export --random --out DIR               random weights, for tests that need only the shapes
python -m models.demo.export --checkpoint RUN.pt --out DIR    weights of a training run
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from models.demo.config import generation_config, text_config
from models.demo.language_model import DemoModel
from models.demo.tokenizer import build_tokenizer, save_tokenizer


def checkpoint_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters in bfloat16 with their official names. Experts stay fused as (E, 2I, D) and (E, D, I)."""
    return {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}


def save_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write model.safetensors, which everybody may read."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # save_file lets only the owner read it


def export(model: DemoModel, folder: Path) -> int:
    """Write weights, configs, tokenizer and template. Returns the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint_tensors(model)
    save_tensors(tensors, folder)
    for name, content in (("config.json", text_config()), ("generation_config.json", generation_config())):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(build_tokenizer(), folder)
    return sum(tensor.numel() for tensor in tensors.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--random", action="store_true", help="random weights")
    source.add_argument("--checkpoint", type=Path, help="a file written by models.demo.train")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = DemoModel(text_config())
    if arguments.checkpoint:
        model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True)["model"])
    count = export(model, arguments.out)
    print(f"{arguments.out}: {count:,} parameters, {2 * count / 1e6:.1f} MB in bfloat16")


if __name__ == "__main__":
    main()
