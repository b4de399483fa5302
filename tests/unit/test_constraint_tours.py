"""The trial of a constraint visits each tool and each argument, and finds the costly one wherever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar
from penstock.engine.vllm.constraints import sandbox_process
from penstock.engine.vllm.constraints.json_schema import rewritten
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.engine.vllm.constraints.tool_calls import structural_tag
from penstock.engine.vllm.constraints.tours import tours_of
from penstock.types import Tool, ToolCallFormat, ToolConstraint

from tests.unit.grammar_walks import END, compiled_schema, compiled_tag

COSTLY_SECONDS = 0.06
"""What a mask costs inside the costly value: five of them are more than a request may cost."""
FREE = {"type": "string"}


class Costing:
    """A matcher whose masks cost CPU time, by a clock of its own, while the text so far is inside a costly value."""

    def __init__(self, grammar: Any, costly: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._matcher = xgrammar.GrammarMatcher(grammar)
        self._begin, self._end = costly
        self.text = b""
        self.texts: list[str] = []
        self._now = 0.0
        monkeypatch.setattr(sandbox_process.time, "thread_time", lambda: self._now)

    @property
    def stop_token_ids(self) -> list[int]:
        return [END]

    def reset(self) -> None:
        self.texts.append(self.text.decode(errors="replace"))
        self.text = b""
        self._matcher.reset()

    def fill_next_token_bitmask(self, mask: Any, row: int) -> None:
        opened = self.text.rfind(self._begin.encode())
        if opened >= 0 and self._end.encode() not in self.text[opened + len(self._begin) :]:
            self._now += COSTLY_SECONDS
        self._matcher.fill_next_token_bitmask(mask, row)

    def accept_token(self, token: int) -> bool:
        accepted = bool(self._matcher.accept_token(token))
        self.text += bytes([token]) if accepted and token != END else b""
        return accepted

    def accept_string(self, text: str) -> bool:
        before = bool(self._matcher.accept_string(text))
        self.text += text.encode() if before else b""
        return before


def verdict(matcher: Costing, kind: str, spec: str) -> SandboxResult:
    return sandbox_process.written(matcher, END + 1, tours_of(kind, spec))


def schema(names: list[str], *, required: bool, part: Any = FREE) -> dict[str, Any]:
    whole = {"type": "object", "properties": dict.fromkeys(names, part), "additionalProperties": False}
    return whole | {"required": names} if required else whole


@pytest.mark.slow
@pytest.mark.parametrize("requires_call", [True, False])
@pytest.mark.parametrize("max_calls", [None, 1, 3])
@pytest.mark.parametrize("call_format", ToolCallFormat)
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("at", [0, 7, 15])
def test_a_costly_tool_among_many_is_found(
    at: int,
    required: bool,
    call_format: ToolCallFormat,
    max_calls: int | None,
    requires_call: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"a{number}" for number in range(8)]
    tools = [
        Tool(f"t{n}", "", json.dumps(schema([*names, "costly"] if n == at else names, required=required)), strict=True)
        for n in range(16)
    ]
    spec = structural_tag(ToolConstraint(call_format, tuple(tools), requires_call, max_calls))
    is_xml = call_format is ToolCallFormat.XML
    costly = ("<parameter=costly>\n", "</parameter>") if is_xml else ('"costly":', "}")
    matcher = Costing(compiled_tag(spec), costly, monkeypatch)
    assert verdict(matcher, "structural_tag", spec) is SandboxResult.SLOW
    cheap = Costing(compiled_tag(spec), ("never", "x"), monkeypatch)
    assert verdict(cheap, "structural_tag", spec) is SandboxResult.GOOD
    written = "".join([*cheap.texts, cheap.text.decode(errors="replace")])
    for tool in tools:
        for name in json.loads(tool.parameters_json_schema)["properties"]:
            assert (f"<parameter={name}>" if is_xml else f'"{name}":') in written


@pytest.mark.parametrize("required", [True, False])
def test_a_costly_property_behind_free_text_is_found(required: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = schema(["x", "costly"], required=required)
    whole = schema(["a", "b", "c"], required=required)
    whole["properties"] |= {"list": {"type": "array", "items": deep}, "deep": deep, "last": FREE}
    spec = rewritten(json.dumps(whole))
    matcher = Costing(compiled_schema(spec), ('"costly":', "}"), monkeypatch)
    assert verdict(matcher, "json", spec) is SandboxResult.SLOW
    cheap = Costing(compiled_schema(spec), ("never", "x"), monkeypatch)
    assert verdict(cheap, "json", spec) is SandboxResult.GOOD
    assert all(f'"{name}":' in "".join(cheap.texts) for name in (*whole["properties"], "costly"))


def test_tours_end_in_values_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = schema(["a"], required=True, part={"type": "object", "additionalProperties": {}})
    spec = rewritten(json.dumps(whole))
    matcher = Costing(compiled_schema(spec), ("never", "x"), monkeypatch)
    assert verdict(matcher, "json", spec) is SandboxResult.GOOD


def test_other_constraints_have_no_tours() -> None:
    assert tours_of("regex", "[ab]") == tours_of("ebnf", 'root ::= "a"') == []
    assert [tour.names for tour in tours_of("json", "true")] == [()]
