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
        "grammar": "g", "choices": ["a"], "priority": "low", "text": "t", "token_ids": [1], "effort": "low",
        "history": "none", "tools": [pc.Tool("x")], "tool_mode": "auto", "allowed_tools": ["x"], "parallel": False,
        "max_tool_calls": 1, "early_exit": "probe", "early_exit_probability": 0.5,
        "thought_stop": "so", "thought_stop_regex": "a+", "response_format": dict[str, int],
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
        ([("robot", "x")], {}, ValueError, r"messages\[0\]: role must be one of .*, tool, got 'robot'"),
        ([("user", "x"), {"role": "user"}], {}, ValueError, r"messages\[1\]: a dict must have"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            {},
            ValueError,
            r"messages\[0\]: parts\[0\]: .* needs text",
        ),
        (
            [("user", ["x", {"type": "texts"}])],
            {},
            ValueError,
            r"parts\[1\]: unknown type of a part.*did you mean 'text'",
        ),
        ([("user", [{"text": "x"}])], {}, ValueError, r"parts\[0\]: unknown type of a part None; known: text"),
        ([("user", [7])], {}, ValueError, r"a part must be a str, .* got int"),
        ([{"role": "developer", "content": "x"}], {}, ValueError, "did you mean 'system'"),
        ([{"role": "function", "content": "x"}], {}, ValueError, "did you mean 'tool'"),
        (
            [{"role": "user", "tool_call_id": "a", "content": "x"}],
            {},
            ValueError,
            "belongs to a message of the role 'tool'",
        ),
        ([{"role": "user", "tool_calls": []}], {}, ValueError, "belong to a message of the role 'assistant'"),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], {}, ValueError, "name is missing"),
        ([{"role": "assistant", "reasoning_content": "x"}], {}, ValueError, "did you mean 'thought'"),
        (
            [("user", [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}])],
            {},
            ValueError,
            "fetches no addr",
        ),
        (
            [("user", [{"type": "image", "source": {"type": "url", "url": "x"}}])],
            {},
            ValueError,
            "fetches no addresses",
        ),
        ([("user", [{"type": "image", "data": "!", "mime_type": "x"}])], {}, ValueError, "must be base64"),
        ("hi", {"tools": pc.Tool("x")}, TypeError, "tools: 'Tool' object is not iterable"),
        ("hi", {"tools": {"name": "x"}}, TypeError, "tools: must be a list of tools, got dict"),
        ("hi", {"tools": [7]}, TypeError, r"tools\[0\]: a tool must be a Tool, a function or a dict, got int"),
        ("hi", {"tools": [{"type": "web_search"}]}, ValueError, r"tools\[0\]: .*hosted tools"),
        ("hi", {"tools": [{"name": "x", "schema": {}}]}, ValueError, r"tools\[0\]: unknown key of a tool: 'schema'"),
        ("hi", {"tool_choice": "auto"}, TypeError, "did you mean 'tool_mode'"),
        ("hi", {"reasoning_effort": "low"}, TypeError, "did you mean 'effort'"),
        ("hi", {"parallel_tool_calls": True}, TypeError, "did you mean 'parallel'"),
        ("hi", {"response_format": {"type": "json_schema"}}, TypeError, "response_format: .* use json_schema="),
        ("hi", {"response_format": int, "json_schema": {}}, ValueError, "at most one"),
        ([{"role": "user", "content": "x", "name": "y"}], {}, ValueError, r"messages\[0\]: unknown key 'name'"),
        (
            [{"role": "user", "content": None}],
            {},
            ValueError,
            r"content must be a str or a list of parts, got NoneType",
        ),
        (["x"], {}, ValueError, r"messages\[0\]: a message must be"),
        ("hi", {"stop": ["a", 1]}, TypeError, "stop: must be a str, got int"),
        ("hi", {"model": 5}, TypeError, "model: must be a str, got int"),
        ("hi", {"tools": [{"name": "x", "strict": "no"}]}, TypeError, "strict must be True or False, got str"),
        ("hi", {"tools": [{"name": 5}]}, TypeError, "name must be a str, got int"),
        ("hi", {"tools": [{"name": "x", "parameters": 5}]}, TypeError, "parameters must be a dict or a str, got int"),
        (
            "hi",
            {"tools": [{"type": "function", "function": {"name": "x"}, "strct": True}]},
            ValueError,
            "unknown key of a tool: 'strct'; did you mean 'strict'",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "x", "argument": "{}"}}]}],
            {},
            ValueError,
            "unknown key of a tool call's function: 'argument'; did you mean 'arguments'",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a", "functon": {}, "name": "x"}]}],
            {},
            ValueError,
            "unknown key of a tool call: 'functon'",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "x", "arguments": 5}}]}],
            {},
            ValueError,
            "arguments of a tool call must be a dict or a str, got int",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "x"}}]}],
            {},
            ValueError,
            "id must be a str, got int",
        ),
        ([{"role": "tool", "tool_call_id": 5, "content": "x"}], {}, ValueError, "tool_call_id must be a str, got int"),
        (
            [("tool", [{"type": "tool_result", "call_id": "a", "content": "x", "is_error": "no"}])],
            {},
            ValueError,
            "is_error must be True or False, got str",
        ),
        (
            [("user", [{"type": "image", "source": {"type": "base64", "data": "AA==", "mediatype": "image/png"}}])],
            {},
            ValueError,
            "unknown key of source: 'mediatype'; did you mean 'media_type'",
        ),
        ([("user", [{"type": "image", "data": b"x"}])], {}, ValueError, "mime_type must be a str, got NoneType"),
        (
            [("user", [{"type": "image_url", "image_url": {"uri": "data:"}}])],
            {},
            ValueError,
            "unknown key of image_url: 'uri'; known: url, detail",
        ),
    ],
)
def test_wrong_use_says_where(prompt: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pc.build_spec(prompt, **options)


OPENAI = [
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
]
ANTHROPIC = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "see"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "42"}], "is_error": True},
            {"type": "text", "text": "and?"},
        ],
    },
]
CALL = pc.ToolCall("c1", "f", '{"a": 1}')


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (
            OPENAI,
            [
                pc.Message("user", parts=[pc.TextPart("hi")]),
                pc.Message.assistant(tool_calls=[CALL]),
                pc.Message.tool(pc.ToolResult("c1", "42")),
            ],
        ),
        (
            ANTHROPIC,
            [
                pc.Message.user("hi"),
                pc.Message.assistant("see", thought="hm", tool_calls=[CALL]),
                pc.Message.tool(pc.ToolResult("c1", "42", is_error=True)),
                pc.Message("user", parts=[pc.TextPart("and?")]),
            ],
        ),
    ],
)
def test_what_users_of_other_libraries_write_means_the_same_here(written: Any, meant: Any) -> None:
    assert pc.build_spec(written) == pc.build_spec(meant)


