"""Write a text under a constraint that visits all its parts: each tool, each argument.

A random text stays in the first string that may have any length, so a costly part behind it is not found. A tour leaves
each value as soon as it may, unless the masks inside are costly: there it stays, as an output may.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_VALUE_END = "\n</parameter>\n"
_PARAMETER = "<parameter="
CLOSINGS = (_VALUE_END, '"', "]", ",", "}")
"""What ends a value, or goes on behind it, in the order in which it is tried."""
_MAX_NAMES = 400


@dataclass(frozen=True, slots=True)
class Tour:
    """The tour of one tool, or of a whole schema.

    `head` is written first. Then what is allowed of `names`, which begin arguments and properties, else `end`, behind
    which the tour is over (empty is none), else one of `CLOSINGS`.
    """

    head: str
    names: tuple[str, ...]
    end: str = ""


def tours_of(kind: str, spec: str) -> list[Tour]:
    """Return the tours of a constraint; `kind` as in `sandbox_process`. None where it has no arguments."""
    if kind not in ("json", "structural_tag"):
        return []
    whole = json.loads(spec)
    if kind == "json":
        return [Tour("", tuple(_names_in(whole)))]
    return [
        Tour(f"<tool_call>{before}{tag['begin']}", tuple(_names_in(tag["content"])), tag["end"])
        for before, tag in _tags(whole["format"])
    ]


def _tags(whole: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each tool's tag once, with the text between the marker of a call and it."""
    left = [whole]
    seen: set[str] = set()
    while left:
        node = left.pop()
        inner = node.get("elements") if isinstance(node, dict) else None
        if isinstance(inner, list) and len(inner) == 2 and (tags := _alternatives_of_tags(inner[1])):
            for tag in tags:
                if tag["begin"] not in seen:
                    seen.add(tag["begin"])
                    yield inner[0]["value"], tag
        elif isinstance(node, dict | list):
            left.extend(node.values() if isinstance(node, dict) else node)


def _alternatives_of_tags(node: Any) -> list[dict[str, Any]]:
    found = node.get("elements", []) if isinstance(node, dict) and node.get("type") == "or" else [node]
    return found if all(isinstance(one, dict) and one.get("type") == "tag" for one in found) else []


def _names_in(part: Any) -> list[str]:
    """Return what begins each argument of a call, and each property inside, in order; at most 400."""
    found: dict[str, None] = {}
    left = [part]
    while left and len(found) < _MAX_NAMES:
        node = left.pop()
        if isinstance(node, dict):
            text = node.get("value")
            if isinstance(text, str) and text.startswith(_PARAMETER):
                found[text] = None
            properties = node.get("properties")
            if isinstance(properties, dict):
                found |= dict.fromkeys(f"{json.dumps(name, ensure_ascii=False)}:" for name in properties)
            left.extend(reversed(node.values()))
        elif isinstance(node, list):
            left.extend(reversed(node))
    return list(found)[:_MAX_NAMES]
