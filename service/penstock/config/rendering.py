"""Write the configuration as TOML that loads back to the same values."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import tomlkit
from pydantic import BaseModel
from tomlkit.items import Item

from penstock.config.schema import Config


def to_toml(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """Return every key, unset ones as comments. `origins` adds to each key where its value came from."""
    document = tomlkit.document()
    for section, settings in config:
        table = tomlkit.table()
        for key, value in settings:
            origin = " ".join(origins[f"{section}.{key}"].split()) if origins else ""
            if value is None:
                table.add(tomlkit.comment(f"{key} is unset" + (f"  # {origin}" if origin else "")))
                continue
            item = toml_item(value)
            if origin:
                item.comment(origin)
                item.trivia.comment_ws = "  "
            table.append(key, item)
        table.add(tomlkit.nl())
        document.append(section, table)
    return document.as_string()


def toml_item(value: object) -> Item:
    """Return `value` as TOML on one line. Keys of a mapping whose value is None are left out: TOML has no null."""
    if isinstance(value, BaseModel):
        return toml_item(dict(value))
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for key, item in value.items():
            if item is not None:
                table.append(str(key), toml_item(item))
        return table
    if isinstance(value, (list, tuple)):
        array = tomlkit.array()
        for item in value:
            array.append(toml_item(item))
        return array
    if isinstance(value, Decimal):
        # A TOML number is a binary double: write text where that would not be exactly this price.
        exact = Decimal(repr(float(value))) == value and "E" not in str(value)
        return tomlkit.value(str(value)) if exact else tomlkit.string(str(value))
    if isinstance(value, (bool, int, float)):
        return tomlkit.item(value)
    return tomlkit.string(str(value))
