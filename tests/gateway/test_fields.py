"""The tables of fields, the requests that are read, the official package, and the page agree."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams
from penstock_gateway import fields
from penstock_gateway.chat_request import ChatRequest
from penstock_gateway.completion_request import CompletionRequest
from penstock_gateway.errors import BY_CODE, KINDS
from penstock_gateway.fields import Fields
from penstock_gateway.response_request import ResponsesRequest
from penstock_proto.v1 import generation_pb2 as pb

PAGE = Path(__file__).parents[2] / "docs/reference/openai-compatibility.md"
TABLES: list[tuple[Fields, type[msgspec.Struct], set[str]]] = [
    (fields.CHAT, ChatRequest, {*ChatParams.__annotations__, "stream"}),
    (fields.COMPLETIONS, CompletionRequest, {*CompletionParams.__annotations__, "stream"}),
    (fields.RESPONSES, ResponsesRequest, {*ResponseParams.__annotations__, "stream"}),
]


@pytest.mark.parametrize(("table", "request_type", "official"), TABLES)
def test_every_field_of_the_official_package_is_in_the_table(
    table: Fields, request_type: type[msgspec.Struct], official: set[str]
) -> None:
    assert official <= table.keys()
    structure = {field.name: field for field in msgspec.structs.fields(request_type)}
    assert structure.keys() == table.keys()
    for name, field in table.items():
        is_refused = structure[name].default is UNSET and name not in ("response_format", "tool_choice")
        assert (field.treatment == "refused") == is_refused, name
        assert field.note


@pytest.mark.parametrize("table", [table for table, _, _ in TABLES])
def test_every_path_of_the_service_is_one(table: Fields) -> None:
    for name, field in table.items():
        for path in field.spec.split():
            message = pb.StreamGenerateRequest.DESCRIPTOR
            for part in path.split("."):
                if part == "structured_output":
                    assert part in message.oneofs_by_name
                    break
                found = message.fields_by_name[part]
                message = found.message_type
            assert name


def test_the_page_has_the_statuses() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| ([\d, ]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    said = {reason: (status, codes) for reason, status, codes in rows}
    assert said.keys() == KINDS.keys()
    for reason, kind in KINDS.items():
        status, codes = said[reason]
        assert str(kind.status) in status
        assert f"`{kind.code}`" in codes
    assert str(BY_CODE["UNAUTHENTICATED"].status) in said["CALLER_REFUSED"][0]
