"""Test what the chart takes from elsewhere should be what it says there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import yaml

from tests.chart.chart import CHART, ROOT


def test_the_schema_and_the_readme_should_be_what_the_service_and_the_values_say() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/chart", "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def leaves(values: dict[str, Any], path: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        name = f"{path}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) and value else {name}
    return found


def test_every_value_should_be_documented_where_it_stands() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    table = set(re.findall(r"^\| `([^`]+)` \|", (CHART / "README.md").read_text(), re.MULTILINE))
    missing = {name for name in leaves(values) if not any(name == t or name.startswith(f"{t}.") for t in table)}
    assert missing - {name for name in missing if name.startswith("config.")} == set()


def closed(schema: dict[str, Any], path: str = "") -> list[str]:
    """Objects with named properties that would let an unknown one pass."""
    open_ones = [path] if "properties" in schema and schema.get("additionalProperties") is not False else []
    for name, below in schema.get("properties", {}).items():
        open_ones += closed(below, f"{path}.{name}")
    return open_ones


def test_the_schema_should_be_closed_and_complete() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert closed(schema) == [".global"], "what a parent chart shares is its own affair"
    for name in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        node = schema
        for part in name.split("."):
            if "properties" not in node:
                break
            assert part in node["properties"], name
            node = node["properties"][part]


def test_templates_should_stay_small() -> None:
    long = [
        path.name
        for path in (CHART / "templates").rglob("*")
        if path.is_file() and len(path.read_text().splitlines()) > 250
    ]
    assert long == []
