"""Every question that our documentation, examples, docstrings and hints suggest is answered right by our model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello

ROOT = Path(__file__).parents[2]
_PLACES = (
    *("README.md", "SECURITY.md", "docs/**/*.md", "docker/**/*.md", "docker/**/*.yaml", "helm/**/*.md"),
    *("helm/penstock/templates/NOTES.txt", "helm/penstock/files/*.py", "examples/**/*.*", "service/penstock/cli/*.py"),
    *("gateway/**/*.md", "gateway/**/*.py", "gateway/**/*.html", "gateway/**/*.js"),
    *("clients/*/README.md", "clients/python/penstock_client/*.py", "clients/typescript/src/*.ts", "clients/go/*.go"),
)
_ASKED = re.compile(
    r"""(?P<call>penstock\ (?:generate|count)\ | (?:generate|stream|interact|[Aa]sk|Text)\(\s* | )  # who asks, if told
        (?:f?(?P<quote>["'])(?P<text>[A-Z][^"'\n]*?)(?P=quote)|(?<=>)(?P<html>[A-Z][^"'<>\n]*?\?)(?=</))""",
    re.VERBOSE,
)
_SUM = re.compile(r"What is ([\d +\-]+)\?")
_KNOWN = {"Which is larger, 53 or 25?": "53"}
"""Right answers of questions that are no sums; whoever documents a new one adds it here."""
_NEED_TOOLS = {"How warm is it in Oslo?"}
"""Questions for models that call tools. The small model is not trained for that, which docs/how-to/call-tools.md says;
tests/rpc/test_documented_tools.py runs them on the scripted engine."""
_NEED_IMAGES = {"What is the sum?"}
"""Questions about a picture, for models with a vision tower."""


@dataclass(frozen=True)
class Question:
    text: str
    budget: int | None
    """Thought tokens, where the line names them; -1 is no limit."""


def questions_in(text: str) -> Iterator[Question]:
    """Yield what a text suggests to ask: strings that are asked by a call or command, and those that are questions."""
    for line in text.splitlines():
        budget = re.search(r"[Bb]udget[=: (]+(-?\d+)", line)
        for found in _ASKED.finditer(line):
            asked = found["text"] or found["html"]
            if "count" in found["call"] or (not found["call"] and not asked.endswith("?")):
                continue
            for filled in _filled(asked):
                yield Question(filled, int(budget[1]) if budget else None)


def _filled(text: str) -> list[str]:
    """Return what a template with {n} stands for, as examples/python/many.py counts it."""
    if "{" not in text:
        return [text]
    made = []
    for n in range(1, 9):
        made.append(re.sub(r"\{n(?: \+ (\d+))?\}", lambda found, n=n: str(n + int(found[1] or 0)), text))
    return made


def documented() -> dict[Question, list[str]]:
    """Return every question with the files that have it."""
    found: dict[Question, list[str]] = {}
    for pattern in _PLACES:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and not {"node_modules", "dist", "decisions", "v1"} & set(path.parts):
                for question in questions_in(path.read_text(encoding="utf-8")):
                    if question.text in _NEED_TOOLS | _NEED_IMAGES:
                        continue
                    found.setdefault(question, []).append(str(path.relative_to(ROOT)))
    return found


def right_answer(question: str) -> str:
    if total := _SUM.fullmatch(question):
        return str(sum(int(term.replace(" ", "")) for term in re.findall(r"[+-]?\s*\d+", total[1])))
    assert question in _KNOWN, f"{question!r} is documented; add its right answer to _KNOWN, or ask a sum"
    return _KNOWN[question]


def test_questions_are_found_where_they_are_written() -> None:
    text = """
    penstock generate "What is 1 + 2?" --budget 8
    reply = client.generate("Add these", thinking="thinking", budget=64)
    print("Which one?")  and  penstock count "How long is this?"
    questions = [f"What is {n} + {n + 1}?" for n in range(1, 9)]
    <textarea id="question" required>What is 3 + 4?</textarea>
    """
    found = list(questions_in(text))
    assert found[:3] == [Question("What is 1 + 2?", 8), Question("Add these", 64), Question("Which one?", None)]
    assert [question.text for question in found[3:-1]] == [f"What is {n} + {n + 1}?" for n in range(1, 9)]
    assert found[-1] == Question("What is 3 + 4?", None)
    places = {place for places in documented().values() for place in places}
    assert {"README.md", "examples/python/many.py", "service/penstock/cli/demo.py"} <= places
    assert "gateway/penstock_gateway/playground/static/index.html" in places
    assert right_answer("What is 58 + 38 - 65?") == "31"


async def test_every_documented_question_is_answered_right(channel: grpc.aio.Channel) -> None:
    """With the budget that is written beside it; without one in AUTO, and with as much thought as it likes."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    wrong = []
    for question, places in documented().items():
        auto = pb.ThinkingConfig(mode=pb.THINKING_MODE_AUTO)
        thought = pb.ThinkingConfig(
            mode=pb.THINKING_MODE_THINKING, thinking_budget=-1 if question.budget is None else question.budget
        )
        for thinking in (auto, thought) if question.budget is None else (thought,):
            reply = await stub.Generate(pb.GenerateRequest(spec=hello(question.text, thinking=thinking)))
            answer = reply.candidates[0].answer if reply.candidates else ""
            if right_answer(question.text) not in re.findall(r"-?\w+", answer)[-1:]:
                wrong.append(f"{places[0]}: {question.text} (budget {question.budget}) -> {answer!r}")
    assert wrong == []
