"""Patterns that end a thought: found at the same character as Python finds them, at a bounded cost, in any pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.engine.scripted import ByteTokenizer
from penstock.generation.output_parser import OutputParser, ParserSettings, StepAction
from penstock.generation.stop_patterns import MAX_REGEX_POSITIONS, ThoughtStops, regex_fault
from penstock.types import Delta, Markers, StopPatterns

EOS, OPEN, CLOSE = 258, 259, 260
TOKENIZER = ByteTokenizer()

ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "(?:ab)", "(?:a|bb)", r"\n", r"\w"])
COUNTS = st.sampled_from(["", "*", "+", "?", "{2}", "{0,2}", "{1,}", "{2,3}", "*?", "{0}"])
REGEXES = st.lists(st.tuples(ATOMS, COUNTS).map("".join), min_size=1, max_size=4).flatmap(
    lambda parts: st.sampled_from(["".join(parts), f"(?:{'|'.join(parts)})b", f"(?:{''.join(parts)}){{1,2}}a"])
)
TEXTS = st.text("ab\nc", max_size=14)


def parser(patterns: StopPatterns, *, budget: int = 100) -> OutputParser:
    settings = ParserSettings(Markers(OPEN, CLOSE), frozenset({EOS}), budget, 100, stop_patterns=patterns)
    return OutputParser(settings, TOKENIZER.token_bytes, in_thought=True)


def end_of_first_match(pattern: str, text: str) -> int | None:
    """The fewest characters of a text in which Python finds a match."""
    return next((end for end in range(1, len(text) + 1) if re.search(pattern, text[:end])), None)


@given(REGEXES, TEXTS)
def test_a_regular_expression_is_found_where_python_finds_it(pattern: str, text: str) -> None:
    if regex_fault(pattern):
        assert re.fullmatch(pattern, "") is not None
        return
    stops = ThoughtStops(StopPatterns(regex=pattern))
    found = next((at + 1 for at, character in enumerate(text) if stops.push(character)), None)
    assert found == end_of_first_match(pattern, text)


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), TEXTS)
def test_strings_are_found_where_they_end(strings: list[str], text: str) -> None:
    stops = ThoughtStops(StopPatterns(strings=tuple(strings)))
    found = next((at + 1 for at, character in enumerate(text) if stops.push(character)), None)
    ends = [text.find(one) + len(one) for one in strings if one in text]
    assert found == min(ends, default=None)


@given(REGEXES.filter(lambda pattern: not regex_fault(pattern)), TEXTS, st.integers(1, 5), st.integers(0, 100))
def test_a_thought_ends_at_the_same_token_in_any_steps_and_on_any_server(
    pattern: str, text: str, step: int, budget: int
) -> None:
    patterns = StopPatterns(("cc",), pattern)
    one_by_one = parser(patterns, budget=budget)
    actions = [one_by_one.push([token]) for token in text.encode()]
    expected = next((action for action in actions if action is not StepAction.GO_ON), StepAction.GO_ON)
    moved, action, at = parser(patterns, budget=budget), StepAction.GO_ON, 0
    shown = ""
    while at < len(text) and action is StepAction.GO_ON:
        action = moved.push(text.encode()[at : at + step])
        at += step
        shown += "".join(event.text for event in moved.pop_events() if isinstance(event, Delta))
        state = moved.state()
        moved = parser(patterns, budget=budget)
        moved.restore(state)
    assert action is expected
    if action is StepAction.CLOSE_THOUGHT_AT_PATTERN:
        end = min(e for e in (end_of_first_match(pattern, text), end_of_first_match("cc", text)) if e is not None)
        assert (shown, moved.thought_tokens, bytes(moved.context_ids)) == (text[:end], end, text[:end].encode())


def test_a_pattern_at_the_last_token_of_the_budget_wins() -> None:
    found = parser(StopPatterns(("b",)), budget=2)
    assert found.push(b"abc") is StepAction.CLOSE_THOUGHT_AT_PATTERN
    assert found.thought_tokens == 2


def test_a_state_of_an_earlier_version_begins_the_search_anew() -> None:
    old = parser(StopPatterns(("bc",))).state()
    del old["stops"]
    new = parser(StopPatterns(("bc",)))
    new.restore(old)
    assert new.push(b"bc") is StepAction.CLOSE_THOUGHT_AT_PATTERN


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a*", "empty text"),
        ("", ""),
        ("(?:|a)", "empty text"),
        ("a{0}", "empty text"),
        ("(?:){1000000000}", "empty text"),
        ("a$", "no anchors"),
        ("^a", "no anchors"),
        (r"a\Z", "no anchors"),
        ("(a", "not closed"),
        (r"(a)\1", "not supported"),
        ("(?=a)b", "not supported"),
        ("a{257}", "at most 256"),
        ("(?:a{16}){17}", "got 272"),
        ("((((a{999999999}){999999999}){999999999}){999999999})b", "more than 1000000"),
        ("a{256}", ""),
        ("(?:a{16}){16}", ""),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(pattern: str, why: str) -> None:
    if pattern:
        fault = regex_fault(pattern)
        assert why in fault
        assert bool(fault) == bool(why)


def test_the_cost_of_a_character_is_bounded_where_backtracking_explodes() -> None:
    """Counted, not timed: an expression of the largest size follows each of its positions once for each character."""
    stops = ThoughtStops(StopPatterns(regex="(?:a?){120}(?:a){120}b"))
    assert stops._automaton is not None
    assert len(stops._automaton.sets) == 241 <= MAX_REGEX_POSITIONS
    assert not stops.push("a" * 5000)
    assert stops.push("b")
    assert len(stops._automaton._steps) <= 1024
