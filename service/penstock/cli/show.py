"""A reply on a terminal: the thought dimmed, the answer plain, one line of numbers."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from penstock_client import (
    AnswerDelta,
    Continued,
    Event,
    Finished,
    Interrupted,
    InterruptionReason,
    Response,
    ThinkingFinished,
    ThinkingOutcome,
    ThoughtDelta,
)
from penstock_client.values import FinishReason, ThinkingMode

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console

_BETWEEN = " · "
_OUTCOMES = {
    ThinkingOutcome.NATURAL_END: "natural end",
    ThinkingOutcome.BUDGET_REACHED: "budget reached",
    ThinkingOutcome.FINISHED_BY_CLIENT: "finished by you",
    ThinkingOutcome.DEADLINE: "closed for the deadline",
    ThinkingOutcome.MAX_OUTPUT_TOKENS: "cut at the output limit",
    ThinkingOutcome.CANCELLED: "cancelled",
}
# A model's output must not steer the terminal: every control character but tab and newline goes.
_NO_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class StreamPrinter:
    """Prints events as they come: thoughts to one console, the answer to another (or the same).

    `labels` names the two in words, for output that has no dim.
    """

    def __init__(self, thoughts: Console, answers: Console, *, labels: bool = False) -> None:
        self._consoles = {ThoughtDelta: thoughts, AnswerDelta: answers}
        self._labels = labels
        self._kind: type[ThoughtDelta | AnswerDelta] | None = None
        self._at_line_start = True

    def show(self, event: Event) -> None:
        match event:
            case ThoughtDelta() | AnswerDelta():
                self._text(type(event), event.text)
            case ThinkingFinished() | Finished():
                self.end_line()
            case Interrupted():
                self._notice(interruption_line(event))
            case Continued():
                self._notice(f"(the reply goes on after {event.interrupted_seconds:.0f} s)")

    def _notice(self, line: str) -> None:
        """Print a line beside the text; where the answer has a console of its own, none of it gets there."""
        notices, answers = self._consoles[ThoughtDelta], self._consoles[AnswerDelta]
        if self._kind is ThoughtDelta or notices is answers:
            self.end_line()
        elif notices.is_terminal and not self._at_line_start:
            notices.out()  # the answer's line is on the same screen
        notices.out(line, style="dim", highlight=False)

    def end_line(self) -> None:
        """Ends the line of text under way, if there is one."""
        if self._kind is not None and not self._at_line_start:
            self._consoles[self._kind].out()
        self._at_line_start = True

    def _text(self, kind: type[ThoughtDelta | AnswerDelta], text: str) -> None:
        text = text.translate(_NO_CONTROLS)
        if kind is not self._kind:
            text = text.lstrip("\n")
            if not text:
                return
            self.end_line()
            self._kind = kind
            if self._labels:
                self._consoles[kind].out("thought: " if kind is ThoughtDelta else "answer: ", end="")
        if text:
            style = "dim" if kind is ThoughtDelta else None
            self._consoles[kind].out(text, end="", style=style, highlight=False)
            self._at_line_start = text.endswith("\n")


def interruption_line(event: Interrupted) -> str:
    """Say why nothing comes, and for how long."""
    happened = "hangs" if event.reason is InterruptionReason.ENGINE_HUNG else "died"
    match event.expected_seconds:
        case None:
            expected = ""
        case seconds if seconds < 1:
            expected = ", at any moment"
        case seconds:
            expected = f" in about {seconds:.0f} s"
    return f"(the engine {happened} and is started again; the reply goes on by itself{expected})"


def usage_line(response: Response) -> str:
    """The numbers of a finished reply, e.g. `thought 12/16 tokens (budget reached) · answer 5 · prompt 31 · ...`."""
    usage, settings, timing = response.usage, response.effective_settings, response.timing
    if usage is None or settings is None or timing is None:
        return "no numbers: the reply is not complete"
    outcome = _OUTCOMES.get(response.thinking_outcome or ThinkingOutcome.UNKNOWN)
    parts = [
        f"thought {usage.reasoning_tokens}/{settings.thinking_budget} tokens ({outcome})" if outcome else "no thought",
        f"answer {usage.answer_tokens}",
        f"prompt {usage.prompt_tokens}" + (f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""),
    ]
    if settings.dropped_messages or settings.dropped_tokens:
        parts.append(f"dropped {settings.dropped_messages} messages, {settings.dropped_tokens} tokens")
    if timing.first_token_seconds is not None:
        parts.append(f"first token {timing.first_token_seconds:.2f} s")
    if response.output_tokens_per_second is not None:
        parts.append(f"{response.output_tokens_per_second:.0f} tok/s")
    if response.cost is not None:
        parts.append(usd(response.cost.usd))
    if response.finish_reason not in (FinishReason.STOP, None):
        parts.append(f"ended by {response.finish_reason.replace('_', ' ')}")
    return _BETWEEN.join(parts)


def fitted(line: str, console: Console) -> str:
    """Break a line of items between them, where the terminal is too narrow for all."""
    if not console.is_terminal:
        return line
    lines = [""]
    for item in line.split(_BETWEEN):
        longer = f"{lines[-1]}{_BETWEEN}{item}" if lines[-1] else item
        if len(longer) > console.width and lines[-1]:
            lines.append(item)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def print_numbers(console: Console, response: Response) -> None:
    """The usage line, and where the server chose the budget, why."""
    console.out(fitted(usage_line(response), console), style="dim", highlight=False)
    settings = response.effective_settings
    if settings is not None and settings.requested_thinking_mode is ThinkingMode.AUTO:
        console.out(settings.thinking_reason, style="dim", highlight=False)


def usd(amount: Decimal) -> str:
    """Exact, without an exponent and without zeros at the end: $0.0000231."""
    text = f"{amount:f}"
    return "$" + (text.rstrip("0").rstrip(".") if "." in text else text)


def json_line(message: Message) -> str:
    """The proto as one line of JSON, with the API's field names and every field that has a default."""
    from google.protobuf.json_format import MessageToDict

    plain: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain, ensure_ascii=False)


def print_json(message: Message) -> None:
    sys.stdout.write(json_line(message) + "\n")
    sys.stdout.flush()