def test_images_are_taken_inline() -> None:
    by_url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}
    by_source = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}
    ours = pc.ImagePart(b"\0\1\2", "image/png")
    specs = [pc.build_spec([("user", ["what?", image])]) for image in (by_url, by_source, ours)]
    assert specs[0] == specs[1] == specs[2] == pc.build_spec([pc.Message.user("what?", ours)])
    assert specs[0].messages.messages[0].parts[1].image.data == b"\0\1\2"
    assert "\\x01" not in repr(ours), "an image is no text for a log"


def test_a_tool_returns_texts_and_images() -> None:
    image = pc.ImagePart(b"\0\1\2", "image/png")
    ours = pc.ToolResult("c1", (pc.TextPart("a"), image, pc.TextPart("b")))
    source = {"type": "base64", "media_type": "image/png", "data": "AAEC"}
    written = {"type": "tool_result", "tool_use_id": "c1", "content": ["a", {"type": "image", "source": source}, "b"]}
    spec = pc.build_spec([pc.Message.tool(ours)])
    assert spec == pc.build_spec([{"role": "user", "content": [written]}])
    (part,) = spec.messages.messages[0].parts
    assert [one.text or one.image.data for one in part.tool_result.content] == ["a", b"\0\1\2", "b"]
    assert (ours.text, pc.ToolResult("c", "text").text) == ("ab", "text")
    # Texts alone are one text, as they were before.
    texts = {"role": "tool", "tool_call_id": "c1", "content": ["a", "b"]}
    assert pc.build_spec([texts]) == pc.build_spec([pc.Message.tool(pc.ToolResult("c1", "ab"))])
    with pytest.raises(ValueError, match="only texts and images are allowed in a tool's result, got ThoughtPart"):
        pc.build_spec([{"role": "tool", "tool_call_id": "c1", "content": [{"type": "thought", "text": "hm"}]}])


def test_tools_of_other_libraries_mean_the_same_here() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ours = pc.Tool("f", "d", schema, strict=True)
    inner = {"name": "f", "description": "d", "strict": True}
    written = [
        {"type": "function", "function": {**inner, "parameters": schema}},
        {"type": "function", **inner, "parameters": schema},
        {**inner, "input_schema": schema},
        {**inner, "inputSchema": schema},
        ours.to_proto(),
    ]
    for one in written:
        assert pc.build_spec("hi", tools=[one]) == pc.build_spec("hi", tools=[ours])
    assert ours.to_proto().parameters_json_schema.startswith('{"type"'), "keys stay in order"


def test_a_message_has_either_content_or_parts() -> None:
    with pytest.raises(ValueError, match="either content or parts"):
        pc.Message("user", "a", [pc.TextPart("b")])
    assert pc.Message.user("a", "b").text == "ab"
    assert pc.Message.assistant("a", tool_calls=[CALL]).tool_calls == (CALL,)


@given(st.text(), st.integers(-1, 2**31 - 1), st.sampled_from(["fast", "thinking", "auto"]))
def test_any_text_and_budget_survive_the_wire(text: str, budget: int, thinking: Any) -> None:
    spec = pc.build_spec(text, budget=budget, thinking=thinking)
    assert pb.GenerationSpec.FromString(spec.SerializeToString()) == spec
    assert spec.messages.messages[0].content == text
