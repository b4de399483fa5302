"""The configuration as TOML that loads back to the same values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal

from pydantic import BaseModel

from penstock.config import Config


def to_toml(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """Every key, unset ones as comments. `origins` adds to each where it came from."""
    lines: list[str] = []
    for section, settings in config:
        lines.append(f"[{section}]")
        for key, value in settings:
            said = f"# {key} is unset" if value is None else f"{key} = {_toml(value)}"
            lines.append(f"{said}  # {origins[f'{section}.{key}']}" if origins else said)
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, BaseModel):
        return _toml(dict(value))
    if isinstance(value, Mapping):
        # TOML has no null: a key without a value is a key that is not there.
        pairs = [f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items() if item is not None]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Decimal):
        # A TOML number is a binary double: text wherever that would not be exactly this price.
        return str(value) if Decimal(repr(float(value))) == value and "E" not in str(value) else f'"{value}"'
    if isinstance(value, int):
        return str(value)
    return _toml_text(str(value))


def _toml_text(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML wants DEL escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: object) -> str:
    return str(key) if re.fullmatch(r"[A-Za-z0-9_-]+", str(key)) else _toml_text(str(key))
