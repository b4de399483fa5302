"""The small model's tokenizer takes any UTF-8, and its template lays conversations out as training does."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from jinja2.exceptions import TemplateError
from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from tokenizers import Tokenizer

from models.small.config import IM_END, SPECIAL_TOKENS, THINK_CLOSE, TOOL_CALL_CLOSE, TOOL_CALL_OPEN, VOCAB_SIZE
from models.small.encoding import Encoder
from models.small.examples import task_example
from models.small.questions import question
from models.small.tokenizer import load_tokenizer, save_tokenizer
from models.small.tools import TASKS, task

TOKENIZER = load_tokenizer()
ENCODER = Encoder(TOKENIZER)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TOKENIZER, folder)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).to_str() == TOKENIZER.to_str()
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    environment.policies["json.dumps_function"] = _plain_json
    return environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _plain_json(value: object, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_control_tokens_digits_and_newlines_are_single_ids() -> None:
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert len(ENCODER.encode("1234567890")) == 10
    assert len(ENCODER.newline) == len(ENCODER.blank_line) == 1


def test_a_word_has_the_same_ids_wherever_it_stands() -> None:
    alone = ENCODER.encode("drasadrix")
    for text in ('"drasadrix"', " drasadrix", "\ndrasadrix\n", "=drasadrix>", "_drasadrix"):
        ids = ENCODER.encode(text)
        assert any(ids[start : start + len(alone)] == alone for start in range(len(ids)))


@pytest.mark.parametrize("thinking", [True, False])
def test_turns_are_laid_out_as_the_template_does(template: Any, thinking: bool) -> None:
    asked = question("follow_up", "ru", 3)
    messages = [{"role": "system", "content": "Be short."}]
    for text, answer in asked.earlier:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": asked.text})
    text = template.render(messages=messages, add_generation_prompt=True, enable_thinking=thinking)
    written = [
        *ENCODER.system("Be short."),
        *ENCODER.earlier(asked.earlier),
        *ENCODER.user(asked.text),
        *ENCODER.generation_prompt(thinking),
    ]
    assert written == ENCODER.encode(text)


@pytest.mark.parametrize("kind", TASKS)
def test_functions_are_laid_out_as_the_template_does(template: Any, kind: str) -> None:
    asked = task(kind, "de", 11)
    rng = random.Random(2)
    written = task_example(rng, asked, ENCODER)
    while THINK_CLOSE not in written.ids or written.weights[written.ids.index(THINK_CLOSE)] == 0:
        written = task_example(rng, asked, ENCODER)
    text = TOKENIZER.decode(written.ids, skip_special_tokens=False)
    system = text.split("</tool_call>", 1)[1].split("<|im_end|>")[0].strip()
    messages: list[dict] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": asked.text})
    if asked.calls:
        calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in asked.calls]
        messages.append({"role": "assistant", "content": "", "reasoning_content": asked.thought, "tool_calls": calls})
        messages += [{"role": "tool", "content": result} for result in asked.results]
        last = {"role": "assistant", "content": asked.answer, "reasoning_content": asked.result_thought}
    else:
        last = {"role": "assistant", "content": asked.answer, "reasoning_content": asked.thought}
    rendered = template.render(messages=[*messages, last], tools=list(asked.tools))
    assert text + "\n" == rendered
    assert [*written.ids, *ENCODER.newline] == ENCODER.encode(rendered)
    assert written.ids.count(TOOL_CALL_OPEN) == written.ids.count(TOOL_CALL_CLOSE) == len(asked.calls) + 1


def test_markers_of_thoughts_and_calls_are_read_in_texts_as_with_qwen() -> None:
    added = json.loads(TOKENIZER.to_str())["added_tokens"]
    assert {token["content"]: token["special"] for token in added} == {
        name: name.startswith("<|") for name in SPECIAL_TOKENS
    }
    ids = ENCODER.encode("<tool_call>\n</tool_call>")
    assert ENCODER.decode(ids) == "<tool_call>\n</tool_call>"


def test_thinking_is_the_default_and_a_last_assistant_turn_keeps_its_thought(template: Any) -> None:
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
        [{"role": "user", "content": "x"}, {"role": "system", "content": "late"}],
    ],
)
def test_what_the_model_cannot_read_is_refused(template: Any, messages: list) -> None:
    with pytest.raises(TemplateError):
        template.render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("folder", [DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR], ids=["bf16", "fp8"])
def test_the_committed_checkpoints_have_this_template(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(TOKENIZER, tmp_path)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        assert (folder / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")


TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}


def test_tools_and_calls_are_in_qwens_layout(template: Any) -> None:
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
