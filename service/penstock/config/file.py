"""One TOML or YAML file to plain values, remembering on which line each key stands."""

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
    """`values` as the file nests them; `lines` from key path to line number, counted from 1, where it is known."""

    name: str
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """In words, the line of `path` or of the nearest key above it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}, line {self.lines[path[:end]]}"
        return self.name


def read(path: Path) -> FileValues:
    """Raises ConfigError where the file cannot be read, is neither TOML nor YAML, or says something twice."""
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
    """YAML 1.2's booleans: `on` and `off` are words, as they are in `engine.mtp`, not True and False."""


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
        raise ConfigError(f"{name}: must hold sections with keys, not a {type(values).__name__}")
    lines: dict[KeyPath, int] = {}
    for path, number in _yaml_lines(node, ()):
        if path in lines:
            raise ConfigError(f"{name}, line {number}: {'.'.join(map(str, path))} is there twice")
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
    """The same value with every mapping key as text: YAML has keys that are numbers, dates and null."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key, default=str): json_keys(v) for key, v in value.items()}
    return [json_keys(item) for item in value] if isinstance(value, list) else value
