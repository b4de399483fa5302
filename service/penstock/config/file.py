"""Read a TOML or YAML file as plain values, with the line of each key."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from penstock.config.toml_lines import KeyPath, toml_lines
from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FileValues:
    """Hold `values` as the file nests them, and `lines` from key path to line number, where it is known."""

    name: str
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return the file and line of `path`, or of the nearest key above it, as text."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}, line {self.lines[path[:end]]}"
        return self.name


def read(path: Path) -> FileValues:
    """Read a file. Raise ConfigError where it cannot be read, is neither TOML nor YAML, or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    if path.suffix == ".toml":
        return _read_toml(str(path), text)
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml(str(path), text)
    raise ConfigError(f"{path}: the name must end in .toml, .yaml or .yml")


def _read_toml(name: str, text: str) -> FileValues:
    try:
        return FileValues(name, tomllib.loads(text), toml_lines(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error


class _Loader(yaml.SafeLoader):
    """Load YAML 1.2 booleans: `on` and `off` are text, as in `engine.mtp`, and not True and False."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _read_yaml(name: str, text: str) -> FileValues:
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error
    if values is None:
        return FileValues(name, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: must have sections with keys, got a {type(values).__name__}")
    lines: dict[KeyPath, int] = {}
    for path, number in _yaml_lines(node, ()):
        if path in lines:
            raise ConfigError(f"{name}, line {number}: duplicate key {'.'.join(map(str, path))}")
        lines[path] = number
    return FileValues(name, json_keys(values), lines)


def _yaml_lines(node: yaml.Node | None, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            yield below, key.start_mark.line + 1
            yield from _yaml_lines(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            below = (*path, position)
            yield below, value.start_mark.line + 1
            yield from _yaml_lines(value, below)


def json_keys(value: Any) -> Any:
    """Return the value with every mapping key as text: YAML has keys that are numbers, dates and null."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key, default=str): json_keys(v) for key, v in value.items()}
    return [json_keys(item) for item in value] if isinstance(value, list) else value
