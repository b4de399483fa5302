"""Files and functions stay short, and a function with many parameters says why."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service/penstock", "bench/penstock_bench", "gateway/penstock_gateway", "clients/python/penstock_client")
MAX_LINES, MAX_PARAMETERS = 60, 5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(file: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters_of(function: Function) -> int:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def has_reason(function: Function, source: list[str]) -> bool:
    """A comment stands on the line above the function, or above its decorators."""
    first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
    return source[first - 2].lstrip().startswith("#")


@pytest.mark.parametrize("package", PACKAGES)
def test_long_functions_and_long_signatures_have_a_reason_beside_them(package: str) -> None:
    unexplained = []
    for file in sorted((ROOT / package).rglob("*.py")):
        source = file.read_text(encoding="utf-8").splitlines()
        unexplained += [
            f"{file.relative_to(ROOT)}:{one.lineno} {one.name}: {lines_of(one)} lines, {parameters_of(one)} parameters"
            for one in functions(file)
            if (lines_of(one) > MAX_LINES or parameters_of(one) > MAX_PARAMETERS) and not has_reason(one, source)
        ]
    assert not unexplained, "\n".join(unexplained)


def test_most_files_and_functions_are_short() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    assert statistics.median(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 120
    lengths = sorted(lines_of(one) for file in files for one in functions(file))
    assert lengths[int(0.9 * len(lengths))] <= 25


def test_few_modules_stand_beside_the_packages() -> None:
    beside = [file.name for file in (ROOT / "service/penstock").glob("*.py") if file.name != "__init__.py"]
    assert len(beside) <= 5, beside
