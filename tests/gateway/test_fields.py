"""The tables of fields, the requests that are read, the official package, and the page agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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

from tests.gateway.conftest import Gateway

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
            for part in path.partition(":")[0].split("."):
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


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HUGE = 10**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "given", "param"),
    [
        (CHAT, {"max_tokens": HUGE}, "max_tokens"),
        (CHAT, {"max_completion_tokens": HUGE}, "max_completion_tokens"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"thinking_token_budget": HUGE}, "thinking_token_budget"),
        (CHAT, {"thinking_budget": HUGE}, "thinking_budget"),
        (COMPLETIONS, {"thinking_token_budget": HUGE}, "thinking_token_budget"),
        (RESPONSES, {"thinking_token_budget": -9}, "thinking_token_budget"),
        (CHAT, {"logprobs": True, "top_logprobs": 999}, "top_logprobs"),
        (CHAT, {"session_id": "x" * 999}, "session_id"),
        (CHAT, {"prompt_cache_key": "x" * 999}, "prompt_cache_key"),
        (
            CHAT,
            {"response_format": {"type": "text"}, "structured_outputs": {"choice": []}},
            "structured_outputs.choice",
        ),
        (CHAT, {"structured_outputs": {}, "response_format": {"type": "json_object"}}, "response_format"),
        (RESPONSES, {"text": {"format": {"type": "json_object"}}}, "text.format"),
        (RESPONSES, {"reasoning": {"effort": "high"}, "thinking_mode": "fast"}, "reasoning.effort"),
        (CHAT, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        (CHAT, {"stop": "x" * 999}, "stop"),
        (CHAT, {"stop": ["x", "x" * 999]}, "stop[1]"),
        (CHAT, {"stop_token_ids": [1, HUGE]}, "stop_token_ids[1]"),
    ],
)
async def test_an_error_has_the_name_that_was_sent(
    gateway: Gateway, path: str, given: dict[str, Any], param: str
) -> None:
    inputs = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, COMPLETIONS: {"prompt": "hi"}}
    reply = await (await gateway()).post(path, json=inputs.get(path, {"input": "hi"}) | given)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    others = {"max_tokens", "max_completion_tokens", "thinking_budget", "thinking_token_budget"} - {param}
    assert not [name for name in others if re.search(rf"\b{name}\b", error["message"])]


async def test_an_error_that_names_another_field_has_the_requests_name(gateway: Gateway) -> None:
    http = await gateway()
    reply = await http.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "tools": [*TOOLS, *TOOLS]})
    assert reply.json()["error"]["message"] == "tools[1] must be unique, got the name of tools[0]"
