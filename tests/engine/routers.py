"""The router of Transformers' modelling code, with the very weights that vLLM serves: what expert counts must equal."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from penstock.engine.vllm.compat import declare_torchvision_operators
from penstock.engine.vllm.fp8.blocks import dequantize
from safetensors.torch import load_file
from torch import Tensor

_EXPERT = re.compile(r"(.*mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def served_weights() -> dict[str, Tensor]:
    """The FP8 demo checkpoint widened as the engine does, its experts stacked as in the bfloat16 one."""
    stored = load_file(DEMO_MODEL_FP8_DIR / "model.safetensors")
    plain: dict[str, Tensor] = {}
    parts: defaultdict[str, dict[tuple[int, str], Tensor]] = defaultdict(dict)
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(f"{name}_scale_inv")
        weight = tensor if scale is None else dequantize(tensor, scale)
        if found := _EXPERT.fullmatch(name):
            parts[found[1]][int(found[2]), found[3]] = weight
        else:
            plain[name] = weight
    for name, experts in parts.items():
        numbers = range(len(experts) // 3)
        plain[f"{name}.gate_up_proj"] = torch.stack(
            [torch.cat([experts[n, "gate"], experts[n, "up"]]) for n in numbers]
        )
        plain[f"{name}.down_proj"] = torch.stack([experts[n, "down"] for n in numbers])
    return plain


def router_logits(prompts: list[list[int]]) -> list[Tensor]:
    """Per layer: (all tokens of all prompts, experts), in float32."""
    declare_torchvision_operators()
    from transformers import Qwen3_5MoeForConditionalGeneration

    model = Qwen3_5MoeForConditionalGeneration.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32).eval()
    weights = {name: tensor.float() for name, tensor in served_weights().items() if not name.startswith("mtp.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name == "lm_head.weight" for name in missing)  # tied
    with torch.inference_mode():
        each = [model(torch.tensor([prompt]), output_router_logits=True).router_logits for prompt in prompts]
    return [torch.cat(layer) for layer in zip(*each, strict=True)]
