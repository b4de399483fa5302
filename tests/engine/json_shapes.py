"""The shape of JSON documents: which paths they have, and of which types the values are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

Shape = Mapping[str, Set[str]]
"""The types by path. `absent` is one of them where only some of the objects have the key."""


@dataclass(frozen=True)
class Difference:
    """A path whose types differ; empty where a side never has it."""

    path: str
    theirs: Set[str]
    ours: Set[str]


def shape_of(documents: Iterable[Any], opaque: Set[str] = frozenset()) -> Shape:
    """Return the types that the documents have at each path. What is inside `opaque` paths is not looked at."""
    types: defaultdict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for document in documents:
        _add(document, "", types, counts, opaque)
    for path in types:
        parent = path.rpartition(".")[0]
        if not path.endswith("[]") and counts[path] < counts[parent + "{}"]:
            types[path].add("absent")
    types.pop("", None)
    return types


def _add(value: Any, path: str, types: defaultdict[str, set[str]], counts: Counter[str], opaque: Set[str]) -> None:
    types[path].add(_type_of(value))
    counts[path] += 1
    if path in opaque:
        return
    if isinstance(value, dict):
        counts[path + "{}"] += 1
        for name, inner in value.items():
            _add(inner, f"{path}.{name}".lstrip("."), types, counts, opaque)
    elif isinstance(value, list):
        for inner in value:
            _add(inner, f"{path}[]", types, counts, opaque)


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def differences(theirs: Shape, ours: Shape) -> list[Difference]:
    """Return the paths whose types differ. What is below a path that one side does not have is not told again."""
    found: list[Difference] = []
    for path in sorted({*theirs, *ours}):
        left, right = theirs.get(path, frozenset()), ours.get(path, frozenset())
        inside = any(
            one.path != path and path.startswith((f"{one.path}.", f"{one.path}["))
            for one in found
            if not (one.theirs and one.ours)
        )
        if left != right and not inside:
            found.append(Difference(path, left, right))
    return found
