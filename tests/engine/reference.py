"""The default checkpoint (FP8) on the Transformers modelling code, in float32: what the engine is held against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import penstock
import torch
from penstock.engine.vllm.compat import declare_torchvision_operators
from penstock.engine.vllm.fp8.blocks import dequantize
from safetensors.torch import load_file

_PACKAGE = Path(penstock.__file__).parent
EXPERTS_PER_TOKEN = 2


def reference() -> Any:
    declare_torchvision_operators()
    from transformers import Qwen3_5MoeForConditionalGeneration

    model = Qwen3_5MoeForConditionalGeneration.from_pretrained(_PACKAGE / "demo_model", dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(_weights(), strict=False)
    assert not missing
    assert all(name.startswith("mtp.") for name in unexpected)  # Transformers has no draft layer
    return model


def apart(model: Any, token_ids: Sequence[int], one: int, other: int) -> float:
    """How far two tokens' logits lie apart after these, in nats."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids])).logits[0, -1]
    return abs(float(logits[one] - logits[other]))


def router_margins(model: Any, token_ids: Sequence[int]) -> list[float]:
    """Return, per layer, how far the last expert chosen for the last token lies above the next one, in logits."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids]), output_router_logits=True).router_logits
    best = [layer[-1].log_softmax(-1).topk(EXPERTS_PER_TOKEN + 1).values for layer in logits]
    return [float(values[-2] - values[-1]) for values in best]


def _weights() -> dict[str, torch.Tensor]:
    """float32 weights in the names of the modelling code, which keeps all experts of a layer in one tensor."""
    stored = load_file(_PACKAGE / "demo_model_fp8" / "model.safetensors")
    scales = {name for name in stored if name.endswith("_scale_inv")}
    plain = {
        name: dequantize(tensor, stored[f"{name}_scale_inv"], dtype=torch.float32)
        if f"{name}_scale_inv" in scales
        else tensor.float()
        for name, tensor in stored.items()
        if name not in scales
    }
    found, parts = {}, {}
    for name, tensor in plain.items():
        if match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight", name):
            parts.setdefault(match[1], {})[match[3], int(match[2])] = tensor
        else:
            found[name] = tensor
    for prefix, experts in parts.items():
        count = 1 + max(number for _, number in experts)
        gate_up = [torch.cat([experts["gate", n], experts["up", n]]) for n in range(count)]
        found[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        found[f"{prefix}.down_proj"] = torch.stack([experts["down", n] for n in range(count)])
    return found
