"""docs/reference/limits.md bounds every field that a caller controls, and names the configuration's defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from penstock.config.schema import Config
from penstock.engine.scripted import ScriptedEngine
from penstock.errors import BadRequest
from penstock.generation.validation import validate
from penstock.types import Request, Sampling
from penstock_proto.v1 import generation_pb2, model_pb2, routing_pb2

PAGE = Path(__file__).parents[2] / "docs/reference/limits.md"


def fields_of(message: Descriptor, seen: set[str]) -> Iterator[str]:
    """`Message.field` of everything that a request can hold."""
    if message.full_name in seen or not message.full_name.startswith("penstock.v1.") or message.GetOptions().map_entry:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield f"{message.name}.{field.name}"
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen)


def controlled() -> set[str]:
    """All fields of all requests of all methods."""
    seen: set[str] = set()
    return {
        field
        for module in (generation_pb2, model_pb2, routing_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        for field in fields_of(method.input_type, seen)
    }


def test_every_field_that_a_caller_controls_has_a_bound() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a field has two rows"
    assert all(bound.strip() for _, bound in rows)
    assert dict(rows).keys() == controlled()


def test_the_pages_defaults_are_the_configurations() -> None:
    config = Config()
    named = re.findall(r"`(\w+)\.(\w+)` \(([^)]+)\)", PAGE.read_text())
    assert len(named) > 20
    for section, key, said in named:
        value = getattr(getattr(config, section), key)
        assert (float(said) == value) if value is not None else not said[0].isdigit(), f"{section}.{key}"


def test_every_limit_of_the_configuration_is_on_the_page() -> None:
    assert all(f"`limits.{key}`" in PAGE.read_text() for key in type(Config().limits).model_fields)


def test_a_thousand_mistakes_are_told_in_part() -> None:
    request = Request(text="hello", sampling=Sampling(logit_bias=dict.fromkeys(range(1000), 1000.0)))
    with pytest.raises(BadRequest) as refused:
        validate(request, ScriptedEngine([]).card, Config().limits)
    assert len(refused.value.violations) == 16
