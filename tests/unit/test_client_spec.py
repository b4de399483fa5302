"""Test what keywords become on the wire, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import penstock_client as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_proto.v1 import generation_pb2 as pb


def test_nothing_given_is_nothing_sent() -> None:
    options: dict[str, Any] = dict.fromkeys(pc.GenerationOptions.__annotations__)
    spec = pc.build_spec("hi", **options)
    assert spec == pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="hi")]))


def test_zeros_are_sent() -> None:
    spec = pc.build_spec("hi", budget=0, temperature=0, top_logprobs=0, seed=0, include_thoughts=False)
    assert spec.thinking.HasField("thinking_budget")
    assert spec.sampling.HasField("temperature")
    assert spec.sampling.HasField("seed")
    assert spec.output.HasField("top_logprobs")
    assert spec.thinking.HasField("include_thoughts")


def test_all_forms_of_a_conversation() -> None:
    turns = [
        pc.Message("system", "s"),
        ("user", "u"),
        {"role": "assistant", "content": "a"},
        pb.Message(role=pb.ROLE_USER, content="u2"),
    ]
    assert [(m.role, m.content) for m in pc.build_spec(turns).messages.messages] == [
        (pb.ROLE_SYSTEM, "s"),
        (pb.ROLE_USER, "u"),
        (pb.ROLE_ASSISTANT, "a"),
        (pb.ROLE_USER, "u2"),
    ]


def test_every_option_reaches_the_spec() -> None:
    samples: dict[str, Any] = {
        "model": "m", "thinking": "auto", "budget": 1, "include_thoughts": True, "answer_reserve": 1,
        "closing_message": "", "max_context_tokens": 9, "overflow": "truncate_left", "cache_salt": "c",
        "session_id": "s", "temperature": 1.0, "top_p": 1.0, "top_k": 1, "min_p": 0.1, "presence_penalty": 1.0,
        "frequency_penalty": 1.0, "repetition_penalty": 1.0, "seed": 1, "logit_bias": {1: 2.0},
        "max_output_tokens": 5, "min_output_tokens": 1, "stop": "x", "stop_token_ids": [1], "candidates": 2,
        "top_logprobs": 1, "return_token_ids": True, "json_schema": {"type": "object"}, "regex": "a",
        "grammar": "g", "choices": ["a"], "priority": "low", "text": "t", "token_ids": [1],
    }  # fmt: skip
    assert set(samples) == set(pc.GenerationOptions.__annotations__)
    for name, value in samples.items():
        own_input = name in ("text", "token_ids")
        spec = pc.build_spec(None if own_input else "hi", **{name: value})
        assert spec != pc.build_spec("hi"), name


def test_raw_input_stop_and_schema() -> None:
    assert pc.build_spec(text="").WhichOneof("input") == "text"
    assert pc.build_spec(token_ids=[]).WhichOneof("input") == "token_ids"
    assert pc.build_spec("hi", stop="END").output.stop_strings == ["END"]
    assert pc.build_spec("hi", json_schema={"type": "object"}).output.json_schema == '{"type": "object"}'


def test_a_ready_spec_is_taken_alone() -> None:
    spec = pb.GenerationSpec(text="x")
    assert pc.build_spec(spec=spec) is spec
    with pytest.raises(ValueError, match="complete request"):
        pc.build_spec(spec=spec, seed=1)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        (None, {}, ValueError, "exactly one"),
        ("hi", {"text": "x"}, ValueError, "exactly one"),
        ("hi", {"thinking": "deep"}, ValueError, "thinking: must be one of fast, thinking, auto, got 'deep'"),
        ("hi", {"thinking": "unspecified"}, ValueError, "must be one of"),
        ("hi", {"thinking": "fas"}, ValueError, "must be one of fast, thinking, auto, got 'fas'; did you mean 'fast'"),
        ("hi", {"budgett": 1}, TypeError, "unknown option 'budgett'; did you mean 'budget'"),
        ("hi", {"max_tokens": 1}, TypeError, "unknown option 'max_tokens'; did you mean 'max_output_tokens'"),
        ("hi", {"n": 2}, TypeError, "unknown option 'n'; did you mean 'candidates'"),
        ("hi", {"zzzz": 2}, TypeError, "unknown option 'zzzz'; known: model, text"),
        ("hi", {"budget": 2**40}, ValueError, "budget: "),
        ("hi", {"budget": 1.5}, TypeError, "budget: "),
        ("hi", {"model": "\ud800"}, ValueError, "model: "),
        ("hi", {"regex": "a", "grammar": "b"}, ValueError, "at most one"),
        ([("robot", "x")], {}, ValueError, r"messages\[0\]: must be one of system, user, assistant, got 'robot'"),
        ([("user", "x"), {"role": "user"}], {}, ValueError, r"messages\[1\]: a dict must have"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, ValueError, r"messages\[0\]: .*content parts"),
        ([{"role": "user", "content": "x", "name": "y"}], {}, ValueError, r"messages\[0\]: unknown key 'name'"),
        ([{"role": "user", "content": None}], {}, ValueError, r"content must be a str, got NoneType"),
        (["x"], {}, ValueError, r"messages\[0\]: a message must be"),
    ],
)
def test_wrong_use_says_where(prompt: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pc.build_spec(prompt, **options)


@given(st.text(), st.integers(-1, 2**31 - 1), st.sampled_from(["fast", "thinking", "auto"]))
def test_any_text_and_budget_survive_the_wire(text: str, budget: int, thinking: Any) -> None:
    spec = pc.build_spec(text, budget=budget, thinking=thinking)
    assert pb.GenerationSpec.FromString(spec.SerializeToString()) == spec
    assert spec.messages.messages[0].content == text
