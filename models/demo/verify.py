"""Check an exported checkpoint on vLLM: agreement with Transformers, accuracy at several budgets, and drafts.

python -m models.demo.verify [--model DIR] [--questions 42] [--drafts 2] [--agreement-only]

Decoding is greedy, on held-out questions. For a budget of N, the model thinks for N tokens, and then the closing marker
is forced, as by the server.
"""

import argparse
import json
import os
import time
from datetime import date
from pathlib import Path

import torch
from penstock.engine.vllm.compat import declare_torchvision_operators

from bench.machine import machine
from models.demo.config import END_OF_TEXT, IM_END, THINK_CLOSE
from models.demo.data import Encoder, held_out
from models.demo.evaluate import BUDGETS
from models.demo.question import Question
from models.demo.questions import KINDS, MULTI_STEP
from models.demo.tokenizer import build_tokenizer

MAX_TOKENS = 160
Prompts = list[list[int]]


class OnVllm:
    """Greedy decoding on vLLM, of many prompts at a time or one by one."""

    def __init__(self, model: Path, drafts: int) -> None:
        from vllm import LLM, SamplingParams

        speculation = {"speculative_config": {"method": "mtp", "num_speculative_tokens": drafts}} if drafts else {}
        self._engine = LLM(
            str(model),
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=2048,
            enable_prefix_caching=False,
            disable_log_stats=False,
            **speculation,
        )
        self._sampling = SamplingParams

    def generate(self, prompts: Prompts, max_tokens: int = MAX_TOKENS) -> Prompts:
        """Return the new token ids per prompt, including the end-of-turn token."""
        sampling = self._sampling(temperature=0.0, max_tokens=max_tokens, detokenize=False)
        outputs = self._engine.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def draft_counts(self) -> tuple[int, list[int]]:
        """Return the number of drafts so far, and of accepted ones at each position."""
        metrics = {metric.name: metric for metric in self._engine.get_metrics()}
        return (
            metrics["vllm:spec_decode_num_drafts"].value,
            list(metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values),
        )

    def one_stream_tokens_per_second(self, prompts: Prompts) -> float:
        started = time.monotonic()
        count = sum(len(self.generate([prompt])[0]) for prompt in prompts)
        return count / (time.monotonic() - started)


def on_transformers(model: Path, prompts: Prompts) -> tuple[Prompts, list[list[float]]]:
    """Return greedy tokens of the reference code in float32, and the gap between the two best logits at each."""
    declare_torchvision_operators()
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    longest = max(map(len, prompts))
    ids = torch.tensor([[END_OF_TEXT] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = reference.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(out.logits, dim=1).topk(2).values
    gaps = (best[..., 0] - best[..., 1]).tolist()
    tokens = [row[longest:] for row in out.sequences.tolist()]
    return [row[: row.index(IM_END) + 1] if IM_END in row else row for row in tokens], gaps


def answers(engine: OnVllm, encoder: Encoder, asked: list[Question], budget: int | None) -> tuple[list[str], int]:
    """Return the answers under `budget`, and the number of all thought tokens."""
    prompts = [encoder.prompt(question, None, [], thinking=budget != 0) for question in asked]
    thoughts: Prompts = [[] for _ in asked]
    if budget:
        thoughts = engine.generate(prompts, max_tokens=budget)
        thoughts = [t[: t.index(THINK_CLOSE)] if THINK_CLOSE in t else t for t in thoughts]
        prompts = [p + t + [THINK_CLOSE] for p, t in zip(prompts, thoughts, strict=True)]
    replies = engine.generate(prompts)
    if budget is None:
        thoughts = [t[: t.index(THINK_CLOSE)] if THINK_CLOSE in t else t for t in replies]
        replies = [r[len(t) + 1 :] for r, t in zip(replies, thoughts, strict=True)]
    texts = [encoder.decode(reply) for reply in replies]
    return texts, sum(map(len, thoughts))


def accuracy(engine: OnVllm, encoder: Encoder, count: int) -> dict:
    """Return the share of right answers and the mean thought tokens, per kind and budget."""
    table: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        asked = held_out(kind, count)
        for budget in BUDGETS if kind in MULTI_STEP else (0, None):
            texts, spent = answers(engine, encoder, asked, budget)
            right = sum(question.is_right(text) for question, text in zip(asked, texts, strict=True))
            table.setdefault(kind, {})[str(budget)] = [round(right / count, 3), round(spent / count, 1)]
    return table


def agreement(engine: OnVllm, model: Path, prompts: Prompts) -> dict:
    """Return how many prompts get the same tokens, and the reference's logit gap at each first difference."""
    mine = engine.generate(prompts)
    reference, gaps = on_transformers(model, prompts)
    differences = []
    for index, (left, right) in enumerate(zip(mine, reference, strict=True)):
        if left != right:
            pairs = enumerate(zip(left, right, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
            differences.append({"prompt": index, "token": at, "logit_gap": round(gaps[index][at], 4)})
    return {"prompts": len(prompts), "same": len(prompts) - len(differences), "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("service/penstock/demo_model"))
    parser.add_argument("--questions", type=int, default=42, help="per kind")
    parser.add_argument(
        "--drafts",
        type=int,
        default=0,
        help="number of MTP draft tokens; 0: without, and compare with the reference, too",
    )
    parser.add_argument(
        "--agreement-only", action="store_true", help="only compare with the reference, and print one line of JSON"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    encoder = Encoder(build_tokenizer())
    engine = OnVllm(arguments.model, arguments.drafts)
    asked = [question for kind in KINDS for question in held_out(kind, 17)]
    prompts = [encoder.prompt(question, None, [], thinking=index % 4 > 0) for index, question in enumerate(asked)][:200]
    if arguments.agreement_only:
        print(json.dumps({**machine(), "date": f"{date.today()}", **agreement(engine, arguments.model, prompts)}))
        return
    print(json.dumps({"tokens_per_second": round(engine.one_stream_tokens_per_second(prompts[:40]), 1)}), flush=True)
    if not arguments.drafts:
        print(json.dumps({"agreement": agreement(engine, arguments.model, prompts)}), flush=True)
    print(json.dumps({"accuracy": accuracy(engine, encoder, arguments.questions)}), flush=True)
    if arguments.drafts:
        made, accepted = engine.draft_counts()
        print(json.dumps({"drafts": made, "accepted_by_position": [round(a / made, 3) for a in accepted]}))


if __name__ == "__main__":
    main()
