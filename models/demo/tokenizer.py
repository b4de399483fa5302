"""Train a byte-level BPE of 512 ids on the task's questions. It accepts any UTF-8 and has one id per digit."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.demo.config import END_OF_TEXT, IM_END, SPECIAL_TOKENS, VOCAB_SIZE, text_config
from models.demo.questions import KINDS, MULTI_STEP, question

CORPUS_QUESTIONS = {True: 1200, False: 300}
"""Questions per kind, by whether the kind needs steps: its longer texts need more merges."""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful assistant. Think step by step.",
    "Answer briefly.",
    "You solve small sums.",
    "Be short and exact.",
    "You are Penstock's demo model. Answer with the result.",
    "You are a friendly teacher. Show only the final answer.",
    "Reply in plain English.",
)
CLOSING_MESSAGE = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
)

# Qwen's pre-tokenizer: letters with the character before them, single digits, and runs of newlines.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """Yield the text for learning the merges. Numbers do not matter, because digits never merge."""
    lines = [CLOSING_MESSAGE, *SYSTEM_PROMPTS] * 100
    # The frame of a turn, so that "\n\n" and the role names become single ids.
    lines += ["system\n", "user\n", "assistant\n", "\n\n"] * 4000
    for kind in KINDS:
        for seed in range(CORPUS_QUESTIONS[kind in MULTI_STEP]):
            asked = question(kind, seed)
            lines += [asked.text, asked.thought + "\n", asked.answer]
    return [line for line in lines if line.isascii()]


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer. The same code gives the same file."""
    return train_tokenizer(corpus(), SPLIT, VOCAB_SIZE, SPECIAL_TOKENS)


def train_tokenizer(texts: Iterable[str], split: str, vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE. The same texts give the same file.

    Args:
        texts: What the merges are learned from.
        split: Regular expression of the pieces over whose ends no token goes.
        vocab_size: Number of ids.
        special_tokens: Control tokens; their ids begin with 0, in this order.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=8,
        show_progress=False,
        special_tokens=[AddedToken(t, special=t.startswith("<|"), normalized=False) for t in special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    write_tokenizer(tokenizer, folder, template, text_config()["max_position_embeddings"])


def write_tokenizer(tokenizer: Tokenizer, folder: Path, template: str, window: int) -> None:
    """Write a tokenizer, its settings and a chat template. `window` is the most tokens of prompt and output."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": window,
        "eos_token": SPECIAL_TOKENS[IM_END],
        "pad_token": SPECIAL_TOKENS[END_OF_TEXT],
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
