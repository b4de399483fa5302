"""Write a checkpoint with random weights, for tests and benches of what does not depend on what the model says."""

from __future__ import annotations

from pathlib import Path

import torch
from penstock.engine.vllm.fp8.write import write

from models.small.config import model_config
from models.small.export import export
from models.small.language_model import SmallModel
from models.small.tokenizer import load_tokenizer


def random_checkpoint(folder: Path) -> Path:
    """Write the checkpoint in bfloat16 and in FP8 under `folder`. Return the folder of the one in FP8."""
    torch.manual_seed(0)
    export(SmallModel(model_config()), folder / "bfloat16", load_tokenizer())
    write(folder / "bfloat16", folder / "fp8")
    return folder / "fp8"
