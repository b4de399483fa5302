"""The built wheels install into an empty environment and run there: no file is missing, no requirement is unsaid."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
_IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built from copies: what earlier builds left in the checkout must not get into them."""
    place = tmp_path_factory.mktemp("wheels")
    service, client = place / "service-source", place / "client-source"
    service.mkdir()
    shutil.copytree(ROOT / "service", service / "service", ignore=_IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, service)
    shutil.copytree(ROOT / "clients/python", client, ignore=_IGNORED)
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*build, "--wheel-dir", place, service, client, cwd=place)
    return {path.name.split("-")[0]: path for path in place.glob("*.whl")}


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the two wheels and nothing else."""
    place = tmp_path_factory.mktemp("empty")
    venv.create(place / "venv", with_pip=False)
    made = place / "venv/bin/python"
    install = (sys.executable, "-m", "pip", "--python", made, "install", "--quiet", "--no-deps", "--no-index")
    run(*install, *wheels.values(), cwd=place)
    return made


def outside(python: Path, *arguments: str) -> str:
    """Run it with this environment's packages, but not with its editable installs: no .pth file is read from there."""
    return run(python, *arguments, cwd=python.parents[2], PYTHONPATH=sysconfig.get_path("purelib"), PYTHONSAFEPATH="1")


def test_service_and_client_are_imported_from_the_wheels(python: Path) -> None:
    code = (
        "import penstock.server, penstock.app, penstock.cli, penstock_client\n"
        "from penstock_client.v1 import generation_pb2_grpc, model_pb2_grpc, routing_pb2_grpc\n"
        "for module in (penstock, penstock_client): print(module.__file__)\n"
    )
    for place in outside(python, "-c", code).splitlines():
        assert Path(place).is_relative_to(python.parents[1]), place


def test_the_command_runs(python: Path) -> None:
    assert "penstock" in outside(python, "-m", "penstock", "version")
    assert "listen" in outside(python, "-m", "penstock", "config", "show")


def test_each_says_what_it_needs(wheels: dict[str, Path]) -> None:
    """The service imports the client's stubs; everything else that either needs is in the lock."""
    lock = (ROOT / "requirements/cpu.lock").read_text()
    locked = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    needed: dict[str, set[str]] = {}
    for name, path in wheels.items():
        with zipfile.ZipFile(path) as wheel:
            metadata = next(entry for entry in wheel.namelist() if entry.endswith(".dist-info/METADATA"))
            lines = wheel.read(metadata).decode().splitlines()
        needed[name] = {
            re.split(r"[\s;\[<>=!~(]", line.removeprefix("Requires-Dist: "))[0]
            for line in lines
            if line.startswith("Requires-Dist: ") and "extra ==" not in line
        }
    assert "penstock-client" in needed["penstock"]
    assert needed["penstock"] - {"penstock-client"} <= locked
    assert needed["penstock_client"] <= locked


def test_both_have_one_version_and_the_same_pythons() -> None:
    service, client = (
        tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in (".", "clients/python")
    )
    assert service["version"] == client["version"]
    assert f"penstock-client=={client['version']}" in service["dependencies"]
    assert service["requires-python"] == client["requires-python"]
