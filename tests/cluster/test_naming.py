"""No cluster is touched that was not named: file and context both, and every command says them again."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from tests.cluster.cluster import CONTEXT, KUBECONFIG, NotAllowed, chosen, namespace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a kubectl and a helm on PATH that write down how they are called; return the file."""
    log = tmp_path / "calls"
    for name in ("kubectl", "helm"):
        program = tmp_path / name
        lines = ["#!/bin/sh", f'echo "{name} $*" >> {log}', "cat > /dev/null"]
        lines.append('case "$*" in *get-contexts*) echo mine; echo other;; esac')
        program.write_text("\n".join(lines) + "\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return log


@pytest.mark.parametrize("named", [{}, {KUBECONFIG: "a"}, {CONTEXT: "mine"}, {"KUBECONFIG": "a", "CONTEXT": "mine"}])
def test_should_refuse_where_file_or_context_is_not_named(named: dict[str, str], programs: Path) -> None:
    with pytest.raises(NotAllowed, match="make test-cluster KUBECONFIG=FILE CONTEXT=NAME"):
        chosen(named)
    assert not programs.exists()


def test_should_refuse_a_context_that_the_file_has_not(programs: Path) -> None:
    with pytest.raises(NotAllowed, match="no context 'production'; it has mine, other"):
        chosen({KUBECONFIG: "a", CONTEXT: "production"})
    assert chosen({KUBECONFIG: "a", CONTEXT: "mine"}) == ("a", "mine")


def test_should_name_the_cluster_in_every_command_and_remove_only_its_own_namespace(programs: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), namespace("a", "mine") as made:
        made.helm("install", "x")
        raise ZeroDivisionError
    calls = programs.read_text().splitlines()
    assert all("--kubeconfig=a" in call and "context=mine" in call for call in calls)
    assert f"--namespace={made.namespace}" in calls[1]
    assert calls[-1].endswith(f"delete namespace {made.namespace} --wait=false")
    assert made.namespace.startswith("penstock-test-")
    with namespace("a", "mine") as again:
        assert again.namespace != made.namespace


@pytest.mark.parametrize("given", [[], ["KUBECONFIG=a"], ["CONTEXT=mine"]])
def test_make_should_take_names_from_its_command_line_only(given: list[str]) -> None:
    environ = {"PATH": "/usr/bin:/bin", "KUBECONFIG": "a", "CONTEXT": "mine"}
    command = ["make", "--dry-run", "--assume-old=setup", "test-cluster", *given]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "make test-cluster KUBECONFIG=FILE CONTEXT=NAME" in done.stderr
