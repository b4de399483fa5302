"""Write conversations as token ids, exactly as chat_template.jinja does, with a loss weight on each token."""

import json
from dataclasses import dataclass, field

from tokenizers import Tokenizer
from torch import Tensor

from models.small.config import (
    IM_END,
    IM_START,
    IMAGE_PAD,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_CALL_CLOSE,
    TOOL_CALL_OPEN,
    TOOL_RESPONSE_CLOSE,
    TOOL_RESPONSE_OPEN,
    VISION_END,
    VISION_START,
)
from models.small.positions import Grid
from models.small.tools import FunctionCall


@dataclass
class Example:
    """Token ids of one conversation, and its pictures.

    `weights[i]` is the loss weight of predicting `ids[i]`; 0 for given tokens. `pictures` are
    shown at the `<|image_pad|>` ids, in order: the patches of each, and its height and width in patches.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    pictures: list[tuple[Tensor, Grid]] = field(default_factory=list)

    def add(self, ids: list[int], weight: float = 0.0) -> None:
        """Add ids of one loss weight."""
        self.ids += ids
        self.weights += [weight] * len(ids)


class Encoder:
    """Writes turns exactly as chat_template.jinja does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.newline, self.blank_line = self.encode("\n"), self.encode("\n\n")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; the names of control tokens become control tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids without the turn markers."""
        return str(self._tokenizer.decode(ids))

    def turn(self, role: str, content: list[int]) -> list[int]:
        """Return a whole turn."""
        return [IM_START, *self.encode(role + "\n"), *content, IM_END, *self.newline]

    def system(self, text: str | None, tools: tuple[dict, ...] = ()) -> list[int]:
        """Return the system turn with the functions that are offered; nothing without text and functions."""
        if not tools:
            return self.turn("system", self.encode(text)) if text else []
        parts = ["# Tools\n\nYou have access to the following functions:\n\n<tools>"]
        parts += ["\n" + json.dumps(tool, ensure_ascii=False) for tool in tools]
        parts.append("\n</tools>\n\nTo call a function, reply in this format, with nothing after it:\n\n")
        parts.append("<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>")
        if text:
            parts.append("\n\n" + text)
        return self.turn("system", self.encode("".join(parts)))

    def user(self, text: str, picture_tokens: int = 0) -> list[int]:
        """Return a user's turn; a picture stands before the text."""
        picture = [VISION_START, *[IMAGE_PAD] * picture_tokens, VISION_END] if picture_tokens else []
        return self.turn("user", picture + self.encode(text))

    def earlier(self, turns: tuple[tuple[str, str], ...]) -> list[int]:
        """Return earlier turns, (question, answer) each, whose thoughts the template leaves out."""
        ids: list[int] = []
        for asked, answer in turns:
            ids += self.user(asked) + self.turn("assistant", self.encode(answer))
        return ids

    def generation_prompt(self, thinking: bool) -> list[int]:
        """Return what stands before the model's own tokens."""
        ids = [IM_START, *self.encode("assistant\n"), THINK_OPEN]
        return ids + (self.newline if thinking else [*self.blank_line, THINK_CLOSE, *self.blank_line])

    def thought(self, text: str) -> list[int]:
        """Return a thought's tokens with its last newline, without the closing marker."""
        return self.encode(text) + self.newline

    def forced_closing(self, message: str = "") -> list[int]:
        """Return the text that the server inserts to end a thought. The model writes the blank line after it."""
        return [*self.encode(message), THINK_CLOSE]

    def calls(self, calls: tuple[FunctionCall, ...]) -> list[int]:
        """Return calls as the model writes them after its thought."""
        ids: list[int] = []
        for index, call in enumerate(calls):
            text = f"\n<function={call.name}>\n"
            for name, value in call.arguments.items():
                text += f"<parameter={name}>\n{value}\n</parameter>\n"
            text += "</function>\n"
            ids += [*(self.newline if index else []), TOOL_CALL_OPEN, *self.encode(text), TOOL_CALL_CLOSE]
        return ids

    def results(self, results: tuple[str, ...]) -> list[int]:
        """Return the turn in which the functions' results are given."""
        ids = [IM_START, *self.encode("user")]
        for result in results:
            ids += [*self.newline, TOOL_RESPONSE_OPEN, *self.newline, *self.encode(result), *self.newline]
            ids.append(TOOL_RESPONSE_CLOSE)
        return [*ids, IM_END, *self.newline]
