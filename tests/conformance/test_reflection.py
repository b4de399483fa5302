"""Clients that this project did not write, which learn the API from the server: any language works."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.conformance.drivers import run_driver
from tests.conformance.harness import HERE, load_cases
from tests.conformance.judge import judge
from tests.conformance.tools import NODE, needs_node

ELSEWHERE = ("flaky", "secure", "stuck", "large")
"""Servers of which a generic client would have to know more, and stand-ins without reflection."""
CASES = [
    case
    for case in load_cases()
    if case["call"] in ("stream", "generate")
    and case.get("server") not in ELSEWHERE
    and not {"error", "tool_calls"} & set(case["expect"])
]


@pytest.fixture(scope="module")
def seen(targets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("reflection")
    return run_driver([str(NODE), "generic.mjs"], HERE / "reflection", targets, CASES, scratch)


@pytest.mark.slow
@needs_node
@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_generic_node_client(case: dict[str, Any], seen: dict[str, Any]) -> None:
    assert not judge(case, seen[case["name"]])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_grpcs_own_reflection(case: dict[str, Any], targets: dict[str, str]) -> None:
    """Descriptors from the server, messages made of them, a bare channel: no stub and no proto file."""
    with grpc.insecure_channel(targets[case.get("server", "default")]) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("penstock.v1.GenerationService")
        streams = case["call"] == "stream"
        method = service.FindMethodByName("StreamGenerate" if streams else "Generate")
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.ParseDict({"spec": case["spec"]}, request, descriptor_pool=pool)
        reply_type = message_factory.GetMessageClass(method.output_type)
        make = channel.unary_stream if streams else channel.unary_unary
        call = make(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply_type.FromString,
        )
        replies = list(call(request)) if streams else [call(request)]
    as_json = [json.loads(json_format.MessageToJson(reply, descriptor_pool=pool)) for reply in replies]
    expected = case["expect"]
    if streams:
        deltas = [reply["event"].get("answer", {}) for reply in as_json]
        answer = "".join(delta.get("text", "") for delta in deltas if not delta.get("candidateIndex"))
        assert [int(reply["event"]["sequence"]) for reply in as_json] == list(range(1, len(as_json) + 1))
        assert "finished" in as_json[-1]["event"]
    else:
        answer = as_json[0]["candidates"][0]["answer"]
    if "answer" in expected:
        assert answer == expected["answer"]
