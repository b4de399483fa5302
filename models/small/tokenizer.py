"""Hold the tokenizer: a byte-level BPE of 2,048 ids of the task's texts. It accepts any UTF-8, with one id per digit.

`python -m models.small.tokenizer` trains it anew, which is for weights that begin from nothing: others know this one.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.small.config import CONTEXT_WINDOW, END_OF_TEXT, IM_END, SPECIAL_TOKENS, VOCAB_SIZE
from models.small.languages import LANGUAGES
from models.small.questions import KINDS, MULTI_STEP, question
from models.small.tools import TASKS, task

FILE = Path(__file__).with_name("tokenizer.json")
CORPUS_QUESTIONS = {True: 400, False: 120}
"""Questions per kind and language, by whether the kind needs steps: its longer texts need more merges."""
CORPUS_TASKS = 60
"""Conversations with functions per kind and language."""
CLOSING_MESSAGE = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful assistant. Think step by step.",
    "Answer briefly.",
    "You solve small sums.",
    "Be short and exact.",
    "You are Penstock's demo model. Answer with the result.",
    "You are a friendly teacher. Show only the final answer.",
    "Reply in the language of the question.",
)
# Qwen's pre-tokenizer with two differences: a blank before a word is a piece of its own, and so is a line break behind
# a sign. So a word has the same ids wherever it stands, and a small model can copy it.
SPLIT = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus() -> Iterator[str]:
    """Yield the text for learning the merges. Numbers do not matter, because digits never merge."""
    yield from [CLOSING_MESSAGE, *SYSTEM_PROMPTS] * 100
    # The frame of a turn, so that "\n\n" and the role names become single ids.
    yield from ["system\n", "user\n", "assistant\n", "\n\n"] * 4000
    for language in LANGUAGES:
        for kind in KINDS:
            for seed in range(CORPUS_QUESTIONS[kind in MULTI_STEP]):
                asked = question(kind, language, seed)
                yield from (asked.text, asked.thought + "\n", asked.answer)
        for kind in TASKS:
            for seed in range(CORPUS_TASKS):
                asked_task = task(kind, language, seed)
                yield from (json.dumps(tool, ensure_ascii=False) + "\n" for tool in asked_task.tools)
                yield from (asked_task.text, asked_task.thought, *asked_task.results, asked_task.answer)
                for call in asked_task.calls:
                    yield f"\n<function={call.name}>\n"
                    yield from (
                        f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in call.arguments.items()
                    )
                    yield "</function>\n"


def load_tokenizer() -> Tokenizer:
    """Return the tokenizer of the weights."""
    return Tokenizer.from_file(str(FILE))


def train() -> None:
    """Train the tokenizer and write its file. The same texts give the same file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=8,
        show_progress=False,
        # As in Qwen's tokenizer: what is special has no text, but markers of thoughts and calls must be read in texts.
        special_tokens=[AddedToken(t, special=t.startswith("<|"), normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        # The trainer makes all of them special.
        token["special"] = token["content"].startswith("<|")
    Tokenizer.from_str(json.dumps(content)).save(str(FILE))


def chat_template() -> str:
    """Return the chat template."""
    return (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_WINDOW,
        "eos_token": SPECIAL_TOKENS[IM_END],
        "pad_token": SPECIAL_TOKENS[END_OF_TEXT],
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    train()
