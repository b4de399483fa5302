"""Check an exported folder on vLLM: agreement with Transformers, accuracy on text and pictures, and drafts.

python -m models.small.verify [--model DIR] [--questions 24] [--drafts 2] [--agreement-only]

Decoding is greedy, on held-out questions. For a budget of N, the model thinks for N tokens, and then the closing marker
is forced, as by the server. Pictures go through vLLM's own `LLM.generate` with `multi_modal_data`.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from penstock.engine.vllm.compat import declare_torchvision_operators
from PIL.Image import Image

from bench.machine import machine
from models.small.config import END_OF_TEXT, IM_END, IMAGE_PAD, THINK_CLOSE
from models.small.encoding import Encoder
from models.small.evaluate import BUDGETS
from models.small.languages import LANGUAGES
from models.small.picture_questions import PICTURE_KINDS, PictureQuestion, picture_question
from models.small.pictures import to_patches
from models.small.positions import picture_tokens
from models.small.question import Question
from models.small.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, held_out
from models.small.tokenizer import load_tokenizer

MAX_TOKENS = 200
REFERENCE_BATCH = 50
TEXT_PROMPTS, PICTURE_PROMPTS = 200, 100
"""Prompts whose tokens are compared with Transformers'."""

Decoded = tuple[list[list[int]], list[list[float]]]


@dataclass(frozen=True)
class Prompt:
    """Token ids with one `<|image_pad|>` for each token of a picture, and the pictures in their order."""

    ids: list[int]
    pictures: tuple[Image, ...] = ()

    def then(self, ids: Sequence[int]) -> "Prompt":
        """Return the prompt with more ids."""
        return Prompt([*self.ids, *ids], self.pictures)

    def for_vllm(self) -> dict[str, Any]:
        """Return vLLM's form, in which one `<|image_pad|>` stands for a whole picture."""
        if not self.pictures:
            return {"prompt_token_ids": self.ids}
        ids = [i for i, before in zip(self.ids, [None, *self.ids], strict=False) if not i == before == IMAGE_PAD]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": list(self.pictures)}}


