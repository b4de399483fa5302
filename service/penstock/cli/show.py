"""Print replies on a terminal: the thought dimmed, the answer plain, and a line of numbers."""

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
    Run,
    ThinkingFinished,
    ThinkingOutcome,
    ThoughtDelta,
    ToolCall,
    ToolCallFinished,
    ToolCallStatus,
    ToolResult,
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
    ThinkingOutcome.STOP_PATTERN: "a stop pattern showed",
    ThinkingOutcome.CONVERGED: "the answer was certain",
}
# A model's output must not control the terminal: every control character but tab and newline is removed.
_NO_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class StreamPrinter:
    """Print events as they come: thoughts to one console, the answer to another (or the same).

    `labels` adds their names, for output without dimmed text.
    """

    def __init__(self, thoughts: Console, answers: Console, *, labels: bool = False) -> None:
        self._consoles = {ThoughtDelta: thoughts, AnswerDelta: answers}
        self._labels = labels
        self._kind: type[ThoughtDelta | AnswerDelta] | None = None
        self._at_line_start = True

    def show(self, event: Event) -> None:
        """Print one event."""
        match event:
            case ThoughtDelta() | AnswerDelta():
                self._text(type(event), event.text)
            case ThinkingFinished() | Finished():
                self.end_line()
            case ToolCallFinished():
                self._notice(call_line(event.call))
            case Interrupted():
                self._notice(interruption_line(event))
            case Continued():
                self._notice(f"(the reply continues after {event.interrupted_seconds:.0f} s)")

    def _notice(self, line: str) -> None:
        """Print a line beside the text, but never to a console that the answer has for itself."""
        notices, answers = self._consoles[ThoughtDelta], self._consoles[AnswerDelta]
        if self._kind is ThoughtDelta or notices is answers:
            self.end_line()
        elif notices.is_terminal and not self._at_line_start:
            notices.out()  # the answer's line is on the same screen
        notices.out(line, style="dim", highlight=False)

    def end_line(self) -> None:
        """End the current line of text, if there is one."""
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


_MAX_SHOWN = 200


def _brief(text: str) -> str:
    line = " ".join(text.translate(_NO_CONTROLS).split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."


def call_line(call: ToolCall) -> str:
    """Return a tool call in one line."""
    cut = "" if call.status is ToolCallStatus.COMPLETE else " (cut: not executed)"
    return f"-> {_brief(call.name)} {_brief(call.arguments_json)}{cut}"


def result_line(call: ToolCall, result: ToolResult) -> str:
    """Return the result of a tool call in one line."""
    return f"<- {_brief(call.name)}{' failed' if result.is_error else ''}: {_brief(result.text)}"


def run_line(run: Run) -> str:
    """Return the numbers of all turns of a run together."""
    usage, cost = run.usage, run.cost
    parts = [f"{len(run.turns)} turns together: prompt {usage.prompt_tokens}", f"output {usage.output_tokens} tokens"]
    return _BETWEEN.join([*parts, *([usd(cost.usd)] if cost is not None else [])])


def interruption_line(event: Interrupted) -> str:
    """Return why no text comes, and for how long."""
    happened = "hangs" if event.reason is InterruptionReason.ENGINE_HUNG else "died"
    match event.expected_seconds:
        case None:
            expected = ""
        case seconds if seconds < 1:
            expected = ", at any moment"
        case seconds:
            expected = f" in about {seconds:.0f} s"
    return f"(the engine {happened} and is being restarted; the reply continues{expected})"


def usage_line(response: Response) -> str:
    """Return the numbers of a reply, such as `thought 12/16 tokens (budget reached) · answer 5 · prompt 31 · ...`."""
    usage, settings, timing = response.usage, response.effective_settings, response.timing
    if usage is None or settings is None or timing is None:
        return "no token counts: the reply is incomplete"
    outcome = _OUTCOMES.get(response.thinking_outcome or ThinkingOutcome.UNKNOWN)
    parts = [
        f"thought {usage.reasoning_tokens}/{settings.thinking_budget} tokens ({outcome})" if outcome else "no thought",
        f"answer {usage.answer_tokens}",
        f"prompt {usage.prompt_tokens}" + (f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""),
    ]
    if usage.tool_tokens:
        parts.insert(2, f"tool calls {usage.tool_tokens}")
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
    """Break a line of items between them where the terminal is too narrow."""
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
    """Print the usage line, and why the server chose the budget where it did."""
    console.out(fitted(usage_line(response), console), style="dim", highlight=False)
    settings = response.effective_settings
    if settings is not None and settings.requested_thinking_mode is ThinkingMode.AUTO:
        console.out(settings.thinking_reason, style="dim", highlight=False)


def usd(amount: Decimal) -> str:
    """Return an exact amount without exponent and trailing zeros: $0.0000231."""
    text = f"{amount:f}"
    return "$" + (text.rstrip("0").rstrip(".") if "." in text else text)


def json_line(message: Message) -> str:
    """Return a message as one line of JSON, with the API's field names and all fields with a default."""
    from google.protobuf.json_format import MessageToDict

    plain: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain, ensure_ascii=False)


def print_json(message: Message) -> None:
    """Print a message as JSON."""
    sys.stdout.write(json_line(message) + "\n")
    sys.stdout.flush()
