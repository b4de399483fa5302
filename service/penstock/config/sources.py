"""Load the configuration from its sources, in rising precedence, with the origin of each value.

    defaults  <  one file  <  environment PENSTOCK_<SECTION>_<KEY>  <  flags

A key is `section.key`. The highest source that sets it gives its whole value: lists and tables are not merged. All
mistakes are collected before they are reported.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from penstock.config import file as config_file
from penstock.config.file import FileValues
from penstock.config.schema import Config
from penstock.config.toml_lines import KeyPath
from penstock.errors import ConfigError

ENVIRONMENT_PREFIX = "PENSTOCK_"
FILE_VARIABLE = "PENSTOCK_CONFIG"
CLIENT_VARIABLES = (
    "PENSTOCK_TARGET",
    "PENSTOCK_API_KEY",
    "PENSTOCK_API_KEY_FILE",
    "PENSTOCK_TLS",
    "PENSTOCK_CA_FILE",
)
"""Variables of the client commands; not part of the service's configuration."""
FLAGS: Mapping[str, str] = {
    "--listen": "server.listen",
    "--insecure": "server.insecure",
    "--model": "engine.model",
    "--device": "engine.device",
    "--engine-kind": "engine.kind",
}
"""Keys with a flag of their own; every other key is set with `--set section.key=value`."""

# Variables that Kubernetes sets in pods for a Service whose name is `penstock` or starts with `penstock-`.
_SERVICE_LINKS = [
    (re.compile(name), re.compile(value))
    for name, value in (
        (r"PENSTOCK_(\w+_)?SERVICE_HOST", r"\S+"),
        (r"PENSTOCK_(\w+_)?SERVICE_PORT(_\w+)?", r"\d+"),
        (r"PENSTOCK_(\w+_)?PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://\S+"),
        (r"PENSTOCK_(\w+_)?PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)", r"\S+"),
    )
]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Hold the configuration, the origin of every `section.key`, and notes for the operator."""

    config: Config
    origins: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Value:
    value: object
    origin: str
    where: str
    """The origin, with the line where it is known."""


def keys() -> Iterator[tuple[str, str]]:
    """Yield every (section, key), in the order of the schema."""
    for section, field in Config.model_fields.items():
        for key in typing.cast(type[BaseModel], field.annotation).model_fields:
            yield section, key


def load(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """Load the configuration from all sources. `flags` are keyed by flag (`--listen`) or by `section.key`, for `--set`.

    Without `file`, PENSTOCK_CONFIG may name one. Raise ConfigError with every mistake, each on a line of its own.
    """
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    from_file = config_file.read(file) if file is not None else FileValues("", {})
    mistakes: list[str] = []
    notes: list[str] = []
    given: dict[tuple[str, str], _Value] = {}
    given |= _from_file(from_file, mistakes)
    given |= _from_environment(environ, mistakes, notes)
    given |= _from_flags(flags, mistakes)

    nested: dict[str, dict[str, object]] = {}
    for (section, key), value in given.items():
        nested.setdefault(section, {})[key] = value.value
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        mistakes += [_in_words(problem, given, from_file) for problem in error.errors()]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    origins = {
        f"{section}.{key}": given[section, key].origin if (section, key) in given else "default"
        for section, key in keys()
    }
    return Loaded(config, origins, tuple(notes))


def _from_file(file: FileValues, mistakes: list[str]) -> dict[tuple[str, str], _Value]:
    found = {}
    for section, values in file.values.items():
        if section not in Config.model_fields:
            mistakes.append(f"{file.where((section,))}: {section}: no such section{_nearest(section, _sections())}")
        elif not isinstance(values, dict):
            mistakes.append(f"{file.where((section,))}: {section}: must be a section with keys, got a value")
        else:
            for key, value in values.items():
                where = file.where((section, key))
                if isinstance(value, bool) and _kinds(section, key) & {int, float}:
                    # pydantic would take true for 1.
                    mistakes.append(f"{where}: {section}.{key}: must be a number, not {str(value).lower()}")
                elif key in _keys_of(section):
                    found[section, key] = _Value(value, f"file {file.name}", where)
                else:
                    mistakes.append(f"{where}: {section}.{key}: no such key{_nearest(f'{section}.{key}', _names())}")
    return found


def _from_environment(
    environ: Mapping[str, str], mistakes: list[str], notes: list[str]
) -> dict[tuple[str, str], _Value]:
    known = {f"{ENVIRONMENT_PREFIX}{section}_{key}".upper(): (section, key) for section, key in keys()}
    found: dict[tuple[str, str], _Value] = {}
    links: list[str] = []
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in (FILE_VARIABLE, *CLIENT_VARIABLES):
            continue
        origin = f"environment {name}"
        if name in known:
            _add_text(found, known[name], environ[name], origin, mistakes)
        elif _is_service_link(name, environ[name]):
            links.append(name)
        else:
            mistakes.append(f"{origin}: no such key{_nearest(name, [*known, FILE_VARIABLE])}")
    if links:
        notes.append(f"ignored variables that Kubernetes sets for a Service: {', '.join(links)}")
    return found


def _is_service_link(name: str, text: str) -> bool:
    # The value matters too: PENSTOCK_SERVER_PORT=50051 is a mistake, PENSTOCK_SERVER_PORT=tcp://10.0.0.1:50051 is not.
    return any(n.fullmatch(name) and v.fullmatch(text) for n, v in _SERVICE_LINKS)


def _from_flags(flags: Mapping[str, str], mistakes: list[str]) -> dict[tuple[str, str], _Value]:
    found: dict[tuple[str, str], _Value] = {}
    for name, text in sorted(flags.items(), key=lambda flag: flag[0] in FLAGS):  # a flag of its own beats --set
        origin = f"flag {name}" if name in FLAGS else f"flag --set {name}"
        dotted = FLAGS.get(name, name)
        section, _, key = dotted.partition(".")
        if section in Config.model_fields and key in _keys_of(section):
            _add_text(found, (section, key), text, origin, mistakes)
        else:
            mistakes.append(f"{origin}: no such key{_nearest(dotted, _names())}")
    return found


def _add_text(
    found: dict[tuple[str, str], _Value], name: tuple[str, str], text: str, origin: str, mistakes: list[str]
) -> None:
    """Add a text value as its field needs it: JSON for tables and lists, None for an empty optional number."""
    kinds = _kinds(*name)
    value: object = text
    if kinds & {dict, tuple, list}:
        try:
            value = json.loads(text)
        except ValueError as error:
            mistakes.append(f"{origin}: {'.'.join(name)}: must be JSON: {error}")
            return
    elif text == "" and type(None) in kinds:
        value = None
    found[name] = _Value(value, origin, origin)


def _kinds(section: str, key: str) -> set[Any]:
    """Return the plain types that a key's value may have; empty for an unknown key."""
    field = _keys_of(section).get(key)
    return {typing.get_origin(kind) or kind for kind in _alternatives(field.annotation)} if field else set()


