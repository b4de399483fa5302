"""The API reference is what the protos say, and the parity table is what the clients do."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import penstock_client as pc
import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/how-to/clients.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "`" in line
]
SOURCES = {
    "Python": list((CLIENTS / "python/penstock_client").glob("*.py")),
    "TypeScript": [CLIENTS / "typescript/package.json", *(CLIENTS / "typescript/src").glob("*.ts")],
    "Go": [CLIENTS / "go/go.mod", *(CLIENTS / "go").glob("*.go")],
}
# How a public name is written where it is defined, in each language.
DEFINED = {
    "Python": r"(class|def) {0}\b|^{0} = |\b{0}: |\bmodule {0}\b",
    "TypeScript": r"(const|class|interface|get|async) \*?{0}\b|^  {0}\(|\b{0}\??: |\"name\": \"{0}\"",
    "Go": r"const {0} |func (\(\w+ \*?\w+\) )?{0}[\[(]|type {0} |\t{0} +=|module \S*{0}|\"{0}\"",
}


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_api_reference_is_what_the_protos_say() -> None:
    check = subprocess.run(
        [sys.executable, "scripts/api-docs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize(("column", "language"), list(enumerate(SOURCES, 1)))
def test_every_name_in_the_parity_table_exists(column: int, language: str) -> None:
    text = "\n".join(f"module {path.stem}\n{path.read_text(encoding='utf-8')}" for path in SOURCES[language])
    if language == "Python":
        text += "".join(
            f"\nmodule {name}\n"
            for name in ("penstock_client", *pc.__all__)
            if name in sys.modules or hasattr(pc, name)
        )
    claimed = [name for row in ROWS for name in names(row[column])]
    assert len(claimed) > 30
    missing = [n for n in claimed if not re.search(DEFINED[language].format(re.escape(n)), text, re.MULTILINE)]
    assert not missing


def test_every_public_method_and_error_is_in_the_table() -> None:
    told = {name for row in ROWS for name in names(row[1])}
    methods = {
        name
        for kind in (pc.Client, pc.AsyncClient, pc.Interaction, pc.AsyncInteraction)
        for name in dir(kind)
        if not name.startswith("_")
    }
    errors = {
        name
        for name in pc.__all__
        if isinstance(kind := getattr(pc, name), type) and issubclass(kind, pc.PenstockError)
    }
    assert methods | errors - {"PenstockError"} <= told | {"PenstockError"}
    assert {name for row in ROWS for name in names(row[2])} >= errors - {"PenstockError"}
    assert {name for row in ROWS for name in names(row[3])} >= {f"Err{name}" for name in errors - {"PenstockError"}}


@pytest.mark.parametrize("source", ["typescript/src/client.ts", "go/transport.go"])
def test_the_same_calls_are_retried_in_every_language(source: str) -> None:
    [config] = re.findall(r"`(\{\s+\"methodConfig\".*?)`", (CLIENTS / source).read_text(encoding="utf-8"), re.DOTALL)
    assert json.loads(config) == json.loads(pc.RETRY_READS_SERVICE_CONFIG)


def test_everything_public_in_python_has_its_docstring() -> None:
    bare = []
    for name in pc.__all__:
        kind = getattr(pc, name)
        if not inspect.isclass(kind):
            continue
        members = {m: v for m, v in vars(kind).items() if not m.startswith("_") and (callable(v) or hasattr(v, "fget"))}
        # A dataclass without one is given its own signature.
        if not kind.__doc__ or kind.__doc__.startswith(f"{name}("):
            bare.append(name)
        bare += [f"{name}.{m}" for m in members if m != "from_proto" and not inspect.getdoc(getattr(kind, m))]
    assert not bare


def test_the_two_python_clients_are_alike() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(pc.Client) == public(pc.AsyncClient)
    assert public(pc.Stream) == public(pc.AsyncStream)
    assert public(pc.Interaction) == public(pc.AsyncInteraction)
