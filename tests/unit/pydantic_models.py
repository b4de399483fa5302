"""Models as applications write them; their JSON schemas must be accepted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, conlist, constr


class Color(Enum):
    RED = "red"
    GREEN = "green"


class Level(int, Enum):
    LOW = 1
    HIGH = 2


class Plain(BaseModel):
    """A person."""

    name: str
    age: int
    height: float
    admin: bool


class Defaults(BaseModel):
    name: str = "x"
    tags: list[str] = []
    note: str | None = None


class Described(BaseModel):
    model_config = ConfigDict(title="Thing", json_schema_extra={"examples": [{"name": "x"}]})
    name: str = Field(description="The name", examples=["Ida"], deprecated=True)


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Enums(BaseModel):
    color: Color
    level: Level
    size: Literal["s", "m", "l"]
    one: Literal[1]


class Nested(BaseModel):
    person: Plain
    people: list[Plain]
    maybe: Plain | None


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Pets(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Cat | Dog]


class Bounds(BaseModel):
    stars: int = Field(ge=1, le=5)
    share: float = Field(ge=0, le=1)
    above: int = Field(gt=0)
    below: float = Field(lt=10)


class Strings(BaseModel):
    code: constr(min_length=2, max_length=4)  # type: ignore[valid-type]
    word: str = Field(pattern=r"^[a-z]+$")
    open_ended: str = Field(pattern=r"\d")
    long: str = Field(min_length=1)


class Lists(BaseModel):
    few: conlist(int, min_length=1, max_length=3)  # type: ignore[valid-type]
    pair: tuple[int, str]
    many: tuple[int, ...]
    matrix: list[list[float]]


class Maps(BaseModel):
    scores: dict[str, int]
    anything: dict[str, Any]
    nested: dict[str, list[Plain]]


class Times(BaseModel):
    day: date
    at: datetime
    clock: time
    took: timedelta
    id: UUID
    host: IPv4Address


class Unions(BaseModel):
    value: int | str | None
    listed: list[int | str]
    described: Plain = Field(description="beside a reference")


class Anything(BaseModel):
    value: Any
    item: object


MODELS: tuple[type[BaseModel], ...] = (
    *(Plain, Defaults, Described, Closed, Open, Enums, Nested, Tree, Pets, Bounds, Strings, Lists, Maps, Times, Unions),
    Anything,
)
ADAPTED: dict[str, Any] = {
    "list of models": list[Plain],
    "optional": int | None,
    "literal": Literal["a", "b"],
    "tuple": tuple[int, str],
    "map": dict[str, Plain],
    "tagged": Annotated[Cat | Dog, Field(discriminator="kind")],
}


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for model in MODELS:
        yield model.__name__, model.model_json_schema()
    for name, adapted in ADAPTED.items():
        yield name, TypeAdapter(adapted).json_schema()
