"""The shipped questions are what their command writes, and held out; right is what the task calls right."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from penstock_bench.evaluation.checks import Thresholds
from penstock_bench.evaluation.questions import SHIPPED, Question, is_right, load, pick
from penstock_client import ToolCall

from models.small import question_file
from models.small.languages import LANGUAGES
from models.small.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, question


def some(count: int, kind: str = "k") -> list[Question]:
    return [Question(f"{kind}{number}", kind, "?", None, "1", True) for number in range(count)]


def test_the_shipped_file_is_what_its_command_writes() -> None:
    written = question_file.content("text.jsonl", question_file.SHIPPED_QUESTIONS)
    assert SHIPPED.read_text(encoding="utf-8") == written, "run: python -m models.small.question_file"


def test_no_shipped_question_is_training_data() -> None:
    asked = load(SHIPPED)
    assert all(int(one.id.rsplit("-", 1)[1]) >= question_file.FIRST_SEED > HELD_OUT_SEED for one in asked)
    for kind in MULTI_STEP:
        trained = {(made.earlier, made.text) for made in (question(kind, "en", seed) for seed in range(1000))}
        assert not trained & {(tuple(one.earlier), one.question) for one in asked if one.kind == kind}


def test_the_shipped_mix_is_as_stated() -> None:
    asked = load(SHIPPED)
    assert len(asked) >= Thresholds().min_questions
    found = Counter((one.kind, one.language) for one in asked)
    assert found == dict.fromkeys(itertools.product(KINDS, LANGUAGES), question_file.SHIPPED_QUESTIONS)
    assert {one.kind for one in asked if one.needs_thought} == set(MULTI_STEP)
    assert {one.kind for one in asked if one.earlier} == {"follow_up"}


@pytest.mark.parametrize("kind", KINDS)
def test_right_is_what_the_task_calls_right(kind: str) -> None:
    other = "I do not know."
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 20):
        asked = question(kind, "en", seed)
        for reply in (asked.answer, f" {asked.answer}\n", asked.answer.upper(), f"{asked.answer} 7", "7", other, ""):
            assert is_right(asked.value, reply) == asked.is_right(reply), (asked.value, reply)


@pytest.mark.parametrize(
    ("expected", "reply", "right"),
    [
        ("42", "That makes 42.", True),
        ("42", "42 or 41", False),
        ("-5", "17 - 22 = -5", True),
        ("-5", "5", False),
        ("2.5", "It is 2.5 litres.", True),
        ("2.5", "25", False),
        ("Paris", " Paris\n", True),
        ("Paris", "paris", False),
        ("٤٢", "42", False),
    ],
)
def test_numbers_and_words(expected: str, reply: str, right: bool) -> None:
    assert is_right(expected, reply) is right


def test_fewer_questions_keep_the_mix() -> None:
    everything = [*some(60, "many"), *some(20, "few")]
    asked = pick(everything, 40, seed=0)
    assert Counter(one.kind for one in asked) == {"many": 30, "few": 10}
    assert asked == pick(everything, 40, seed=0) != pick(everything, 40, seed=1)
    assert pick(asked[:10], 20, 0) == pick(asked[:10], 20, 0)
    assert sorted(one.id for one in pick(everything, 1000, 5)) == sorted(one.id for one in everything)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "line 2: answer has the wrong type"),
        ({"needs_thought": "no"}, "line 2: needs_thought has the wrong type"),
        ({"extra": 1}, "line 2: must be an object with the keys id, kind"),
        ({"id": "a"}, "two questions have the same id"),
        ({"earlier": [["only one"]]}, r"line 2: earlier must be a list of \[question, answer\]"),
        ({"earlier": "none"}, "line 2: earlier has the wrong type"),
        ({"image": "?"}, "line 2: image must be a PNG, JPEG or WebP in base64"),
        ({"image": "AAAA"}, "line 2: image must be a PNG, JPEG or WebP in base64"),
        ({"tools": [{}], "calls": ["f"]}, "line 2: calls must be a list of objects with name and arguments"),
        ({"tools": [{}], "calls": [{"name": "f"}]}, "line 2: calls must be a list of objects"),
        ({"calls": [{"name": "f", "arguments": {}}], "results": ["1"]}, "line 2: calls need tools"),
        ({"tools": [{}], "results": ["1"]}, "line 2: results must have a text for each of the 0 calls"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    good = {"id": "a", "kind": "k", "question": "?\u2028", "system": None, "answer": "1", "needs_thought": False}
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in (good, {**good, "id": "b"})))
    assert len(load(file)) == 2
    wrong = {**good, "id": "b", **change}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(wrong)}\n")
    with pytest.raises(ValueError, match=message):
        load(file)


def test_calls_are_right_in_any_order_and_with_equal_arguments() -> None:
    expected = [("f", {"a": 1, "b": "x"}), ("g", {})]
    asked = Question("t", "k", "?", None, "1", False, tools=[{"name": "f"}], calls=expected, results=["1", "2"])
    right = [ToolCall("1", "g"), ToolCall("2", "f", '{"b": "x", "a": 1}')]
    assert asked.is_called_right(right)
    assert asked.is_called_right(right[::-1])
    for wrong in (right[:1], [*right, right[0]], [right[0], ToolCall("2", "f", '{"b": "x", "a": "1"}')]):
        assert not asked.is_called_right(wrong)
    assert not asked.is_called_right([right[0], ToolCall("2", "f", '{"b": "x"')])


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("\n\n")
    with pytest.raises(ValueError, match="no questions"):
        load(file)
