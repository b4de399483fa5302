"""Define a workload: lengths, thinking modes and shared prefixes, each drawn from a weighted mix."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from penstock_client import Tool

MODES = ("fast", "thinking", "auto")
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Work:
    """One call to make, in tokens; None: the server's default. `prompt` is sent instead of made-up text."""

    prompt_tokens: int
    output_tokens: int | None = None
    mode: str | None = None
    budget_tokens: int | None = None
    prefix: str = ""
    """Name of a prefix: calls with the same name begin with the same `prefix_tokens`, a part of `prompt_tokens`."""
    prefix_tokens: int = 0
    deadline_seconds: float | None = None
    prompt: str | None = None
    kind: str = ""
    """Name of the kind of question; results are also reported by kind."""
    blocks: tuple[int, ...] = ()
    """Ids of the prompt's blocks of `block_tokens`: equal ids have equal text."""
    block_tokens: int = 0
    turns: int = 1
    """Number of calls of the conversation; each prompt has the messages before it."""
    turn_tokens: int = 0
    """Tokens of each user message after the first."""
    keep_thought: bool = False
    """Whether earlier thoughts are sent with their answers."""
    pause_seconds: float = 0.0
    """Seconds between the end of a turn and the next one."""
    images: int = 0
    """Number of images of the first message, beside `prompt_tokens`; each is different."""
    image_width: int = 0
    image_height: int = 0
    tool_calls: int = 0
    """Number of calls in which the model must ask for a tool, before the first one in which it answers."""
    tool_result_tokens: int = 0
    """Tokens of each tool's result."""

    @property
    def calls(self) -> int:
        """Return the number of calls of the conversation."""
        return self.tool_calls + self.turns


@dataclass(frozen=True, slots=True)
class Pictures:
    """Numbers and size of a call's images."""

    number: Lengths
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ToolLoop:
    """Numbers of tool calls, and lengths of their results."""

    calls: Lengths
    result_tokens: Lengths


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that is sent unchanged, and its kind."""

    kind: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Lengths of conversations; the defaults are single calls."""

    turns: Lengths
    turn_tokens: Lengths
    keep_thought: bool = False
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Weighted ranges of token counts, including both ends, such as `128`, `64-256` or `128@3,1024-4096@1`."""

    parts: tuple[tuple[int, int, float], ...]

    @classmethod
    def parse(cls, text: str, least: int = 1) -> Self:
        """Return the mix of an option's text. Raises ValueError with the wrong part."""
        parts = []
        for part, weight in _weighted(text):
            found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            low, high = (int(found[1]), int(found[2] or found[1])) if found else (-1, -1)
            if not least <= low <= high <= _MAX_TOKENS:
                raise ValueError(f"must be a count of {least} or more or a range, such as 128 or 64-256, got {part!r}")
            parts.append((low, high, weight))
        return cls(tuple(parts))

    def draw(self, rng: random.Random) -> int:
        """Draw one value from the mix."""
        low, high, _ = rng.choices(self.parts, [weight for *_, weight in self.parts])[0]
        return rng.randint(low, high)

    @property
    def longest(self) -> int:
        """Return the largest length of the mix."""
        return max(high for _, high, _ in self.parts)


@dataclass(frozen=True, slots=True)
class Thinking:
    """Weighted modes with optional budgets, such as `auto`, `fast@3,thinking:64@1` or `thinking:-1`."""

    parts: tuple[tuple[str, int | None, float], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the mix of an option's text. Raises ValueError with the wrong part."""
        parts = []
        for part, weight in _weighted(text):
            mode, colon, budget = part.partition(":")
            if mode not in MODES or (colon and not re.fullmatch(r"-1|\d+", budget)):
                raise ValueError(f"must be one of {', '.join(MODES)}, each with an optional :BUDGET, got {part!r}")
            parts.append((mode, int(budget) if colon else None, weight))
        return cls(tuple(parts))

    def draw(self, rng: random.Random) -> tuple[str, int | None]:
        """Draw one value from the mix."""
        mode, budget, _ = rng.choices(self.parts, [weight for *_, weight in self.parts])[0]
        return mode, budget


def _weighted(text: str) -> list[tuple[str, float]]:
    parts = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        what, at, weight = part.partition("@")
        if at and not re.fullmatch(r"\d+(\.\d+)?", weight):
            raise ValueError(f"the weight after @ must be a number, got {part!r}")
        parts.append((what, float(weight) if at else 1.0))
    if sum(weight for _, weight in parts) <= 0:
        raise ValueError(f"must have a weight above 0, got {text!r}")
    return parts


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload from which calls are drawn. `prefixes` is the number of shared prefixes; 0: all prompts differ."""

    prompt: Lengths
    output: Lengths | None
    thinking: Thinking
    prefixes: int = 0
    prefix_tokens: int = 0
    deadline_seconds: float | None = None
    questions: tuple[Question, ...] = ()
    """Questions that are sent instead of made-up text, each equally often."""
    conversation: Conversation | None = None
    pictures: Pictures | None = None
    tool_loop: ToolLoop | None = None

    def draw(self, rng: random.Random) -> Work:
        """Return the next call, or the first of a conversation."""
        mode, budget = self.thinking.draw(rng)
        work = Work(
            prompt_tokens=self.prompt.draw(rng),
            output_tokens=None if self.output is None else self.output.draw(rng),
            mode=mode,
            budget_tokens=budget,
            prefix=f"prefix {rng.randrange(self.prefixes)}" if self.prefixes else "",
            prefix_tokens=self.prefix_tokens if self.prefixes else 0,
            deadline_seconds=self.deadline_seconds,
        )
        if self.questions:
            question = rng.choice(self.questions)
            work = replace(work, prompt=question.prompt, kind=question.kind)
        if self.conversation is not None:
            spoken = self.conversation
            work = replace(
                work,
                turns=spoken.turns.draw(rng),
                turn_tokens=spoken.turn_tokens.draw(rng),
                keep_thought=spoken.keep_thought,
                pause_seconds=spoken.pause_seconds,
            )
        if self.pictures is not None:
            shown = self.pictures
            work = replace(work, images=shown.number.draw(rng), image_width=shown.width, image_height=shown.height)
        if self.tool_loop is not None:
            loop = self.tool_loop
            work = replace(work, tool_calls=loop.calls.draw(rng), tool_result_tokens=loop.result_tokens.draw(rng))
        return work


TOOL = Tool(
    "look_up",
    "Look up a fact. Call it before answering.",
    {"type": "object", "properties": {"query": {"type": "string", "maxLength": 32}}, "required": ["query"]},
)
"""The tool of a tool loop. A grammar holds its calls, so that each one ends and can be answered."""


def options_of(work: Work, turn: int = 0, *, exact: bool, temperature: float | None) -> Mapping[str, Any]:
    """Return the client's keywords for a call of a conversation.

    With `exact` the model may not end before `output_tokens`. A tool call has its own length.
    """
    asks = turn < work.tool_calls
    options: dict[str, Any] = {
        "thinking": work.mode,
        "budget": work.budget_tokens,
        "timeout": work.deadline_seconds,
        "max_output_tokens": None if asks else work.output_tokens,
        "min_output_tokens": work.output_tokens if exact and not asks else None,
        "temperature": temperature,
    }
    if work.tool_calls:
        options |= {"tools": [TOOL], "tool_mode": "required" if asks else "none", "max_tool_calls": 1 if asks else None}
    return options
