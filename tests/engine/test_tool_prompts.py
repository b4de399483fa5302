"""Test how tools, calls, results and thoughts reach the prompt, with templates of Qwen's documented layouts."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.config.schema import DEMO_MODEL_DIR
from penstock.engine.tokenizer import HfTokenizer
from penstock.errors import BadRequest, FeatureOff
from penstock.generation.tool_calls.parser import ToolCallParser
from penstock.generation.tool_calls.pieces import CallFinished, TextPiece
from penstock.types import Message, Role, ThoughtHistory, Tool, ToolCall, ToolCallFormat, ToolResult
from tokenizers import AddedToken
from transformers import AutoTokenizer

SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL
TEMPLATES = Path(__file__).parents[1] / "data/chat_templates"
SPECIALS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|object_ref_start|>",
    "<|vision_pad|>",
)
WORDS = ("<tools>", "</tools>", "<function=", "</function>", "<parameter=", "</parameter>")
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", *SPECIALS)


def tokenizer_with(template: str | None) -> HfTokenizer:
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(str(DEMO_MODEL_DIR)))
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in SPECIALS])
    if template is not None:
        tokenizer.chat_template = template
    return HfTokenizer(tokenizer, 600)


def of_file(name: str) -> HfTokenizer:
    return tokenizer_with((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


ALL = {"demo": tokenizer_with(None)} | {name: of_file(name) for name in ("qwen35", "qwen3_json", "qwen3_coder")}
THINKING = {name: ALL[name] for name in ("demo", "qwen35", "qwen3_json")}
every_template = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)
thinking_template = pytest.mark.parametrize("tokenizer", THINKING.values(), ids=THINKING)


def text_of(tokenizer: HfTokenizer, ids: Sequence[int]) -> str:
    """Decode by name, control tokens included."""
    return tokenizer._backend.decode(list(ids), skip_special_tokens=False)


def controls(tokenizer: HfTokenizer, ids: Sequence[int]) -> list[int]:
    known = set(tokenizer._control_ids.values())
    return [i for i in ids if i in known]


def call(name: str = "look", arguments: str = "{}", call_id: str = "c1") -> ToolCall:
    return ToolCall(call_id, name, arguments)


def result(text: str, call_id: str = "c1") -> Message:
    return Message(TOOL, "", tool_results=(ToolResult(call_id, text),))


def schema(**properties: object) -> str:
    return json.dumps({"type": "object", "properties": properties}, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------------- format


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", ToolCallFormat.XML),
        ("qwen35", ToolCallFormat.XML),
        ("qwen3_coder", ToolCallFormat.XML),
        ("qwen3_json", ToolCallFormat.JSON),
    ],
)
def test_the_format_is_what_the_template_writes(name: str, expected: ToolCallFormat) -> None:
    assert ALL[name].tool_call_format is expected
    feature = ALL[name].tool_call_feature
    assert (feature.name, feature.enabled, feature.value) == ("tool_calls", True, expected.value)


PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
WITHOUT_TOOLS = {
    "ignores tools": PLAIN,
    "refuses tools": "{% if tools %}{{ raise_exception('no') }}{% endif %}" + PLAIN,
    "breaks on tools": "{% if tools %}{{ tools.nothing.nowhere }}{{ 1 / 0 }}{% endif %}" + PLAIN,
    "writes another layout": "{{ tools | tojson }}" + PLAIN + "{% for m in messages %}{{ m.tool_calls }}{% endfor %}",
}


@pytest.mark.parametrize("template", WITHOUT_TOOLS.values(), ids=WITHOUT_TOOLS)
def test_a_template_without_tools_has_no_format_and_refuses_them(template: str) -> None:
    tokenizer = tokenizer_with(template)
    assert tokenizer.tool_call_format is None
    assert (tokenizer.tool_call_feature.enabled, tokenizer.tool_call_feature.value) == (False, "none")
    assert tokenizer.tool_call_feature.reason
    user = Message(USER, "a")
    assert tokenizer.render([user], thinking=False)
    with pytest.raises(FeatureOff):
        tokenizer.render([user], thinking=False, tools=[Tool("look")])
    with pytest.raises(FeatureOff):
        tokenizer.render([user, Message(ASSISTANT, "", tool_calls=(call(),)), result("x")], thinking=False)


# --------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("name", ["demo", "qwen35", "qwen3_json"])
def test_a_tool_is_the_json_that_the_caller_wrote(name: str) -> None:
    tokenizer = ALL[name]
    big = 12345678901234567890123
    parameters = (
        f'{{"type": "object", "properties": {{"z": {{"type": "integer", "maximum": {big}}}, '
        '"a": {"enum": ["Zürich", "東京", "a\\"b\\\\c\\n"], "multipleOf": 1.10, "default": 1e400}}, "required": ["z"]}'
    )
    prompt = text_of(
        tokenizer, tokenizer.render([Message(USER, "a")], thinking=True, tools=[Tool("look", "Ü.", parameters)])
    )
    wrapped = (
        '{"type": "function", "function": {"name": "look", "description": "Ü.", "parameters": ' + parameters + "}}"
    )
    assert f"\n<tools>\n{wrapped}\n</tools>" in prompt


@every_template
def test_tools_come_with_the_system_message(tokenizer: HfTokenizer) -> None:
    turns = [Message(SYSTEM, "Be brief."), Message(USER, "a")]
    prompt = text_of(tokenizer, tokenizer.render(turns, thinking=False, tools=[Tool("one"), Tool("two")]))
    head = prompt.partition("<|im_end|>")[0]
    assert head.startswith("<|im_start|>system\n")
    assert head.count("Be brief.") == 1
    assert 0 < head.find("one") < head.find("two")
    assert "name" in head


ARGUMENTS = (
    '{"city": "Zürich \\"x\\"\\n", "n": 12345678901234567890, "x": 1.10, "yes": true, "no": null, '
    '"list": [1,  2.50, {"b":1,"a":"\\u00e9"}], "empty": ""}'
)
AS_XML = (
    '<tool_call>\n<function=look>\n<parameter=city>\nZürich "x"\n\n</parameter>\n<parameter=n>\n12345678901234567890\n'
    "</parameter>\n<parameter=x>\n1.10\n</parameter>\n<parameter=yes>\ntrue\n</parameter>\n<parameter=no>\nnull\n"
    '</parameter>\n<parameter=list>\n[1,  2.50, {"b":1,"a":"\\u00e9"}]\n</parameter>\n<parameter=empty>\n\n'
    "</parameter>\n</function>\n</tool_call>"
)
AS_JSON = f'<tool_call>\n{{"name": "look", "arguments": {ARGUMENTS}}}\n</tool_call>'


@every_template
def test_pitfall_21_arguments_are_written_as_they_came(tokenizer: HfTokenizer) -> None:
    turns = [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(call(arguments=ARGUMENTS),)), result("x")]
    prompt = text_of(tokenizer, tokenizer.render(turns, thinking=True, tools=[Tool("look")]))
    assert (AS_JSON if tokenizer.tool_call_format is ToolCallFormat.JSON else AS_XML) in prompt


@every_template
@pytest.mark.parametrize("arguments", ["", "{}", " { } "])
def test_a_call_without_arguments_has_none(tokenizer: HfTokenizer, arguments: str) -> None:
    turns = [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(call(arguments=arguments),)), result("x")]
    prompt = text_of(tokenizer, tokenizer.render(turns, thinking=True))
    assert "<parameter=" not in prompt.partition("look")[2]


NOT_OBJECTS = ["[]", "1", "{", '{"a":}', '{"a":1,}', '{"a":1}x', '{"a":NaN}', "{a:1}", '{"a":' + "[" * 100_000, "null"]


@every_template
@pytest.mark.parametrize("arguments", NOT_OBJECTS, ids=range(len(NOT_OBJECTS)))
def test_arguments_that_are_no_object_are_refused(tokenizer: HfTokenizer, arguments: str) -> None:
    turns = [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(call(arguments=arguments),)), result("x")]
    with pytest.raises(BadRequest):
        tokenizer.render(turns, thinking=True)


@every_template
@pytest.mark.parametrize("parameters", NOT_OBJECTS, ids=range(len(NOT_OBJECTS)))
def test_a_schema_that_is_no_object_is_refused(tokenizer: HfTokenizer, parameters: str) -> None:
    with pytest.raises(BadRequest) as refused:
        tokenizer.render([Message(USER, "a")], thinking=True, tools=[Tool("one"), Tool("look", "", parameters)])
    assert refused.value.violations[0].field == "spec.tools[1].parameters_json_schema"


def test_a_schema_that_the_template_cannot_walk_is_the_callers_mistake() -> None:
    with pytest.raises(BadRequest) as refused:
        ALL["qwen3_coder"].render([Message(USER, "a")], thinking=True, tools=[Tool("x", "", '{"properties": 1}')])
    assert refused.value.violations[0].field == "spec.tools"


@every_template
def test_results_are_in_the_order_of_their_calls(tokenizer: HfTokenizer) -> None:
    calls = tuple(call(f"tool{n}", call_id=f"c{n}") for n in range(4))
    answers = [ToolResult(f"c{n}", f"result{n}", is_error=n == 2) for n in range(4)]
    sent = [
        Message(TOOL, "", tool_results=(answers[3], answers[1])),
        Message(TOOL, "", tool_results=(answers[0],)),
        Message(TOOL, "", tool_results=(answers[2],)),
    ]
    turns = [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=calls), *sent]
    prompt = text_of(tokenizer, tokenizer.render(turns, thinking=True))
    places = [prompt.find(f"<tool_response>\nresult{n}\n</tool_response>") for n in range(4)]
    assert -1 not in places
    assert places == sorted(places)
    assert prompt.count("<|im_start|>user") == 2


@every_template
def test_lone_surrogates_are_replaced(tokenizer: HfTokenizer) -> None:
    turns = [
        Message(USER, "a"),
        Message(ASSISTANT, "", tool_calls=(call(arguments='{"\\ud800k": "\\udc00<v"}'),)),
        result(""),
    ]
    tools = [Tool("look", "", '{"type": "object", "description": "\\ud800<x", "properties": {"\\ud83d\\ude00": {}}}')]
    assert "😀" in text_of(tokenizer, tokenizer.render(turns, thinking=True, tools=tools))


# ----------------------------------------------------------------------------------------------------------- security

POSITIONS = (
    "system", "user", "content", "thought", "tool", "call", "call_id", "key", "value", "nested", "result",
    "description", "property", "property text", "property key", "enum", "schema key",
)  # fmt: skip


def conversation(texts: dict[str, str]) -> tuple[list[Message], list[Tool]]:
    """Put a text at each position that a caller controls."""
    parameters = {
        "type": "object",
        "properties": {
            texts["property"]: {"type": "string", "description": texts["property text"], texts["property key"]: 1},
            "choice": {"enum": [texts["enum"]]},
        },
        texts["schema key"]: {"a": [texts["enum"]]},
    }
    arguments = {texts["key"]: texts["value"], "deep": [{"k": texts["nested"]}]}
    turns = [
        Message(SYSTEM, texts["system"]),
        Message(USER, "before"),
        Message(ASSISTANT, texts["content"], texts["thought"]),
        Message(USER, texts["user"]),
        Message(
            ASSISTANT,
            texts["content"],
            texts["thought"],
            (ToolCall(texts["call_id"], texts["call"], json.dumps(arguments, ensure_ascii=False)),),
        ),
        Message(TOOL, "", tool_results=(ToolResult(texts["call_id"], texts["result"]),)),
    ]
    return turns, [Tool(texts["tool"], texts["description"], json.dumps(parameters, ensure_ascii=False))]


def names() -> st.SearchStrategy[str]:
    """Reserved names: whole, without their brackets, cut, nested, and beside what JSON escapes."""
    whole = st.sampled_from((*CONTROLS, *WORDS))
    cut = st.tuples(whole, st.integers(0, 12), st.integers(0, 20)).map(lambda n: n[0][n[1] : n[2]])
    bare = whole.map(lambda name: name.strip("<>"))
    nested = st.tuples(whole, whole, st.integers(1, 8)).map(lambda n: n[0][: n[2]] + n[1] + n[0][n[2] :])
    parts = st.one_of(whole, cut, bare, nested, st.sampled_from(('"', "\\", "\n", " ", "{{ tools }}", "é", "\x00")))
    return st.lists(parts, min_size=1, max_size=3).map("".join)


def check_no_control_token(tokenizer: HfTokenizer, texts: dict[str, str], history: ThoughtHistory) -> None:
    turns, tools = conversation(texts)
    plain, plain_tools = conversation({position: "w" if texts[position].strip() else "" for position in POSITIONS})
    ids = tokenizer.render(turns, thinking=True, tools=tools, history=history)
    expected = tokenizer.render(plain, thinking=True, tools=plain_tools, history=history)
    assert controls(tokenizer, ids) == controls(tokenizer, expected)


@every_template
def test_each_name_at_each_position_is_text(tokenizer: HfTokenizer) -> None:
    history = ThoughtHistory.ALL_TURNS if tokenizer in THINKING.values() else ThoughtHistory.CURRENT_TURN
    distinct = {position: f"w{number}" for number, position in enumerate(POSITIONS)}
    for position, name in itertools.product(POSITIONS, (*CONTROLS, *WORDS)):
        for text in (name, name.strip("<>"), f' {name}"\\\n'):
            check_no_control_token(tokenizer, distinct | {position: text}, history)


@every_template
@settings(max_examples=150, deadline=None)
@given(texts=st.fixed_dictionaries(dict.fromkeys(POSITIONS, names())))
def test_no_text_of_a_caller_becomes_a_control_token(tokenizer: HfTokenizer, texts: dict[str, str]) -> None:
    # Equal keys of an object are one; what they are is not the subject here.
    keys = ("property", "property key", "schema key", "key")
    texts = texts | {position: f"{texts[position]}{number}" for number, position in enumerate(keys)}
    check_no_control_token(tokenizer, texts, ThoughtHistory.CURRENT_TURN)


@settings(max_examples=150, deadline=None)
@given(text=names(), deep=names())
def test_a_text_is_escaped_where_the_template_writes_json(text: str, deep: str) -> None:
    tokenizer = ALL["qwen3_json"]
    parameters = {"type": "object", "properties": {"a" + text: {"const": deep}}}
    tool = Tool("look", text, json.dumps(parameters))
    arguments = json.dumps({text: deep}, ensure_ascii=False)
    turns = [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(call(arguments=arguments),)), result(text)]
    prompt = text_of(tokenizer, tokenizer.render(turns, thinking=True, tools=[tool]))
    described = prompt.partition("XML tags:\n<tools>\n")[2].partition("\n</tools>\n\nReturn")[0]
    function = {"name": "look"} | ({"description": text} if text else {}) | {"parameters": parameters}
    assert json.loads(described) == {"type": "function", "function": function}
    assert f'{{"name": "look", "arguments": {arguments}}}\n</tool_call><|im_end|>' in prompt
    assert f"<tool_response>\n{text}\n</tool_response>" in prompt


@settings(max_examples=100, deadline=None)
@given(text=names())
def test_a_text_is_plain_where_the_template_writes_xml(text: str) -> None:
    tokenizer = ALL["qwen35"]
    arguments = json.dumps({"k": text, "deep": {"k": text}})
    turns = [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(call(arguments=arguments),)), result(text)]
    prompt = text_of(tokenizer, tokenizer.render(turns, thinking=True))
    assert f"<parameter=k>\n{text}\n</parameter>\n<parameter=deep>\n{json.dumps({'k': text})}\n</parameter>" in prompt
    assert f"<tool_response>\n{text.strip()}\n</tool_response>" in prompt


# ---------------------------------------------------------------------------------------------------------- histories

OLD, NEW = ToolCall("o", "old", "{}"), ToolCall("n", "new", "{}")
TWO_TURNS = [
    Message(USER, "u1"),
    Message(ASSISTANT, "said1", "thought1", (OLD,)),
    Message(TOOL, "", tool_results=(ToolResult("o", "r1"),)),
    Message(ASSISTANT, "said2", "thought2"),
    Message(USER, "u2"),
    Message(ASSISTANT, "", "thought3 </think>", (NEW,)),
    Message(TOOL, "", tool_results=(ToolResult("n", "r2"),)),
]
SHOWN = {
    ThoughtHistory.CURRENT_TURN: ["thought3 </think>"],
    ThoughtHistory.ALL_TURNS: ["thought1", "thought2", "thought3 </think>"],
    ThoughtHistory.NONE: [],
}


@thinking_template
@pytest.mark.parametrize("history", ThoughtHistory)
def test_the_prompt_has_the_thoughts_of_its_history(tokenizer: HfTokenizer, history: ThoughtHistory) -> None:
    prompt = text_of(tokenizer, tokenizer.render(TWO_TURNS, thinking=True, history=history))
    for thought in SHOWN[ThoughtHistory.ALL_TURNS]:
        section = f"assistant\n<think>\n{thought}\n</think>\n\n"
        assert prompt.count(section) == prompt.count(thought) == (thought in SHOWN[history])
    # The live turn has its section also without its thought, as the prompt had in which it was generated.
    assert ("assistant\n<think>\n\n</think>\n\n<tool_call>" in prompt) == (history is ThoughtHistory.NONE)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")


def test_the_templates_own_switch_for_earlier_thoughts_is_used() -> None:
    template = (TEMPLATES / "qwen35.jinja").read_text(encoding="utf-8")
    switched = tokenizer_with(
        template.replace("loop.index0 > ns.last_query %}", "preserve_thinking or loop.index0 > ns.last_query %}")
    )
    for history in ThoughtHistory:
        expected = ALL["qwen35"].render(TWO_TURNS, thinking=True, history=history)
        assert switched.render(TWO_TURNS, thinking=True, history=history) == expected


@pytest.mark.parametrize("template", ["qwen3_coder", "twice"])
def test_all_turns_is_refused_where_the_template_cannot(template: str) -> None:
    tokenizer = ALL["qwen3_coder"]
    if template == "twice":
        text = (TEMPLATES / "qwen35.jinja").read_text(encoding="utf-8")
        said = "'<|im_start|>user\\n' + content + '<|im_end|>\\n"
        tokenizer = tokenizer_with(text.replace(said, said + "<|im_start|>assistant\\nYes.<|im_end|>\\n"))
    with pytest.raises(FeatureOff) as refused:
        tokenizer.render(TWO_TURNS, thinking=False, history=ThoughtHistory.ALL_TURNS)
    assert refused.value.metadata["field"] == "spec.thinking.history"
    without = [Message(m.role, m.content, "", m.tool_calls, m.tool_results) for m in TWO_TURNS]
    assert tokenizer.render(without, thinking=False, history=ThoughtHistory.ALL_TURNS)


# ----------------------------------------------------------------------------------------------------- prefix property


def written(tokenizer: HfTokenizer, message: Message, thinking: bool) -> list[int]:
    """Return what a model that thinks writes for a message, up to its end of turn."""
    text = f"{message.thought}\n</think>\n\n" if thinking else ""
    calls = [
        (AS_JSON if tokenizer.tool_call_format is ToolCallFormat.JSON else AS_XML).replace("look", call.name)
        for call in message.tool_calls
    ]
    between = "\n" if tokenizer.tool_call_format is ToolCallFormat.JSON else "\n\n"
    return tokenizer.encode(
        text + message.content + (between if message.content and calls else "") + "\n".join(calls) + "<|im_end|>"
    )


STEPS = [
    Message(ASSISTANT, "", "I look.", (call("one", ARGUMENTS),)),
    Message(ASSISTANT, "Two more.", "Again.\n\nAnd again.", (call("two", ARGUMENTS), call("three", ARGUMENTS, "c2"))),
    Message(ASSISTANT, "Say it.", "And more.", (call("four", ARGUMENTS),)),
    Message(ASSISTANT, "Done.", "Now I know."),
]


@thinking_template
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("result_text", ["plain", "a </tool_response> b"])
@pytest.mark.parametrize("history", [ThoughtHistory.CURRENT_TURN, ThoughtHistory.ALL_TURNS])
def test_pitfall_25_each_prompt_of_a_tool_loop_begins_with_the_one_before_and_its_output(
    tokenizer: HfTokenizer, thinking: bool, result_text: str, history: ThoughtHistory
) -> None:
    turns = [Message(SYSTEM, "S."), Message(USER, "Look it up.")]
    tools = [Tool("one", "Look.", schema(city={"type": "string"})), Tool("two", "<x>")]
    before: list[int] = []
    for step in STEPS:
        message = step if thinking else Message(ASSISTANT, step.content, "", step.tool_calls)
        ids = tokenizer.render(turns, thinking=thinking, tools=tools, history=history)
        assert ids[: len(before)] == before
        before = [*ids, *written(tokenizer, message, thinking)]
        turns.append(message)
        if message.tool_calls:
            results = tuple(ToolResult(call.id, f"{result_text} {call.name}") for call in message.tool_calls)
            turns.append(Message(TOOL, "", tool_results=results))
    if history is ThoughtHistory.ALL_TURNS:
        # Then the prefix holds over turns, too.
        turns.append(Message(USER, "And now?"))
        assert tokenizer.render(turns, thinking=thinking, tools=tools, history=history)[: len(before)] == before


TYPES = {"s": "string", "n": "integer", "x": "number", "yes": "boolean", "no": "null", "list": "array", "o": "object"}
VALUES = {
    "s": 'Zürich "x"\n</p> a',
    "n": "12345678901234567890",
    "x": "1.10",
    "yes": "true",
    "no": "null",
    "list": '[1,  2.50, {"b":1}]',
    "o": '{"a":1,\n "<think": "\\u00e9"}',
}


@thinking_template
@pytest.mark.parametrize("said", ["", "I look."])
def test_a_call_that_was_parsed_and_sent_back_has_the_tokens_that_the_model_wrote(
    tokenizer: HfTokenizer, said: str
) -> None:
    tool = Tool("look", "", schema(**{name: {"type": kind} for name, kind in TYPES.items()}))
    is_json = tokenizer.tool_call_format is ToolCallFormat.JSON
    if is_json:
        body = '{"name": "look", "arguments": {"s":"Z\\u00fc",  "n": 1.10}}\n'
    else:
        body = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in VALUES.items())
        body = f"<function=look>\n{body}</function>\n"
    wrote = f"<tool_call>\n{body}</tool_call>"
    output = said + ("\n" if is_json else "\n\n") + wrote if said else wrote
    parser = ToolCallParser(tokenizer.tool_call_format or ToolCallFormat.XML, [tool])
    pieces = [*parser.push(output), *parser.end()]
    found = [piece for piece in pieces if isinstance(piece, CallFinished)]
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == said
    calls = tuple(call(piece.name, piece.arguments_json) for piece in found)
    before = tokenizer.render([Message(USER, "a")], thinking=False, tools=[tool])
    turns = [Message(USER, "a"), Message(ASSISTANT, said, tool_calls=calls), result("x")]
    after = tokenizer.render(turns, thinking=False, tools=[tool])
    whole = [*before, *tokenizer.encode(f"{output}<|im_end|>")]
    assert after[: len(whole)] == whole


# ------------------------------------------------------------------------------------------------------------ prefill


@every_template
@pytest.mark.parametrize("begun", ["Once upon", "a </think> <|im_end|>", "  x = ", "tail \n", "{"])
def test_a_last_assistant_message_is_continued(tokenizer: HfTokenizer, begun: str) -> None:
    user = Message(USER, "Tell me.")
    ids = tokenizer.render([user, Message(ASSISTANT, begun)], thinking=False)
    empty = tokenizer.render([user], thinking=False)
    assert ids[: len(empty) - 1] == empty[:-1]
    assert text_of(tokenizer, ids) == text_of(tokenizer, empty) + begun.lstrip()


@thinking_template
def test_a_continued_answer_has_the_tokens_of_the_whole_one(tokenizer: HfTokenizer) -> None:
    user = Message(USER, "Tell me.")
    for thought in ("", "I know this."):
        start = tokenizer.render([user, Message(ASSISTANT, "One, two", thought)], thinking=False)
        whole = tokenizer.render(
            [user, Message(ASSISTANT, "One, two and three", thought, (call(),)), result("")], thinking=False
        )
        assert whole[: len(start)] == start


@thinking_template
def test_a_thought_is_continued_or_closed(tokenizer: HfTokenizer) -> None:
    user, begun = Message(USER, "a"), Message(ASSISTANT, "", "I think </think> of ")
    opened = text_of(tokenizer, tokenizer.render([user, begun], thinking=True, history=ThoughtHistory.NONE))
    assert opened.endswith("<|im_start|>assistant\n<think>\nI think </think> of ")
    closed = text_of(tokenizer, tokenizer.render([user, begun], thinking=False))
    assert closed.endswith("<|im_start|>assistant\n<think>\nI think </think> of\n</think>\n\n")
    assert len(controls(tokenizer, tokenizer.render([user, begun], thinking=True))) == 4
    nothing = Message(ASSISTANT, " ", "\n")
    for thinking in (True, False):
        assert tokenizer.render([user, nothing], thinking=thinking) == tokenizer.render([user], thinking=thinking)


@every_template
def test_what_cannot_be_continued_is_refused(tokenizer: HfTokenizer) -> None:
    user = Message(USER, "a")
    with pytest.raises(BadRequest) as refused:
        tokenizer.render([user, Message(ASSISTANT, "", tool_calls=(call(),))], thinking=False)
    assert refused.value.violations[0].field == "spec.messages.messages[1].parts"
    assert refused.value.reason == "CONFLICTING_FIELDS"
    with pytest.raises(BadRequest) as refused:
        tokenizer.render([user, Message(ASSISTANT, "secret")], thinking=True)
    assert refused.value.violations[0].field == "spec.messages.messages[1].content"
    assert "secret" not in refused.value.message