def _alternatives(annotation: Any) -> Iterator[Any]:
    kind = typing.get_origin(annotation)
    if kind is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    elif kind in (typing.Union, types.UnionType):
        for one in typing.get_args(annotation):
            yield from _alternatives(one)
    else:
        yield annotation


def _in_words(problem: Any, given: Mapping[tuple[str, str], _Value], file: FileValues) -> str:
    path: KeyPath = problem["loc"]
    said = given.get((str(path[0]), str(path[1]))) if len(path) > 1 else None
    where = "configuration"
    if said is not None:
        where = file.where(path) if said.origin.startswith("file ") else said.where
    elif len(path) == 1:  # A section contradicts itself: name all sources of its values.
        where = "; ".join(dict.fromkeys(v.where for (section, _), v in given.items() if section == path[0]))
    return ": ".join(filter(None, (where, ".".join(map(str, path)), _requirement(problem))))


_REQUIREMENTS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "decimal_parsing": "must be a number",
    "decimal_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "missing": "must be set",
    "extra_forbidden": "no such key",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "value_error": "{error}",
}


def _requirement(problem: Any) -> str:
    template = _REQUIREMENTS.get(problem["type"])
    said = template.format(**problem.get("ctx", {})) if template else problem["msg"]
    if problem["type"] in ("missing", "extra_forbidden", "value_error"):
        return said
    said += f", not {problem['input']!r}"
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        said += _nearest(problem["input"], re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return said


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _sections() -> list[str]:
    return list(Config.model_fields)


def _names() -> list[str]:
    return [f"{section}.{key}" for section, key in keys()]


def _keys_of(section: str) -> Mapping[str, Any]:
    return typing.cast(type[BaseModel], Config.model_fields[section].annotation).model_fields
