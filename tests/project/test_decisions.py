"""Decision records have one form and one number each, and what names one names one that exists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.project.script_modules import ROOT, load


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ModuleType]:
    """A copy of the records, and the script that checks it."""
    script = load("decisions")
    folder = tmp_path / "docs/decisions"
    shutil.copytree(ROOT / "docs/decisions", folder)
    for name, value in {"ROOT": tmp_path, "FOLDER": folder, "INDEX": folder / "README.md"}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "tracked", lambda: [path for path in tmp_path.rglob("*") if path.is_file()])
    monkeypatch.setattr("sys.argv", ["decisions", "--check"])
    return folder, script


def test_the_records_as_they_are(copy: tuple[Path, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    _, script = copy
    assert script.main() == 0, capsys.readouterr().err


def renumber(folder: Path) -> None:
    (folder / "0028-files-whole-or-not-at-all.md").rename(folder / "0027-files-whole-or-not-at-all.md")


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        [path] = folder.glob(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


ACCEPTED = "Status: accepted."


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "page.md").write_text(text) and None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renumber, "several decision records have the number 27"),
        (lambda folder: (folder / "0012-several-nodes.md").unlink(), "no decision record has the number 12"),
        (edit("0012-*", "# 12. ", "# 11. "), "0012-several-nodes.md:1: must have the number of its file, 12, got 11"),
        (edit("0012-*", "# 12. ", "# "), "0012-several-nodes.md:1: must be"),
        (edit("0012-*", ACCEPTED, "Status: fine."), "0012-several-nodes.md:3: must be"),
        (edit("0012-*", ACCEPTED, "Status: superseded by 3."), "no later record has the number 3"),
        (edit("0012-*", ACCEPTED, "Status: superseded by 13."), "0013-gathered-deltas.md: does not link to 0012"),
        (edit("0012-*", "# 12. ", "# 12. Not "), "README.md differs from the records"),
        (write("as decision 5 says"), "page.md:1: `decision 5` must name an existing decision record"),
        (write("see [decision 3](0012-several-nodes.md)"), "must name an existing decision record"),
    ],
)
def test_what_the_check_refuses(
    copy: tuple[Path, ModuleType], capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], said: str
) -> None:
    folder, script = copy
    change(folder)
    assert script.main() == 1
    assert said in capsys.readouterr().err
