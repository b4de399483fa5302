"""Extremes in every number of a request: each is planned, or refused by its own field with what was received."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from penstock.config.schema import Config
from penstock.engine.scripted import ScriptedEngine
from penstock.errors import BadRequest, ContextOverflow
from penstock.generation.planner import plan_generation
from penstock.generation.validation import validate
from penstock.server.convert.generation import request_from_proto
from penstock_proto.v1 import generation_pb2 as pb

from tests.bad_requests import hello

FLOATS = (math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e-45, 1e-38, 3e38, 1.0000002, 2.0, 2.0000005, 100.0, 100.1)
VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), -2, -1, 0, 1, 2, 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 1, 2**31, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), -1, 0, 1, 2**32, 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_DOUBLE: (*FLOATS, 5e-324, 1e308),
    FieldDescriptor.TYPE_ENUM: (-1, 99, 2**31 - 1),
}


def numbers(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """The path of every field that holds numbers, those of maps and lists among them; no message twice on the way."""
    for field in message.fields:
        if field.message_type is not None and any(field.message_type is one.message_type for one in path):
            continue
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from numbers(field.message_type, (*path, field))
        elif field.message_type is not None or field.type in VALUES:
            yield (*path, field)


def requests(path: tuple[FieldDescriptor, ...]) -> Iterator[pb.GenerationSpec]:
    *outer, field = path
    is_map = field.message_type is not None
    pairs = [(key, value) for key in (-(2**31), -1, 0, 260, 261, 2**31 - 1) for value in FLOATS] if is_map else []
    for value in pairs or VALUES[field.type]:
        for mode in (pb.THINKING_MODE_FAST, pb.THINKING_MODE_THINKING):
            spec = hello(thinking=pb.ThinkingConfig(mode=mode), output=pb.OutputConfig(max_output_tokens=12))
            holder = spec
            for one in outer:
                holder = getattr(holder, one.name)
                if one.name == "parts":
                    spec.messages.messages[0].ClearField("content")
                    spec.messages.messages[0].role = pb.ROLE_ASSISTANT
                holder = (holder[0] if holder else holder.add()) if one.is_repeated else holder
            if is_map:
                getattr(holder, field.name)[value[0]] = value[1]
            elif field.is_repeated:
                getattr(holder, field.name).append(value)
            else:
                setattr(holder, field.name, value)
            yield spec


def refused(spec: pb.GenerationSpec) -> list[tuple[str, str]]:
    """Fields and descriptions of what is wrong; empty where it is planned."""
    engine, config = ScriptedEngine([]), Config()
    try:
        request = request_from_proto(spec)
        validate(request, engine.card, config.resolved_limits)
        plan_generation(request, engine, config)
    except ContextOverflow as error:
        return [("context.max_context_tokens", error.message)]
    except BadRequest as error:
        return [(violation.field, violation.description) for violation in error.violations]
    return []


PATHS = list(numbers(pb.GenerationSpec.DESCRIPTOR))


@pytest.mark.parametrize("path", PATHS, ids=[".".join(field.name for field in path) for path in PATHS])
def test_an_extreme_is_planned_or_refused_by_its_field(path: tuple[FieldDescriptor, ...]) -> None:
    for spec in requests(path):
        violations = refused(spec)
        named = [why for field, why in violations if path[-1].name in field]
        assert bool(named) == bool(violations), (spec, violations)
        received = ("got", "has", "is not a value", "does not fit", "a prompt of")
        assert all(any(word in why for word in received) for why in named), named


def test_there_are_numbers_to_try() -> None:
    assert len(PATHS) >= 20
