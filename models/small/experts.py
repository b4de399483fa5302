"""Measure the expert load of the held-out set: per layer, the share of each routed expert, and the imbalance.

python -m models.small.experts [--model DIR] [--questions 8]

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

from models.small.collate import pad
from models.small.config import END_OF_TEXT, EXPERTS_PER_TOKEN
from models.small.encoding import Encoder
from models.small.evaluate import question_row
from models.small.languages import LANGUAGES
from models.small.questions import KINDS, held_out
from models.small.tokenizer import load_tokenizer

BATCH = 64


def texts(encoder: Encoder, count: int) -> list[list[int]]:
    """Return the token ids of whole held-out conversations, `count` of each kind and language."""
    asked = [one for kind in KINDS for language in LANGUAGES for one in held_out(kind, language, count)]
    return [question_row(encoder, one, None).ids for one in asked]


def loads(model: Path, rows: list[list[int]]) -> Tensor:
    """Return the tokens per expert, as (layers, experts)."""
    declare_torchvision_operators()
    from transformers import Qwen3_5MoeForConditionalGeneration

    reference = Qwen3_5MoeForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
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
    parser.add_argument("--questions", type=int, default=8, help="of each kind and language")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = texts(Encoder(load_tokenizer()), arguments.questions)
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
