"""The demo tokenizer takes any UTF-8, and the template fills in what the service relies on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from jinja2.exceptions import TemplateError
from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from tokenizers import Tokenizer

from models.demo.config import IM_END, SPECIAL_TOKENS, THINK_CLOSE, THINK_OPEN, VOCAB_SIZE
from models.demo.data import Encoder
from models.demo.questions import question
from models.demo.tokenizer import build_tokenizer, save_tokenizer

TOKENIZER = build_tokenizer()


def raise_exception(message: str) -> None:
    raise TemplateError(message)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TOKENIZER, folder)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).to_str() == TOKENIZER.to_str()
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_digits_and_newlines_are_single_ids() -> None:
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    encoder = Encoder(TOKENIZER)
    assert len(encoder.encode("1234567890")) == 10
    assert len(encoder.newline) == len(encoder.blank_line) == 1
    assert encoder.encode("<think>\n\n</think>\n\n") == [
        THINK_OPEN,
        *encoder.blank_line,
        THINK_CLOSE,
        *encoder.blank_line,
    ]


@pytest.mark.parametrize("thinking", [True, False])
def test_training_lays_turns_out_as_the_template_does(template, thinking: bool) -> None:
    earlier, asked = question("shop", 1), question("chain", 2)
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": earlier.text},
        {"role": "assistant", "content": f"<think>\n{earlier.thought}\n</think>\n\n{earlier.answer}"},
        {"role": "user", "content": [{"type": "text", "text": asked.text}]},
    ]
    text = template.render(messages=messages, add_generation_prompt=True, enable_thinking=thinking)
    assert earlier.thought not in text
    assert text.endswith("<think>\n" if thinking else "<think>\n\n</think>\n\n")
    laid_out = Encoder(TOKENIZER).prompt(asked, "Be short.", [earlier], thinking)
    assert TOKENIZER.encode(text, add_special_tokens=False).ids == laid_out


def test_thinking_is_the_default_and_a_last_assistant_turn_keeps_its_thought(template) -> None:
    user = {"role": "user", "content": "What is 1 + 1?"}
    assert template.render(messages=[user], add_generation_prompt=True).endswith("assistant\n<think>\n")
    answered = template.render(messages=[user, {"role": "assistant", "reasoning_content": "1+1=2", "content": "2"}])
    assert answered.endswith(f"<think>\n1+1=2\n</think>\n\n2{SPECIAL_TOKENS[IM_END]}\n")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "tool", "content": "x"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": "x"}, {"role": "system", "content": "late"}],
    ],
)
def test_what_the_model_cannot_read_is_refused(template, messages: list) -> None:
    with pytest.raises(TemplateError):
        template.render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("folder", [DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR], ids=["bf16", "fp8"])
def test_the_committed_checkpoints_have_this_template(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(TOKENIZER, tmp_path)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        assert (folder / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")


TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}


def test_tools_and_calls_are_in_qwens_layout(template) -> None:
    call = {"function": {"name": "look", "arguments": {"city": "Bern", "days": 2}}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Look.", "tool_calls": [call, call]},
        {"role": "tool", "content": "20"},
        {"role": "tool", "content": "21"},
    ]
    text = template.render(messages=messages, tools=[TOOL], add_generation_prompt=True)
    written = "<tool_call>\n<function=look>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    written += "</function>\n</tool_call>"
    head, _, rest = text.partition("<|im_end|>\n")
    assert head.startswith("<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n{")
    assert head.endswith("</tool_call>\n\nBe short.")
    assert rest == (
        "<|im_start|>user\nHow warm?<|im_end|>\n<|im_start|>assistant\n<think>\nLook.\n</think>\n\nI look.\n\n"
        f"{written}\n{written}<|im_end|>\n<|im_start|>user\n<tool_response>\n20\n</tool_response>\n<tool_response>\n21\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
