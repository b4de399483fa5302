"""Functions become tools: their schema, their description, and what their arguments may be."""

from __future__ import annotations

import enum
import functools
import json
from typing import Annotated, Any, Literal

import penstock_client as pc
import pydantic
import pytest
from penstock_client.functions import InvalidArguments, text_of
from typing_extensions import TypedDict


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(pydantic.BaseModel):
    city: str
    tags: list[str] = []


class Box(TypedDict):
    width: int


@pc.tool
def everything(
    place: Place,
    colour: Colour,
    box: Box,
    unit: Literal["c", "f"] = "c",
    count: Annotated[int, pydantic.Field(ge=1, description="how many")] = 1,
    note: Annotated[str, "a remark"] = "",
    copy: bool = False,
    json: list[float] | None = None,
    names: list[str] = ["a"],  # noqa: B006 - a mutable default is what is tested
) -> str:
    """Do everything.

    It takes time.

    Args:
        place: Where it is done.
        colour: Its colour, over
            two lines.
        unit: The unit.

    Returns:
        Nothing of interest.
    """
    return place.city


def test_the_schema_is_of_the_type_hints_and_the_docstring() -> None:
    assert (everything.name, everything.strict) == ("everything", False)
    assert everything.description == "Do everything.\n\nIt takes time."
    assert isinstance(everything.parameters, dict)
    schema: dict[str, Any] = everything.parameters
    assert schema["required"] == ["place", "colour", "box"]
    assert schema["additionalProperties"] is False
    fields = schema["properties"]
    assert list(fields) == ["place", "colour", "box", "unit", "count", "note", "copy", "json", "names"]
    assert fields["place"] == {"$ref": "#/$defs/Place", "description": "Where it is done."}
    assert fields["colour"]["description"] == "Its colour, over\ntwo lines."
    assert fields["unit"] == {"default": "c", "description": "The unit.", "enum": ["c", "f"], "type": "string"}
    assert fields["count"] == {"default": 1, "description": "how many", "minimum": 1, "type": "integer"}
    assert fields["note"]["description"] == "a remark"
    assert not any("title" in field for field in fields.values()), "a title repeats the name, at a price"
    assert json.loads(everything.to_proto().parameters_json_schema) == schema


def test_arguments_are_checked_and_converted() -> None:
    given = everything.arguments_of('{"place": {"city": "Oslo"}, "colour": "red", "box": {"width": "3"}, "count": 2}')
    assert given["place"] == Place(city="Oslo")
    assert (given["colour"], given["box"], given["count"]) == (Colour.RED, {"width": 3}, 2)
    assert (given["unit"], given["json"], given["names"]) == ("c", None, ["a"])
    assert everything(**given) == "Oslo"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{}", "place: Field required; colour: Field required"),
        ('{"place": {"city": 1}, "colour": "green", "box": {}}', "place.city: Input should be a valid string"),
        ("[1]", "arguments: "),
        ('{"a"', "arguments: Invalid JSON"),
        ("", "Field required"),
    ],
)
def test_arguments_that_do_not_fit_say_where(arguments: str, words: str) -> None:
    with pytest.raises(InvalidArguments, match=words):
        everything.arguments_of(arguments)


def test_forms_of_functions() -> None:
    class Shop:
        def price(self, item: str) -> int:
            """Return the price."""
            return len(item)

    class Later:
        async def __call__(self, item: str) -> int:
            return len(item)

    def power(base: int, exponent: int) -> int:
        return int(base**exponent)

    method, later = pc.tool(Shop().price), pc.tool(Later())
    square = pc.tool(name="square", description="d", strict=True)(functools.partial(power, exponent=2))
    assert (method.name, method.description, method.arguments_of('{"item": "x"}')) == (
        "price",
        "Return the price.",
        {"item": "x"},
    )
    assert (later.name, later.is_async, method.is_async) == ("Later", True, False)
    assert (square.name, square.description, square.strict) == ("square", "d", True)
    assert square(**square.arguments_of('{"base": 3}')) == 9
    assert pc.tool(lambda: 1).to_proto().parameters_json_schema == ""


def test_a_schema_instead_of_type_hints() -> None:
    dynamic = pc.tool(name="x", parameters={"type": "object"})(lambda **given: given)
    assert dynamic(**dynamic.arguments_of('{"a": 1}')) == {"a": 1}
    for wrong in ("[]", "{", "[" * 100_000):
        with pytest.raises(InvalidArguments):
            dynamic.arguments_of(wrong)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda *texts: 1, "given by name"),
        (lambda **more: 1, "given by name"),
        (lambda city, /: 1, "given by name"),
        (lambda city: 1, "'city' needs a type hint"),
    ],
)
def test_a_function_that_cannot_be_described_is_refused(function: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        pc.tool(function)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (None, "null"),
        (3, "3"),
        ({"é": [1, Colour.RED]}, '{"é":[1,"red"]}'),
        (Place(city="Oslo"), '{"city":"Oslo","tags":[]}'),
        (pc.TextPart("x"), '{"text":"x"}'),
    ],
)
def test_values_become_text(value: object, text: str) -> None:
    assert text_of(value) == text
