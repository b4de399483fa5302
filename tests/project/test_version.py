"""One version: the check finds each place that differs, and the command sets them all."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.project.script_modules import ROOT, load

PLACES = [
    "pyproject.toml",
    "bench/pyproject.toml",
    "gateway/pyproject.toml",
    "clients/python-proto/pyproject.toml",
    "clients/python/pyproject.toml",
    "clients/typescript/package.json",
    "clients/typescript/package-lock.json",
    "clients/typescript/src/version.ts",
    "clients/go/environment.go",
    "examples/go/go.mod",
    "helm/penstock/Chart.yaml",
    "docker/compose/compose.yaml",
    "CHANGELOG.md",
]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ModuleType]:
    """A repository with the files that have the version, and the script that looks after them."""
    for name in PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for arguments in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    script = load("version")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    return tmp_path, script


def test_the_version_is_the_same_everywhere() -> None:
    script = load("version")
    assert script.check(script.source()) == []


@pytest.mark.parametrize("name", PLACES)
def test_each_place_that_differs_is_named(copy: tuple[Path, ModuleType], name: str) -> None:
    folder, script = copy
    now = script.source()
    path = folder / name
    path.write_text(path.read_text().replace(now, "77.0.1"))
    said = script.check(script.source())
    wanted = f" has {now}, pyproject.toml has 77.0.1" if name == "pyproject.toml" else f"{name}:"
    assert any(wanted in line for line in said), said


def test_a_place_that_has_moved_is_named(copy: tuple[Path, ModuleType]) -> None:
    folder, script = copy
    (folder / "clients/go/environment.go").unlink()
    assert script.check(script.source()) == [
        "clients/go/environment.go must have the version, found none; if it has moved, change scripts/version"
    ]


def test_one_command_sets_all(copy: tuple[Path, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, script = copy
    before = script.source()
    monkeypatch.setattr("sys.argv", ["version", "77.10.1"])
    assert script.main() == 0
    assert script.source() == "77.10.1"
    assert script.check("77.10.1") == []
    for name in PLACES:
        assert "77.10.1" in (folder / name).read_text(), name
    assert f"penstock:{before}" not in (folder / "docker/compose/compose.yaml").read_text()


def test_a_released_version_keeps_its_heading(copy: tuple[Path, ModuleType]) -> None:
    folder, script = copy
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 - 2026-12-01\n\n### Added\n- it\n")
    script.set_everywhere("0.2.0")
    text = (folder / "CHANGELOG.md").read_text()
    assert text == "# Changelog\n\n## 0.2.0 - unreleased\n\n## 0.1.0 - 2026-12-01\n\n### Added\n- it\n"


def test_a_merge_that_brings_the_old_text_back_is_found(copy: tuple[Path, ModuleType]) -> None:
    folder, script = copy
    text = (folder / "CHANGELOG.md").read_text()
    (folder / "CHANGELOG.md").write_text(f"{text}\n### Added\n- again\n")
    assert script.check_change_log(script.source()) == [
        f"CHANGELOG.md: '## {script.source()} - unreleased' has several headings 'Added'; {script.MERGED}"
    ]


@pytest.mark.parametrize("wrong", ["v1.0.0", "1.0", "1.0.0rc1", "1.0.0-rc.1", ""])
def test_other_forms_are_refused(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["version", wrong])
    with pytest.raises(SystemExit):
        load("version").main()
    assert f"must be three numbers such as 0.2.0, got {wrong!r}" in capsys.readouterr().err
