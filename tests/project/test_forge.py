"""The forge runs what a developer runs: each job is a make target that exists, with the least of rights."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from _pytest.mark.expression import Expression

from tests.project.script_modules import ROOT

FORGE = ROOT / ".github"
JOBS: dict[str, dict[str, Any]] = yaml.safe_load((FORGE / "workflows/ci.yml").read_text())["jobs"]
TARGETS = set(re.findall(r"(?m)^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text()))
GATES = {
    target: re.search(rf"(?m)^{target}: .*\n\t.* -m \"(.*?)\"", (ROOT / "Makefile").read_text()).group(1)  # type: ignore[union-attr]
    for target in ("test-fast", "test-slow", "test-engine")
}
"""The tests that each job's target chooses, as expressions of markers."""
SCHEMAS = {
    "workflows/*.yml": "github-workflows",
    "ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "ISSUE_TEMPLATE/[!c]*.yml": "github-issue-forms",
    "dependabot.yml": "dependabot",
}


def test_each_job_is_one_make_target() -> None:
    wanted = {"check", "clients", "test-chart", "docs", "coverage", "breaking", "audit"} | set(GATES) | {"test-browser"}
    called = {job["with"]["target"] for job in JOBS.values()}
    assert called <= TARGETS
    assert called >= wanted
    assert {job["uses"] for job in JOBS.values()} == {"./.github/workflows/make.yml"}


@pytest.mark.parametrize("markers", [(), ("slow",), ("engine",), ("slow", "engine")], ids="+".join)
def test_each_test_that_is_not_full_is_in_a_job_that_can_fail(markers: tuple[str, ...]) -> None:
    chosen = [Expression.compile(expression) for expression in GATES.values()]
    assert sum(one.evaluate(lambda name, **_: name in markers) for one in chosen) == 1
    assert not any(one.evaluate(lambda name, **_: name in (*markers, "full")) for one in chosen)
    [ignored] = re.findall(r"(?m)^NO_ENGINE := (.*)$", (ROOT / "Makefile").read_text())
    assert ignored.split() == ["--ignore=tests/engine", "--ignore=tests/chaos"]  # all of them are marked `engine`


def test_the_matrix_is_every_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, after = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()  # type: ignore[union-attr]
    supported = [f"3.{minor}" for minor in range(int(oldest), int(after))]
    for job in ("check", "fast", "slow", "engine"):
        assert JOBS[job]["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize("path", sorted(FORGE.glob("workflows/*.yml")), ids=lambda path: path.name)
def test_a_job_may_read_and_nothing_else(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
    assert "secrets" not in path.read_text()
    assert "pull_request_target" not in path.read_text()


@pytest.mark.slow
@pytest.mark.needs("audit")
def test_the_forge_would_take_each_file() -> None:
    """By the schemas that check-jsonschema brings, and by zizmor, which looks for what a pull request could abuse."""
    programs = ROOT / ".tools/audit/bin"
    for glob, schema in SCHEMAS.items():
        files = list(map(str, FORGE.glob(glob)))
        assert files, glob
        command = [str(programs / "check-jsonschema"), f"--builtin-schema=vendor.{schema}", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    command = [str(programs / "zizmor"), "--offline", "--no-progress", "--min-severity=medium", str(FORGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return [hook for repo in config["repos"] for hook in repo["hooks"] if repo["repo"] == "local"]


def test_hooks_call_the_projects_own_tools() -> None:
    """No version of a tool stands in two places, and no hook asks a host for one."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    for hook in hooks():
        if hook["language"] == "pygrep":
            continue
        program = hook["entry"].split()[0]
        assert program == "make" or (ROOT / program).exists(), hook["id"]
        if program == "make":
            assert set(hook["entry"].split()[1:]) <= TARGETS


@pytest.mark.parametrize(
    ("subject", "refused"),
    [
        ("engine: count drafts that were rejected", False),
        ("Make one piece of what stood twice", False),
        ("engine: " + "x" * 64, False),
        ("engine: " + "x" * 65, True),
        ("Merge branch " + "x" * 80, False),
    ],
)
def test_the_first_line_of_a_commit_is_short(subject: str, refused: bool) -> None:
    [hook] = [hook for hook in hooks() if hook.get("stages") == ["commit-msg"]]
    found = re.search(hook["entry"], f"{subject}\n\n{'a long line of the body ' * 9}\n")
    assert bool(found) is refused
