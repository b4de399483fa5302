"""Test what callers write stays text, whatever it spells; what the template writes are markers."""

from __future__ import annotations

import copy
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.config.schema import DEMO_MODEL_DIR
from penstock.engine.tokenizer import HfTokenizer, load
from penstock.errors import BadRequest
from penstock.types import Message, Role
from transformers import AutoTokenizer

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE_WORDS = ("<tool_response>", "</tool_response>", "<tool_call>")
SYSTEM, USER, ASSISTANT = Role.SYSTEM, Role.USER, Role.ASSISTANT


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    return load(str(DEMO_MODEL_DIR), 512)


def markers(tokenizer: HfTokenizer, ids: list[int]) -> list[int]:
    return [i for i in ids if tokenizer.token_bytes(i) == b""]


def text_of(tokenizer: HfTokenizer, ids: list[int]) -> str:
    return b"".join(tokenizer.token_bytes(i) for i in ids).decode()


@st.composite
def spelt(draw: st.DrawFn) -> str:
    """Names of control tokens among unicode: whole, cut at any place, inside each other, beside stand-ins."""
    names = st.sampled_from((*SPECIALS, *TEMPLATE_WORDS))
    cut = names.flatmap(lambda name: st.integers(0, len(name)).map(lambda at: name[:at]))
    rest = names.flatmap(lambda name: st.integers(0, len(name)).map(lambda at: name[at:]))
    nested = st.tuples(names, names, st.integers(1, 8)).map(lambda n: n[0][: n[2]] + n[1] + n[0][n[2] :])
    stand_ins = st.sampled_from(("\ue0f30\ue0f3", "\ue0f31\ue0f3", "{{ messages }}", "0" * 45, "\x00"))
    parts = st.one_of(names, cut, rest, nested, stand_ins, st.text(max_size=6), st.sampled_from((" ", "\n", "\t \n")))
    return "".join(draw(st.lists(parts, max_size=6)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((SYSTEM, USER, ASSISTANT)), spelt()), max_size=5), spelt(), st.booleans())
def test_no_message_becomes_a_control_token_or_another_message(
    tokenizer: HfTokenizer, before: list[tuple[Role, str]], last: str, thinking: bool
) -> None:
    turns = [Message(role, text) for role, text in [*before, (USER, last)]]
    # The same conversation of words that the vocabulary has, each its message's number.
    counted = [Message(turn.role, f"w{number}w" if turn.content.strip() else "") for number, turn in enumerate(turns)]
    ids, plain = tokenizer.render(turns, thinking=thinking), tokenizer.render(counted, thinking=thinking)
    assert markers(tokenizer, ids) == markers(tokenizer, plain)
    expected = text_of(tokenizer, plain)
    for number in range(len(turns)):
        expected = expected.replace(f"w{number}w", f"\x01{number}\x02")
    for number, turn in enumerate(turns):
        expected = expected.replace(f"\x01{number}\x02", turn.content.strip(), 1)
    # The tokenizer writes compatibility ideographs as the characters that they stand for.
    assert text_of(tokenizer, ids) == unicodedata.normalize("NFC", expected)


