"""The default checkpoint (FP8) on the Transformers modelling code, in float32: what the engine is held against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import penstock
import torch
from penstock.engine_vllm.compat import declare_torchvision_operators
from penstock.engine_vllm.fp8.blocks import dequantize
from safetensors.torch import load_file

_PACKAGE = Path(penstock.__file__).parent
EXPERTS_PER_TOKEN = 2


def reference() -> Any:
    declare_torchvision_operators()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(_PACKAGE / "demo_model", dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(_weights(), strict=False)
    assert not missing
    assert all(name.startswith("mtp.") for name in unexpected)  # Transformers has no draft layer
    return model


@dataclass(frozen=True, slots=True)
class Trade:
    """The last token's last expert chosen and the first one that is not, in one layer."""

    steps: float
    """How far their logits lie apart, in bfloat16's steps at their size."""
    logits: torch.Tensor
    """The next token's, if these two experts trade places."""


def next_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0, -1]


def trades(model: Any, token_ids: Sequence[int]) -> list[Trade]:
    """One per layer."""
    return [_trade(model, token_ids, layer.mlp.gate) for layer in model.model.layers]


def _trade(model: Any, token_ids: Sequence[int], gate: Any) -> Trade:
    steps = 0.0

    def trade(_module: Any, _inputs: Any, output: Any) -> Any:
        nonlocal steps
        logits, scores, chosen = output
        best = logits[-1].topk(EXPERTS_PER_TOKEN + 1)
        stays, goes, comes = best.indices[:-2], *best.indices[-2:]
        size = best.values[-2:].abs().max()
        steps = float((logits[-1, goes] - logits[-1, comes]) / torch.exp2(size.log2().floor() - 7))
        chosen[-1] = torch.cat([stays, comes[None]])
        scores[-1] = logits[-1].softmax(-1)[chosen[-1]]
        scores[-1] /= scores[-1].sum()
        return logits, scores, chosen

    hook = gate.register_forward_hook(trade)
    try:
        logits = next_logits(model, token_ids)
    finally:
        hook.remove()
    return Trade(steps, logits)


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