class OnVllm:
    """Greedy decoding on vLLM."""

    def __init__(self, model: Path, drafts: int) -> None:
        from vllm import LLM, SamplingParams

        speculation = {"speculative_config": {"method": "mtp", "num_speculative_tokens": drafts}} if drafts else {}
        self._engine = LLM(
            str(model),
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=4096,
            enable_prefix_caching=False,
            disable_log_stats=False,
            limit_mm_per_prompt={"image": 2, "video": 0},
            **speculation,
        )
        self._sampling = SamplingParams

    def generate(self, prompts: list[Prompt], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
        """Return the new token ids per prompt, including the end-of-turn token."""
        sampling = self._sampling(temperature=0.0, max_tokens=max_tokens, detokenize=False)
        outputs = self._engine.generate([prompt.for_vllm() for prompt in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def draft_counts(self) -> tuple[int, list[int]]:
        """Return the number of drafts so far, and of accepted ones at each position."""
        metrics = {metric.name: metric for metric in self._engine.get_metrics()}
        return (
            metrics["vllm:spec_decode_num_drafts"].value,
            list(metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values),
        )


class OnTransformers:
    """Greedy decoding with the official reference code, in float32."""

    def __init__(self, model: Path) -> None:
        declare_torchvision_operators()
        from transformers import Qwen3_5MoeForConditionalGeneration

        self._model = Qwen3_5MoeForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()

    def generate(
        self, prompts: list[Prompt], max_tokens: int = MAX_TOKENS
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Return the new token ids per prompt, and the gap between the two best logits at each."""
        tokens: list[list[int]] = []
        gaps: list[list[float]] = []
        for start in range(0, len(prompts), REFERENCE_BATCH):
            found = self._generate(prompts[start : start + REFERENCE_BATCH], max_tokens)
            tokens, gaps = tokens + found[0], gaps + found[1]
        return tokens, gaps

    def _generate(self, prompts: list[Prompt], max_tokens: int) -> Decoded:
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor([[END_OF_TEXT] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
        shown = [to_patches(picture) for prompt in prompts for picture in prompt.pictures]
        seen = {}
        if shown:
            seen = {
                "pixel_values": torch.cat([patches for patches, _ in shown]),
                "image_grid_thw": torch.tensor([(1, *grid) for _, grid in shown]),
                "mm_token_type_ids": (ids == IMAGE_PAD).int(),
            }
        out = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_tokens,
            output_logits=True,
            return_dict_in_generate=True,
            **seen,
        )
        best = torch.stack(out.logits, dim=1).topk(2).values
        rows = [row[longest:] for row in out.sequences.tolist()]
        rows = [row[: row.index(IM_END) + 1] if IM_END in row else row for row in rows]
        return rows, (best[..., 0] - best[..., 1]).tolist()


def text_prompt(encoder: Encoder, asked: Question, thinking: bool = True) -> Prompt:
    """Return the prompt of a question, with its earlier turns."""
    return Prompt([*encoder.earlier(asked.earlier), *encoder.user(asked.text), *encoder.generation_prompt(thinking)])


def picture_prompt(encoder: Encoder, found: PictureQuestion, thinking: bool = True) -> Prompt:
    """Return the prompt of a question about a picture."""
    tokens = picture_tokens(to_patches(found.picture)[1])
    ids = [*encoder.user(found.asked.text, tokens), *encoder.generation_prompt(thinking)]
    return Prompt(ids, (found.picture,))


def same_in_text(found: PictureQuestion) -> str | None:
    """Return the same question with what is drawn written out; None where nobody would ask so."""
    words = LANGUAGES[found.asked.language].arithmetic
    if found.asked.kind == "picture_sum":
        return words.chain[0].format(found.content)
    if found.asked.kind == "picture_larger":
        numbers = [int(number) for number in found.content.split()]
        asks = words.larger if found.asked.value == f"{max(numbers)}" else words.smaller
        return asks[0].format(*numbers)
    return None


def answers(engine: OnVllm, encoder: Encoder, prompts: list[Prompt], budget: int | None) -> tuple[list[str], int]:
    """Return the answers to prompts that think, or not where `budget` is 0, and the number of all thought tokens."""
    thoughts: list[list[int]] = [[] for _ in prompts]
    if budget:
        thoughts = [_thought(t) for t in engine.generate(prompts, max_tokens=budget)]
        prompts = [prompt.then([*t, THINK_CLOSE]) for prompt, t in zip(prompts, thoughts, strict=True)]
    replies = engine.generate(prompts)
    if budget is None:
        thoughts = [_thought(t) for t in replies]
        replies = [reply[len(t) + 1 :] for reply, t in zip(replies, thoughts, strict=True)]
    return [encoder.decode(reply) for reply in replies], sum(map(len, thoughts))


def text_accuracy(engine: OnVllm, encoder: Encoder, count: int) -> dict[str, dict[str, list[float]]]:
    """Return the share of right answers and the mean thought tokens by kind and budget, and by language."""
    table: dict[str, dict[str, list[float]]] = {}
    by_language: dict[str, list[bool]] = {language: [] for language in LANGUAGES}
    each = max(1, count // len(LANGUAGES))
    for kind in KINDS:
        asked = [one for language in LANGUAGES for one in held_out(kind, language, each)]
        for budget in BUDGETS if kind in MULTI_STEP else (0, None):
            texts, spent = answers(engine, encoder, [text_prompt(encoder, one, budget != 0) for one in asked], budget)
            right = [one.is_right(text) for one, text in zip(asked, texts, strict=True)]
            table.setdefault(kind, {})[str(budget)] = [_share(right), round(spent / len(asked), 1)]
            if budget is None:
                for one, is_right in zip(asked, right, strict=True):
                    by_language[one.language].append(is_right)
    return table | {"by_language": {language: [_share(right)] for language, right in by_language.items()}}


def picture_accuracy(engine: OnVllm, encoder: Encoder, count: int) -> dict[str, dict[str, float]]:
    """Return by kind the share of right answers about pictures, and of equal ones to the same question in text."""
    table: dict[str, dict[str, float]] = {}
    for kind in PICTURE_KINDS:
        found = held_out_pictures(kind, max(1, count // len(LANGUAGES)))
        texts, _ = answers(engine, encoder, [picture_prompt(encoder, one) for one in found], None)
        table[kind] = {"right": _share([one.asked.is_right(text) for one, text in zip(found, texts, strict=True)])}
        written = [same_in_text(one) for one in found]
        prompts = [
            Prompt([*encoder.user(text), *encoder.generation_prompt(True)]) for text in written if text is not None
        ]
        if len(prompts) == len(found):
            twins, _ = answers(engine, encoder, prompts, None)
            table[kind]["same_as_text"] = _share([a.strip() == b.strip() for a, b in zip(texts, twins, strict=True)])
    return table


def held_out_pictures(kind: str, each: int) -> list[PictureQuestion]:
    """Return `each` held-out questions of `kind` per language."""
    return [picture_question(kind, language, HELD_OUT_SEED + n) for language in LANGUAGES for n in range(each)]


def agreement(engine: OnVllm, reference: OnTransformers, prompts: list[Prompt]) -> dict[str, Any]:
    """Return how many prompts get the same tokens, and the reference's logit gap at each first difference."""
    mine = engine.generate(prompts)
    expected, gaps = reference.generate(prompts)
    differences = []
    for index, (left, right) in enumerate(zip(mine, expected, strict=True)):
        if left != right:
            pairs = enumerate(zip(left, right, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
            gap = round(gaps[index][at], 4) if at < len(gaps[index]) else None
            differences.append({"prompt": index, "token": at, "logit_gap": gap})
    return {"prompts": len(prompts), "same": len(prompts) - len(differences), "differences": differences}


def agreement_prompts(encoder: Encoder) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts for `agreement`: text of every kind and language, one in four without a thought; pictures."""
    each = -(-TEXT_PROMPTS // (len(KINDS) * len(LANGUAGES)))
    asked = [one for kind in KINDS for language in LANGUAGES for one in held_out(kind, language, each)]
    step = len(asked) / TEXT_PROMPTS
    texts = [text_prompt(encoder, asked[int(n * step)], n % 4 > 0) for n in range(TEXT_PROMPTS)]
    found = [one for kind in PICTURE_KINDS for one in held_out_pictures(kind, 5)]
    pictures = [picture_prompt(encoder, one, n % 4 > 0) for n, one in enumerate(found)]
    return texts, pictures[:PICTURE_PROMPTS]


def _thought(reply: list[int]) -> list[int]:
    return reply[: reply.index(THINK_CLOSE)] if THINK_CLOSE in reply else reply


def _share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 3)


def main() -> None:
    """Verify from the command line; each line of output is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("service/penstock/demo_model"), help="exported folder")
    parser.add_argument("--questions", type=int, default=60, help="per kind, over all languages")
    parser.add_argument(
        "--drafts",
        type=int,
        default=0,
        help="number of MTP draft tokens; 0: without, and compare with the reference, too",
    )
    parser.add_argument("--agreement-only", action="store_true", help="only compare with the reference")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    encoder = Encoder(load_tokenizer())
    engine = OnVllm(arguments.model, arguments.drafts)
    print(json.dumps({**machine(), "date": f"{date.today()}"}), flush=True)
    if not arguments.drafts or arguments.agreement_only:
        reference = OnTransformers(arguments.model)
        for name, prompts in zip(("text", "pictures"), agreement_prompts(encoder), strict=True):
            print(json.dumps({f"agreement_{name}": agreement(engine, reference, prompts)}), flush=True)
    if arguments.agreement_only:
        return
    print(json.dumps({"text": text_accuracy(engine, encoder, arguments.questions)}), flush=True)
    print(json.dumps({"pictures": picture_accuracy(engine, encoder, arguments.questions)}), flush=True)
    if arguments.drafts:
        made, accepted = engine.draft_counts()
        print(json.dumps({"drafts": made, "accepted_by_position": [round(a / made, 3) for a in accepted]}))


if __name__ == "__main__":
    main()
