"""Test `scripts/words`: it finds planted words and leaves ordinary English alone."""

from __future__ import annotations

import ast
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "words"
SERVICE = "service/penstock/planted.py"


@pytest.fixture(scope="module")
def words() -> ModuleType:
    loader = SourceFileLoader("words_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("class House:\n    pass\n", "House"),
        ("from penstock.auth.identity import Caller\n", "Caller"),
        ("limits = Limits()\n", "Limits"),
        ("def knock() -> None: ...\n", "knock"),
        ("def f(self):\n    self._take()\n", "_take"),
        ("_MOST_BYTES = 5\n", "_MOST_BYTES"),
        ('text = f"{Verdict.GO_ON}"\n', "Verdict"),
    ],
)
def test_old_identifiers_are_found(words: ModuleType, code: str, name: str) -> None:
    found = [str(one) for one in words.identifiers(SERVICE, ast.parse(code))]
    assert len(found) == 1
    assert f"identifier {name}: use " in found[0]


@pytest.mark.parametrize(
    "code",
    [
        "house_number = 5\n",
        'text = "The house, a caller, their limits and a gate"\n',
        "told = said = 1\nprint(told, said)\n",
        "limits = pb.Limits()\nnode: ast.Call\n",
        "self.gate = torch.nn.Linear(1, 1)\n",
        "from opentelemetry.metrics import Meter\n\ndef f(meter: Meter) -> None: ...\n",
    ],
)
def test_ordinary_names_are_not_found(words: ModuleType, code: str) -> None:
    assert list(words.identifiers(SERVICE, ast.parse(code))) == []


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("A caller is turned away at once.", "turned away"),
        ("It is checked at the\nborder", "the border"),
        ("What the onlooker learns.", "onlooker"),
        ("Calls that were let in", "let in"),
        ("Whoever calls", "Whoever"),
        ("It sends canned tokens", "canned tokens"),
        ("Look at what came of it", "what came of it"),
    ],
)
def test_phrases_are_found(words: ModuleType, text: str, phrase: str) -> None:
    found = [str(one) for one in words.phrases("docs/page.md", [(1, text)])]
    assert any(f"phrase '{phrase}'" in one for one in found), found


def test_ordinary_english_and_gated_delta_net_are_not_found(words: ModuleType) -> None:
    text = (
        "There is room for one more request. The gate projection of Gated DeltaNet, and its gate and up weights. "
        "The answer ends before it. Doors and houses of a data set, cross-border traffic, and what they let us do."
    )
    assert list(words.phrases("docs/page.md", [(1, text)])) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("const a = 1; // It was\n", 0),
        ("const a = 1;\n/** Calls are\n * turned away. */\n", 3),
        ("a := 1\n// Calls that were\n// let in\n", 3),
        ('x := "whoever calls"\n', 1),
        ("#!/bin/sh\n# for whoever\necho done\n", 2),
    ],
)
def test_phrases_in_other_languages_are_found_at_their_line(words: ModuleType, text: str, line: int) -> None:
    found = [one.line for one in words.phrases("clients/go/planted.go", words.prose_of_other(text))]
    assert found == ([line] if line else [])


@pytest.mark.parametrize(
    "path", ["bench/planted.py", "models/planted.py", "clients/python/planted.py", "scripts/planted"]
)
def test_bounds_have_standard_names(words: ModuleType, path: str) -> None:
    code = "def f(most_attempts: int) -> None: ...\nleast_ms = counter.most_common(at_most)\n"
    found = [one.what for one in words.identifiers(path, ast.parse(code))]
    assert found == ["identifier most_attempts: use max_*, min_*"]


def test_clients_templates_and_scripts_are_checked(words: ModuleType) -> None:
    found = set(words.tracked([]))
    assert found >= {
        "clients/go/client.go",
        "clients/typescript/src/client.ts",
        "bench/penstock_bench/pilot/templates/report.md.jinja",
        "bench/contenders.py",
        "models/small/train.py",
        "scripts/lock",
        "scripts/_environment.py",
    }
    assert not any("/src/gen/" in name or "/penstockv1/" in name for name in found)


def test_docstrings_start_with_a_verb(words: ModuleType) -> None:
    code = '"""What a module holds."""\n\ndef f():\n    """Of one call."""\n\ndef g():\n    """Whole numbers only."""\n'
    found = [one.what for one in words.docstrings(SERVICE, ast.parse(code))]
    assert [text.split(":")[0] for text in found] == ["docstring starts with What", "docstring starts with Of"]


def test_missing_docstrings_are_counted(words: ModuleType) -> None:
    code = "class A:\n    def b(self): ...\n    def _c(self): ...\n"
    complete = words.missing([("service/penstock/auth/planted.py", ast.parse(code))])
    assert [one.what for one in complete[0]] == ["A has no docstring", "A.b has no docstring"]
    assert words.missing([("service/penstock/cli/planted.py", ast.parse(code))]) == ([], 2, 2)