@settings(deadline=None)
@given(spelt())
def test_text_as_text_holds_no_control_token(tokenizer: HfTokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert markers(tokenizer, ids) == []
    assert text_of(tokenizer, ids) == text


CLEAN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>|"), max_size=20)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from((USER, ASSISTANT)), CLEAN), max_size=4),
    st.none() | CLEAN,
    CLEAN,
    st.booleans(),
    st.booleans(),
)
def test_clean_messages_are_encoded_as_the_template_would(
    tokenizer: HfTokenizer,
    before: list[tuple[Role, str]],
    system: str | None,
    last: str,
    thinking: bool,
    beside_another: bool,
) -> None:
    turns = ([] if system is None else [Message(SYSTEM, system)]) + [Message(role, text) for role, text in before]
    if beside_another:
        turns.append(Message(USER, "</think>"))
    turns.append(Message(USER, last))
    raw = AUTO.apply_chat_template(
        [{"role": turn.role.value, "content": turn.content} for turn in turns],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    ids = tokenizer.render(turns, thinking=thinking)
    if not beside_another:
        assert ids == tokenizer.encode(raw)
        return
    head, tail = raw.split("<|im_start|>user\n</think><|im_end|>", 1) if raw.count("</think>") else (raw, "")
    assert ids[: len(tokenizer.encode(head))] == tokenizer.encode(head)
    assert ids[-len(tokenizer.encode(tail)) :] == tokenizer.encode(tail)


AUTO = AutoTokenizer.from_pretrained(str(DEMO_MODEL_DIR))


def test_nothing_before_a_marker_in_an_earlier_answer_vanishes(tokenizer: HfTokenizer) -> None:
    prose = "The tag </think> ends a thought; <think> opens one."
    turns = [Message(USER, "What are the tags?"), Message(ASSISTANT, prose), Message(USER, "And then?")]
    ids = tokenizer.render(turns, thinking=True)
    assert f"assistant\n{prose}\nuser\nAnd then?" in text_of(tokenizer, ids)
    assert len(markers(tokenizer, ids)) == 7  # three turns, and the opening of the fourth
    opening, closing = tokenizer.id_of("<think>"), tokenizer.id_of("</think>")
    assert (ids.count(opening), ids.count(closing)) == (1, 0)  # those of the prose are text
    assert ids.index(opening) == len(ids) - 2


def test_a_plain_message_is_encoded_as_the_template_would(tokenizer: HfTokenizer) -> None:
    ids = tokenizer.render([Message(USER, "What is 1 + 2?")], thinking=True)
    assert ids == tokenizer.encode("<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n")


HISTORIES = {
    "empty assistant": [(USER, "a"), (ASSISTANT, ""), (USER, "b")],
    "assistant first": [(ASSISTANT, "Hello!"), (USER, "a")],
    "several users": [(USER, "a"), (USER, "b"), (USER, "c")],
    "several assistants": [(USER, "a"), (ASSISTANT, "b"), (ASSISTANT, "c"), (USER, "d")],
    "white space": [(SYSTEM, " s \n"), (USER, "\n a \t"), (ASSISTANT, "b\n\n"), (USER, "c\n")],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_histories_as_clients_send_them_are_rendered(tokenizer: HfTokenizer, history: list[tuple[Role, str]]) -> None:
    text = text_of(tokenizer, tokenizer.render([Message(*turn) for turn in history], thinking=False))
    assert text.startswith("".join(f"{role.value}\n{said.strip()}\n" for role, said in history))


def test_system_messages_are_joined_where_the_template_takes_one(tokenizer: HfTokenizer) -> None:
    turns = [
        Message(SYSTEM, "One."),
        Message(SYSTEM, ""),
        Message(USER, "a"),
        Message(SYSTEM, "Two </think>."),
        Message(USER, "b"),
        Message(SYSTEM, "Three."),
    ]
    joined = [Message(SYSTEM, "One.\n\nTwo </think>.\n\nThree."), Message(USER, "a"), Message(USER, "b")]
    assert tokenizer.render(turns, thinking=True) == tokenizer.render(joined, thinking=True)


def with_template(template: str) -> HfTokenizer:
    other = copy.deepcopy(AUTO)
    other.chat_template = template
    return HfTokenizer(other, 512)


def test_system_messages_stay_where_the_template_takes_them() -> None:
    kept = with_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    turns = [Message(USER, "a"), Message(SYSTEM, "</think>"), Message(USER, "b")]
    assert text_of(kept, kept.render(turns, thinking=True)) == "user\na\nsystem\n</think>\nuser\nb\n"


def test_a_history_that_the_template_refuses_is_the_callers_mistake() -> None:
    strict = with_template(
        "{% if messages[0].role != 'user' %}{{ raise_exception('no ' + messages[0].content) }}{% endif %}"
    )
    with pytest.raises(BadRequest) as refused:
        strict.render([Message(ASSISTANT, "secret"), Message(USER, "b")], thinking=True)
    assert refused.value.violations[0].field == "spec.messages.messages"
    assert "secret" not in refused.value.message
