"""Record prompts and outputs in traces, where the operator has enabled that."""

from __future__ import annotations

import json
from collections import defaultdict

from penstock.telemetry.otel import names
from penstock.types import Delta, Event, Request

# Limit for an attribute of a span: collectors refuse much larger ones.
_MAX_CHARACTERS = 32_768


class Content:
    """Collect the messages of one generation."""

    def __init__(self) -> None:
        self._input: list[dict[str, object]] = []
        self._said: defaultdict[tuple[int, str], list[str]] = defaultdict(list)

    def asked(self, request: Request) -> None:
        """Add the prompt."""
        turns = [(m.role.value, m.content) for m in request.messages or ()]
        if request.text is not None:
            turns.append(("user", request.text))
        self._input = [_message(role, [("text", text)]) for role, text in turns]

    def on_event(self, event: Event) -> None:
        """Add the text of an event."""
        if isinstance(event, Delta):
            self._said[event.candidate_index, "reasoning" if event.is_thought else "text"].append(event.text)

    def attributes(self) -> dict[str, str]:
        """Return the messages as attributes of a span."""
        indices = sorted({index for index, _ in self._said})
        output = [
            _message(
                "assistant",
                [(kind, "".join(self._said[i, kind])) for kind in ("reasoning", "text") if (i, kind) in self._said],
            )
            for i in indices
        ]
        return {names.INPUT_MESSAGES: json.dumps(self._input), names.OUTPUT_MESSAGES: json.dumps(output)}


def _message(role: str, parts: list[tuple[str, str]]) -> dict[str, object]:
    return {"role": role, "parts": [{"type": kind, "content": text[:_MAX_CHARACTERS]} for kind, text in parts]}
