"""The parser reads each text that the grammar of tool calls allows as whole calls with the same values."""

from __future__ import annotations

import json

import pytest
from penstock.engine.vllm.constraints.tool_calls import structural_tag
from penstock.generation.tool_calls import CallFinished, ToolCallParser
from penstock.types import Tool, ToolCallFormat, ToolCallStatus, ToolConstraint

from tests.unit.grammar_walks import compiled_tag, walks
from tests.unit.test_tool_grammar import PROPERTIES, schema_of
from tests.unit.tool_call_reader import read


@pytest.mark.slow
@pytest.mark.parametrize("call_format", list(ToolCallFormat))
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_call_that_the_grammar_allows_is_read_as_whole(call_format: ToolCallFormat, name: str) -> None:
    schema = schema_of(name)
    tool = Tool("f", parameters_json_schema=json.dumps(schema), strict=True)
    held = ToolConstraint(call_format, (tool,), requires_call=True, max_calls=2)
    for text in walks(compiled_tag(structural_tag(held)), 8, most=600, endings=(b"\n</parameter>\n", b"<tool_call>")):
        parser = ToolCallParser(call_format, [tool], 2)
        pieces = [piece for character in text for piece in parser.push(character)] + parser.end()
        calls = [piece for piece in pieces if isinstance(piece, CallFinished)]
        assert {one.status for one in calls} == {ToolCallStatus.COMPLETE}
        assert [(one.name, json.loads(one.arguments_json)) for one in calls] == read(
            text, call_format, {"f": schema}
        ).calls
