"""Measure the expert load of the held-out set: per layer, the share of each routed expert, and the imbalance.

python -m models.demo.experts [--model DIR] [--questions 42]

The tokens are each question's whole text with thought and answer, as the generator writes them. The router is that of
the Transformers modelling code. Exits with 1 if an expert of a layer gets no token.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from penstock.engine.vllm.compat import declare_torchvision_operators
from torch import Tensor

from models.demo.config import END_OF_TEXT, EXPERTS_PER_TOKEN, IM_END, THINK_CLOSE
from models.demo.data import Encoder, held_out, pad
from models.demo.questions import KINDS
from models.demo.tokenizer import build_tokenizer

BATCH = 64


def texts(encoder: Encoder, per_kind: int) -> list[list[int]]:
    """Return the token ids of whole held-out conversations, `per_kind` of each kind."""
    rows = []
    for kind in KINDS:
        for asked in held_out(kind, per_kind):
            said = [*encoder.thought(asked), THINK_CLOSE, *encoder.blank_line, *encoder.encode(asked.answer), IM_END]
            rows.append([*encoder.prompt(asked, None, [], thinking=True), *said])
    return rows


def loads(model: Path, rows: list[list[int]]) -> Tensor:
    """Return the tokens per expert, as (layers, experts)."""
    declare_torchvision_operators()
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    totals: Tensor | None = None
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            ids = torch.tensor(pad(batch, END_OF_TEXT))
            said = torch.tensor(pad([[1] * len(row) for row in batch], 0)).bool().flatten()
            logits = reference(ids, output_router_logits=True).router_logits
            chosen = [layer[said].topk(EXPERTS_PER_TOKEN).indices.flatten() for layer in logits]
            counts = torch.stack([c.bincount(minlength=logits[0].shape[-1]) for c in chosen])
            totals = counts if totals is None else totals + counts
    assert totals is not None
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("service/penstock/demo_model"))
    parser.add_argument("--questions", type=int, default=42, help="per kind")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = texts(Encoder(build_tokenizer()), arguments.questions)
    counts = loads(arguments.model, rows)
    for number, layer in enumerate(counts.float()):
        shares = [round(share, 3) for share in (layer / layer.sum()).tolist()]
        imbalance = round((layer.max() / layer.mean()).item(), 3)
        print(json.dumps({"layer": number, "shares": shares, "imbalance": imbalance}))
    unused = int((counts == 0).sum())
    print(json.dumps({"questions": len(rows), "tokens": sum(map(len, rows)), "unused_experts": unused}))
    sys.exit(1 if unused else 0)


if __name__ == "__main__":
    main()
