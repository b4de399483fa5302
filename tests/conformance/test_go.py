"""All cases through the Go client, by its driver, built with the gRPC for Go that `scripts/tools` found."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from penstock_proto.v1 import error_reason_pb2, generation_pb2, model_pb2, routing_pb2

from tests.conformance.drivers import run_driver
from tests.conformance.harness import load_cases
from tests.conformance.judge import judge
from tests.conformance.tools import CLIENTS, build_go, needs_go

CASES = load_cases()
STUBS = CLIENTS / "go/penstockv1"
pytestmark = [needs_go, pytest.mark.slow]


@pytest.fixture(scope="module")
def seen(targets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    driver = build_go() / "conformance"
    return run_driver([str(driver)], CLIENTS / "go", targets, CASES, tmp_path_factory.mktemp("go"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.timeout(700)
def test_case(case: dict[str, Any], seen: dict[str, Any]) -> None:
    assert not judge(case, seen[case["name"]])


def fields(messages: Iterable[DescriptorProto]) -> Iterator[FieldDescriptorProto]:
    for message in messages:
        yield from message.field
        yield from fields(message.nested_type)


@pytest.mark.timeout(700)
def test_the_stubs_are_what_the_protos_say() -> None:
    done = subprocess.run([build_go() / "conformance", "--stubs"], capture_output=True, timeout=60, check=True)
    stubs = json.loads(done.stdout)
    protos = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in (error_reason_pb2, generation_pb2, model_pb2)}
    protos |= {routing_pb2.DESCRIPTOR.name: routing_pb2.DESCRIPTOR}
    assert set(stubs) == set(protos), "a proto has come or gone: scripts/protos-go"
    for name, descriptor in protos.items():
        expected, made = FileDescriptorProto(), FileDescriptorProto()
        descriptor.CopyToProto(expected)
        made.ParseFromString(base64.b64decode(stubs[name]))
        for field in (field for file in (made, expected) for field in fields(file.message_type)):
            field.ClearField("json_name")  # made of the name; only some generators write it down
        assert made == expected, f"clients/go/penstockv1 is not what {name} says: scripts/protos-go"
    called = {name for path in STUBS.glob("*_grpc.pb.go") for name in re.findall(r'"/([\w.]+/\w+)"', path.read_text())}
    services = [service for file in protos.values() for service in file.services_by_name.values()]
    assert called == {f"{service.full_name}/{method}" for service in services for method in service.methods_by_name}
