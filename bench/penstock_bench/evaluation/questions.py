"""Load questions with known answers from the shipped file or a user's, and decide whether an answer is right.

A question file has one JSON object per line: id, kind, question, system (or null), answer, needs_thought. It may have
language; earlier, a list of [question, answer]; image, a PNG, JPEG or WebP in base64; tools, a list as OpenAI's API
takes it; calls, the right calls as objects with name and arguments; results, the text that each call gives.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from penstock_bench.load import json_lines
from penstock_client import ImagePart, Message, ToolCall

SHIPPED = Path(__file__).parent / "questions.jsonl"
"""The shipped file: thirteen kinds in six languages, in equal parts; seven of the kinds need thought.

`python -m models.small.question_file` writes it.
"""

Form = Literal["text", "follow_up", "image", "tools"]
"""What a question has beside its text: nothing, earlier turns, an image, or tools."""
_TYPES: Mapping[str, Any] = {
    "id": str,
    "kind": str,
    "question": str,
    "system": str | None,
    "answer": str,
    "needs_thought": bool,
    "language": str,
    "earlier": list,
    "image": str | None,
    "tools": list,
    "calls": list,
    "results": list,
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `needs_thought`, `kind` and `language` are for the report only and never sent.

    Attributes:
        earlier: The turns before it, as (question, answer).
        image: An image that is shown before the text.
        tools: The tools that are offered.
        calls: The right calls, as (name, arguments). Empty beside `tools`: none of them should be called.
        results: What each of the calls gives.
    """

    id: str
    kind: str
    question: str
    system: str | None
    answer: str
    needs_thought: bool
    language: str = ""
    earlier: Sequence[tuple[str, str]] = ()
    image: ImagePart | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    results: Sequence[str] = ()

    @property
    def form(self) -> Form:
        """Return what the question has beside its text."""
        if self.tools:
            return "tools"
        if self.image is not None:
            return "image"
        return "follow_up" if self.earlier else "text"

    @property
    def messages(self) -> list[Message]:
        """Return the conversation."""
        turns = [] if self.system is None else [Message.system(self.system)]
        for asked, answered in self.earlier:
            turns += [Message.user(asked), Message.assistant(answered)]
        shown = () if self.image is None else (self.image,)
        return [*turns, Message.user(*shown, self.question)]

    def is_called_right(self, calls: Sequence[ToolCall]) -> bool:
        """Return whether a reply has the right calls, in any order, with equal arguments."""
        try:
            made = [_plain(call.name, call.arguments) for call in calls]
        except ValueError:
            return False
        return sorted(made) == sorted(_plain(name, arguments) for name, arguments in self.calls)


def _plain(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True)


def is_right(expected: str, reply: str) -> bool:
    """Return whether `reply` gives the answer.

    Its last number counts if a number is expected; else the whole reply without blanks at its ends.

    A whole number is compared with the last run of digits, any other number with sign and fraction.
    """
    if re.fullmatch(r"\d+", expected, re.ASCII):
        numbers = re.findall(r"\d+", reply)
    elif re.fullmatch(r"-?\d+(\.\d+)?", expected, re.ASCII):
        numbers = re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", reply)
    else:
        return reply.strip() == expected.strip()
    return bool(numbers) and numbers[-1] == expected


def load(path: Path) -> list[Question]:
    """Return all questions of a file. Raises ValueError with the wrong line, and OSError if it cannot be read."""
    found = json_lines.read(path, _question, "questions")
    if len({one.id for one in found}) < len(found):
        raise ValueError(f"{path}: two questions have the same id")
    return found


def _question(entry: object) -> Question:
    needed = [field.name for field in fields(Question) if field.default is MISSING]
    others = [field.name for field in fields(Question) if field.default is not MISSING]
    if not isinstance(entry, dict) or not set(needed) <= set(entry) <= {*needed, *others}:
        raise ValueError(f"must be an object with the keys {', '.join(needed)}; may have {', '.join(others)}")
    for name, value in entry.items():
        if not isinstance(value, _TYPES[name]):
            raise ValueError(f"{name} has the wrong type")
    earlier = [_pair(turn, "earlier", "[question, answer]", str, str) for turn in entry.get("earlier", ())]
    calls = []
    for call in entry.get("calls", ()):
        parts = [call.get("name"), call.get("arguments")] if isinstance(call, dict) else call
        calls.append(_pair(parts, "calls", "objects with name and arguments", str, dict))
    made = Question(**entry | {"earlier": earlier, "calls": calls, "image": _image(entry.get("image"))})
    if calls and not made.tools:
        raise ValueError("calls need tools")
    if len(made.results) != len(calls) or not all(isinstance(one, str) for one in made.results):
        raise ValueError(f"results must have a text for each of the {len(calls)} calls")
    return made


def _pair(value: object, name: str, form: str, first: type, second: type) -> tuple[Any, Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name} must be a list of {form}")
    if not isinstance(value[0], first) or not isinstance(value[1], second):
        raise ValueError(f"{name} must be a list of {form}")
    return value[0], value[1]


def _image(text: str | None) -> ImagePart | None:
    if text is None:
        return None
    try:
        return ImagePart.from_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image must be a PNG, JPEG or WebP in base64: {error}") from None


def pick(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Return at most `count` questions, each kind in proportion and spread evenly, chosen by `seed`."""
    rng = random.Random(seed)
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    placed: list[tuple[float, int, Question]] = []
    for order, group in enumerate(by_kind.values()):
        rng.shuffle(group)
        placed += [((index + 0.5) / len(group), order, question) for index, question in enumerate(group)]
    placed.sort(key=lambda place: place[:2])
    return [question for _, _, question in placed[:count]]
