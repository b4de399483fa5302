"""Test what a constraint's text alone says of its cost."""

from __future__ import annotations

import pytest
from penstock.engine.vllm.constraints.mask_budget import ALLOWANCE_SECONDS, SECONDS_PER_CHECK, MaskTimeBudget
from penstock.generation.complexity import depth_of, nested_repetitions, too_complex
from penstock.types import StructuredKind, StructuredOutput

from tests.hostile.bombs import HARMLESS, REFUSED_BY_TEXT


@pytest.mark.parametrize("bomb", REFUSED_BY_TEXT, ids=lambda bomb: bomb.name)
def test_bombs_that_show_in_their_text(bomb):
    assert too_complex(bomb.constraint)


@pytest.mark.parametrize("constraint", HARMLESS, ids=lambda constraint: constraint.kind.value)
def test_what_people_write_is_simple_enough(constraint):
    assert too_complex(constraint) == ""


@pytest.mark.parametrize(
    ("pattern", "product"),
    [
        ("a{1,1000000}", 1),
        ("(a{5}){4}", 20),
        ("(a{5}b{3}){4}", 20),
        ("((a|b{2}){3}c){4,}", 24),
        (r"\(a{5}\){4}", 1),
        ("([{5}]){4}", 1),
        ("(a{5})*{4}", 20),
        ("a{,5}{2}", 10),
        ("a{b}{c}", 1),
    ],
)
def test_counts_multiply_where_they_are_nested(pattern, product):
    assert nested_repetitions(pattern) == product


def test_literals_of_a_grammar_hold_no_counts_and_those_of_a_regex_do():
    assert nested_repetitions('"(a{5}){4}"', quote='"') == 1
    assert nested_repetitions('"(a{5}){4}"') == 20


def test_brackets_in_strings_are_no_depth():
    assert depth_of(r'{"a":["[[[\"[[",{"b":[1]}]}') == 4
    assert depth_of('"[[[') == 0


@pytest.mark.parametrize("piece", ['["', "{", "{1", '"', '"\\', "{ ", "(", "\\", "[", "a{9", "){2}", "{1,"])
@pytest.mark.timeout(100)
def test_a_look_at_the_text_is_linear(piece):
    """At 64 KiB anything quadratic takes longer than the test may."""
    text = piece * (64 * 1024 // len(piece))
    for kind in StructuredKind:
        too_complex(StructuredOutput(kind, text))  # does not end in time, or ends


def test_patience_is_over_for_good_once_it_is_spent_and_never_saved_up():
    patience = MaskTimeBudget()
    for _ in range(10_000):
        patience.spend(SECONDS_PER_CHECK)
    assert not patience.is_over
    for _ in range(1000):
        patience.spend(0.0)
    assert patience.left_seconds == ALLOWANCE_SECONDS
    patience.spend(ALLOWANCE_SECONDS + 0.1)
    patience.spend(0.0)
    assert patience.is_over
