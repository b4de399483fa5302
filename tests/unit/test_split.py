"""The state machine between thought and answer, by itself: gates, markers, characters, stop strings."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from penstock.engine.scripted import ByteTokenizer
from penstock.generation.output_parser import OutputParser, ParserSettings, StepAction
from penstock.generation.text import StopStrings, Utf8Text
from penstock.generation.tool_calls import ToolCallParser
from penstock.types import Delta, Markers, TokenLogprob, TokenLogprobs, ToolCallFinished, ToolCallFormat

EOS, OPEN, CLOSE = 258, 259, 260
TOKENIZER = ByteTokenizer()
SURE = TokenLogprobs(TokenLogprob(0, 0.0, 1), ())


def splitter(*, budget: int = 100, most: int = 100, stops: tuple[str, ...] = (), **start: bool) -> OutputParser:
    settings = ParserSettings(Markers(OPEN, CLOSE), frozenset({EOS}), budget, most, stops)
    return OutputParser(settings, TOKENIZER.token_bytes, **{"in_thought": True, **start})


def texts(split: OutputParser) -> tuple[str, str]:
    deltas = split.pop_events(final=True)
    return tuple("".join(d.text for d in deltas if d.is_thought is kind) for kind in (True, False))  # type: ignore[return-value]


def test_tokens_past_the_gate_are_dropped_whatever_came_with_them() -> None:
    split = splitter(budget=2)
    assert split.push([*b"abcd", CLOSE, *b"x"]) is StepAction.CLOSE_THOUGHT_AT_BUDGET
    assert (split.thought_tokens, split.context_ids) == (2, list(b"ab"))


def test_a_thought_of_exactly_the_budget_may_still_close_itself() -> None:
    split = splitter(budget=2)
    assert split.push([*b"ab", CLOSE, *b"\n\nyes", EOS]) is StepAction.EOS
    assert texts(split) == ("ab", "yes")
    assert (split.thought_tokens, split.answer_tokens, split.marker_tokens) == (2, 6, 1)


def test_forced_tokens_are_seen_by_the_model_and_counted_as_markers() -> None:
    split = splitter(budget=1)
    split.push(b"ab")
    split.close_thought([*b"enough", CLOSE])
    assert split.push([*b"ok", EOS]) is StepAction.EOS
    assert texts(split) == ("a", "ok")
    assert (split.thought_tokens, split.answer_tokens, split.marker_tokens) == (1, 3, 7)
    assert split.context_ids == [*b"a", *b"enough", CLOSE, *b"ok", EOS]


def test_only_the_first_token_of_a_raw_prompt_may_open_a_thought() -> None:
    opened = splitter(in_thought=False, may_open=True)
    assert opened.push([OPEN, *b"hm", CLOSE, *b"ok", EOS]) is StepAction.EOS
    assert texts(opened) == ("hm", "ok")
    late = splitter(in_thought=False, may_open=True)
    assert late.push([*b"ok", OPEN]) is StepAction.REOPENED


def test_the_end_of_turn_inside_a_thought_asks_to_close_it() -> None:
    split = splitter()
    assert split.push([*b"ab", EOS, *b"c"]) is StepAction.CLOSE_THOUGHT_AFTER_EOS
    assert split.context_ids == list(b"ab")


def test_the_last_allowed_token_ends_the_answer_at_once() -> None:
    split = splitter(in_thought=False, most=3)
    assert split.push(b"abcd") is StepAction.MAX_OUTPUT_TOKENS
    assert split.answer_tokens == 3


def test_a_delta_waits_for_the_whole_character() -> None:
    split = splitter(in_thought=False)
    first, second = "é".encode()
    split.push([first])
    assert split.pop_events() == []
    split.push([second])
    (delta,) = split.pop_events()
    assert (delta.text, delta.token_count) == ("é", 2)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.data())
def test_text_cut_at_any_byte_comes_out_whole(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    stream, pieces = Utf8Text(), []
    for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True):
        pieces.append(stream.push(encoded[start:end]))
    assert "".join(pieces) == text


TOKENS = st.one_of(st.integers(0, 255), st.just(10), st.sampled_from([EOS, OPEN, CLOSE]))


@given(st.lists(st.lists(TOKENS, max_size=5), max_size=12), st.integers(0, 20), st.integers(1, 30), st.booleans())
def test_a_step_at_once_is_the_same_as_token_by_token(
    steps: list[list[int]], budget: int, most: int, in_thought: bool
) -> None:
    quick, slow = (splitter(budget=budget, most=most, in_thought=in_thought) for _ in range(2))
    for step in steps:
        # With log probabilities a splitter takes every token by itself.
        verdicts = quick.push(step), slow.push(step, [SURE] * len(step))
        assert verdicts[0] is verdicts[1]
        assert without_logprobs(quick.state()) == without_logprobs(slow.state())
        assert texts_and_counts(quick) == texts_and_counts(slow)
        if verdicts[0] is not StepAction.GO_ON:
            return


def without_logprobs(state: dict[str, Any]) -> dict[str, Any]:
    for pending in (state["thought"][1], *state["answer"]["pending"]):
        pending[2] = []
    return state


def texts_and_counts(split: OutputParser) -> list[tuple[bool, str, int, tuple[int, ...]]]:
    return [(delta.is_thought, delta.text, delta.token_count, delta.token_ids) for delta in split.pop_events()]


@given(st.binary())
def test_bytes_that_are_no_text_come_out_as_a_whole_decode_would(data: bytes) -> None:
    stream = Utf8Text()
    text = "".join(stream.push(bytes([b])) for b in data)
    # But for a character that has not ended, which stands for nothing.
    assert text == data[: len(data) - len(stream.incomplete)].decode("utf-8", "replace")
    stream.end()
    assert stream.push(b"x") == "x"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_are_found_across_any_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    finder, out, rest = StopStrings(stops), "", text
    while rest and not finder.matched:
        length = data.draw(st.integers(1, len(rest)))
        out += finder.push(rest[:length])
        rest = rest[length:]
    if not finder.matched:
        out += finder.flush()
    # The stop that is complete first ends the answer; what came before it is the answer.
    ends = [(text.find(stop) + len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert (out, finder.matched) == (text, "")
    else:
        assert finder.matched in stops
        assert text.startswith(out + finder.matched)
        assert not any(stop in out for stop in stops)


def test_a_think_marker_inside_a_call_is_a_part_of_it() -> None:
    settings = ParserSettings(Markers(OPEN, CLOSE), frozenset({EOS}), 100, 1000, call_id_prefix="c")
    split = OutputParser(
        settings, TOKENIZER.token_bytes, in_thought=False, tools=ToolCallParser(ToolCallFormat.XML, (), None)
    )
    begin = [*b"<tool_call><function=f><parameter=a>", OPEN]
    assert split.push(begin) is StepAction.MARKER_IN_CALL
    assert split.push([*b"x</parameter></function></tool_call>", EOS]) is StepAction.EOS
    finished = [event for event in split.pop_events(final=True) if isinstance(event, ToolCallFinished)]
    assert [event.call.arguments_json for event in finished] == ['{"a": "x"}']
    assert split.context_ids[: len(begin)] == begin
    assert (split.marker_tokens, split.complete_calls) == (0, 1)


def calling(*, stops: tuple[str, ...] = (), **settings: Any) -> OutputParser:
    """A parser of an answer in which tools may be called; `<tool_call>` is the token 262."""
    made = ParserSettings(Markers(OPEN, CLOSE), frozenset({EOS}), 100, 1000, stops, tool_call_id=262, **settings)
    tools = ToolCallParser(ToolCallFormat.XML, (), None)
    return OutputParser(made, TOKENIZER.token_bytes, in_thought=False, tools=tools)


CALL = [262, *b"<function=f></function>", 263]


def test_tokens_of_deltas_keep_their_order() -> None:
    for tokens in ([*b"hi\n\n", EOS], [*b"hi\n", *CALL, EOS], [*CALL, *b"\n", EOS]):
        split = calling()
        assert split.push(tokens, [TokenLogprobs(TokenLogprob(one, 0.0, 1), ()) for one in tokens]) is StepAction.EOS
        deltas = [event for event in split.pop_events(final=True) if isinstance(event, Delta)]
        told = [token for delta in deltas for token in delta.token_ids]
        rest = iter(tokens)
        assert all(token in rest for token in told), "they are in the order in which they came"
        assert told[-1] == EOS
        assert [one.sampled.token_id for delta in deltas for one in delta.logprobs] == told
        assert sum(delta.token_count for delta in deltas) == split.answer_tokens


def test_nothing_behind_a_stop_string_is_text() -> None:
    class OneToken:
        def __call__(self, token_id: int) -> bytes:
            return b"x = 1;\n<" if token_id == 300 else TOKENIZER.token_bytes(token_id)

    settings = ParserSettings(None, frozenset({EOS}), 0, 100, (";",))
    split = OutputParser(settings, OneToken(), in_thought=False, tools=ToolCallParser(ToolCallFormat.XML, (), None))
    assert split.push([300]) is StepAction.STOP_STRING
    assert texts(split) == ("", "x = 1")


def test_a_stop_token_does_not_act_in_the_header_of_a_call() -> None:
    split = calling(stop_token_ids=frozenset(b"f"))
    assert split.push([*CALL, *b"x", EOS]) is StepAction.EOS
    assert split.complete_calls == 1


def test_log_probabilities_move_with_a_drained_answer() -> None:
    tokens = b"hi\n\n"
    first, second, whole = calling(), calling(), calling()
    sure = [TokenLogprobs(TokenLogprob(one, -0.5, 1), (TokenLogprob(1, -0.1, 1),)) for one in tokens]
    first.push(tokens, sure)
    before = first.pop_events()
    second.restore(json.loads(json.dumps(first.state())))
    events = [*before, *second.pop_events(final=True)]
    whole.push(tokens, sure)
    expected = whole.pop_events(final=True)
    assert [one for event in events for one in event.logprobs] == [one for event in expected for one in event.logprobs]
    assert "".join(event.text for event in events) == "".join(event.text for event in expected)
