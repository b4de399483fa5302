"""All cases through the TypeScript client, by its driver."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.drivers import run_driver
from tests.conformance.harness import load_cases
from tests.conformance.judge import judge
from tests.conformance.tools import NODE, build_typescript, check, needs_node

CASES = load_cases()
pytestmark = [needs_node, pytest.mark.slow]


@pytest.fixture(scope="module")
def seen(targets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [str(NODE), "--expose-gc", "test/conformance.mjs"]
    return run_driver(command, build_typescript(), targets, CASES, tmp_path_factory.mktemp("typescript"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.timeout(400)
def test_case(case: dict[str, Any], seen: dict[str, Any]) -> None:
    assert not judge(case, seen[case["name"]])


def test_the_messages_are_what_the_protos_say() -> None:
    check("protos-typescript")
