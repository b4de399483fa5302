"""Any message of the protos, as a hypothesis strategy: every field present or not, at its edges and beyond."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_INT32 = st.sampled_from([0, 1, -1, 2, 5, 17, 100, 4096, 2**31 - 1, -(2**31)])
_INT64 = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, -(2**63)])
_UINT64 = st.sampled_from([0, 1, 2**64 - 1])
_DOUBLE = st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, 1e308, -0.0, float("nan"), float("inf"), float("-inf")])
_TEXT = st.one_of(
    st.sampled_from(
        ["", "a", "What is 1 + 2?", "<think>", "</think>\n", "<|im_end|>", "\0", "é\U0001f600", "x" * 3000]
    ),
    st.text(max_size=12),
)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_DOUBLE: _DOUBLE,
    FieldDescriptor.CPPTYPE_FLOAT: _DOUBLE,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_STRING: _TEXT,
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from([0, 1, 2, 3, 4, 99, -1]),
}


def messages(descriptor: Descriptor, outer: tuple[Descriptor, ...] = ()) -> st.SearchStrategy[Message]:
    """Return those of one kind; half of its fields are set. One kind is at most twice inside another (see `Part`)."""
    outer = (*outer, descriptor)
    fields = [(field, _values(field, outer)) for field in descriptor.fields if outer.count(field.message_type) < 2]

    @st.composite
    def build(draw: Callable[..., Any]) -> Message:
        message = GetMessageClass(descriptor)()
        for field, values in fields:
            if draw(st.booleans()):
                _set(message, field, draw(values))
        return message

    return build()


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _values(field: FieldDescriptor, outer: tuple[Descriptor, ...]) -> st.SearchStrategy[Any]:
    if _is_map(field):
        key, value = field.message_type.fields
        return st.dictionaries(_values(key, outer), _values(value, outer), max_size=3)
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = messages(field.message_type, outer)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = st.binary(max_size=64)
    else:
        one = _SCALARS[field.cpp_type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_map(field):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def mutated(body: bytes, draw: random.Random) -> bytes:
    """The bytes with a few things done to them that a wire or a fool might do."""
    data = bytearray(body)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                data[at:at] = draw.randbytes(draw.randint(1, 8))
            case 2:
                del data[at : at + draw.randint(1, 8)]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at // 2 : at]
            case _:
                data[at:at] = bytes([draw.choice([0x0A, 0x12, 0x7A, 0xFF]), 0xFF, 0xFF, 0xFF, 0x7F])
    return bytes(data)
