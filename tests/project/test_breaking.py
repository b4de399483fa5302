"""`make breaking` finds what would break a client since the last release, in a copy of the protos with a tag."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.project.script_modules import ROOT, load
from tests.tooling import program

KEPT = ("configuration.md", "openmetrics.json")
PROTO = "protos/penstock/v1/generation.proto"


def git(folder: Path, *arguments: str) -> None:
    identity = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@localhost",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    ]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ModuleType]:
    """A repository of the protos alone, without a release, and the script."""
    script = load("breaking")
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    for name in KEPT:
        [found] = script.listed(name, "ls-files")
        (tmp_path / "kept").mkdir(exist_ok=True)
        shutil.copy(ROOT / found, tmp_path / "kept" / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0 - unreleased\n\n## 0.1.0\n- `server.listen`\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=protos: as they are")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["breaking"])
    return tmp_path, script


def change(folder: Path, old: str, new: str) -> None:
    path = folder / PROTO
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_without_a_release_it_says_so(
    copy: tuple[Path, ModuleType], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, script = copy
    git(folder, "tag", "nightly")
    assert script.main() == 0
    assert capfd.readouterr().out == "there is no release tag (vX.Y.Z) yet, so there is nothing to compare with\n"
    monkeypatch.setattr("sys.argv", ["breaking", "--against=v9.9.9"])
    assert script.main() == script.CANNOT_COMPARE
    assert "there is no commit 'v9.9.9'" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.needs("buf")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rpc Cancel(", "rpc Kill(", 'Previously present RPC "Cancel"'),
        ("uint64 last_sequence = 3", "uint64 last_seen = 3", 'Field "3" on message "ResumeRequest" changed name'),
        ("uint64 last_sequence = 3", "uint64 last_sequence = 4", 'field "3" with name "last_sequence"'),
        ("uint64 last_sequence = 3", "string last_sequence = 3", "changed type"),
        ("PRIORITY_HIGH = 3", "PRIORITY_HIGH = 4", 'enum value "3"'),
    ],
)
def test_what_breaks_a_client_is_named(
    copy: tuple[Path, ModuleType],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    said: str,
) -> None:
    folder, script = copy
    monkeypatch.setenv("PATH", f"{Path(program('buf')).parent}{os.pathsep}{os.environ['PATH']}")
    git(folder, "tag", "v0.1.0")
    assert script.main() == 0
    assert "nothing breaks since v0.1.0" in capfd.readouterr().out
    change(folder, old, new)
    assert script.main() == 100
    assert said.lower() in capfd.readouterr().out.lower()


@pytest.mark.needs("buf")
def test_an_addition_breaks_nothing(
    copy: tuple[Path, ModuleType], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, script = copy
    monkeypatch.setenv("PATH", f"{Path(program('buf')).parent}{os.pathsep}{os.environ['PATH']}")
    git(folder, "tag", "v0.1.0")
    change(folder, "uint64 last_sequence = 3;", "uint64 last_sequence = 3;\n  // Units: tokens.\n  uint32 more = 99;")
    assert script.main() == 0, capfd.readouterr()


@pytest.mark.needs("buf")
@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("configuration.md", "| `listen` |", "| `listen_on` |", "configuration key server.listen"),
        ("openmetrics.json", '"penstock_engine_up"', '"penstock_engine_ready"', "metric penstock_engine_up"),
    ],
)
def test_a_key_or_a_metric_goes_with_a_word_in_the_change_log(
    copy: tuple[Path, ModuleType],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    old: str,
    new: str,
    name: str,
) -> None:
    folder, script = copy
    monkeypatch.setenv("PATH", f"{Path(program('buf')).parent}{os.pathsep}{os.environ['PATH']}")
    git(folder, "tag", "v0.1.0")
    path = folder / "kept" / file
    assert old in path.read_text()
    (folder / "moved").mkdir()
    (folder / "moved" / file).write_text(path.read_text().replace(old, new))
    path.unlink()
    git(folder, "add", "--all")
    assert script.main() == 1
    assert capfd.readouterr().out.startswith(f"{name} was removed since v0.1.0: name it in the topmost section")
    log = folder / "CHANGELOG.md"
    log.write_text(log.read_text().replace("unreleased\n", f"unreleased\n\n### Removed\n- `{name.split()[-1]}`\n"))
    assert script.main() == 0
