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
_OTHERS = ("clients/python-proto", "clients/python", "bench", "gateway")
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
    """All wheels, built from copies: what earlier builds left in the checkout must not get into them."""
    place = tmp_path_factory.mktemp("wheels")
    service = place / "service-source"
    service.mkdir()
    shutil.copytree(ROOT / "service", service / "service", ignore=_IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, service)
    for name in _OTHERS:
        shutil.copytree(ROOT / name, place / name, ignore=_IGNORED)
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*build, "--wheel-dir", place, service, *(place / name for name in _OTHERS), cwd=place)
    return {path.name.split("-")[0]: path for path in place.glob("*.whl")}


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has these wheels and nothing else."""
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
        "import penstock.server.server, penstock.server.app, penstock.cli\n"
        "import penstock_bench.commands.pilot, penstock_client, penstock_gateway.app, penstock_proto\n"
        "from penstock_proto.v1 import generation_pb2_grpc, model_pb2_grpc, routing_pb2_grpc\n"
        "for module in (penstock, penstock_client, penstock_proto, penstock_bench, penstock_gateway):\n"
        "    print(module.__file__)\n"
    )
    for place in outside(python, "-c", code).splitlines():
        assert Path(place).is_relative_to(python.parents[1]), place


def test_the_command_runs(python: Path) -> None:
    assert "penstock" in outside(python, "-m", "penstock", "version")
    assert "listen" in outside(python, "-m", "penstock", "config", "show")
    assert "--concurrency" in outside(python, "-m", "penstock", "pilot", "--help")


def test_each_says_what_it_needs(wheels: dict[str, Path]) -> None:
    """Each names those of us that it imports; everything else that it needs is in the lock."""
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
    ours = {
        "penstock_proto": set(),
        "penstock_client": {"penstock-proto"},
        "penstock": {"penstock-client", "penstock-proto"},
        "penstock_bench": {"penstock", "penstock-client"},
        "penstock_gateway": {"penstock-client"},
    }
    assert needed.keys() == ours.keys()
    for name, requirements in needed.items():
        assert requirements - locked == ours[name], name


def test_all_have_one_version_and_the_same_pythons() -> None:
    projects = [tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in (".", *_OTHERS)]
    assert len({(project["version"], project["requires-python"]) for project in projects}) == 1
    wanted = f"=={projects[0]['version']}"
    for project in projects:
        ours = [need for need in project["dependencies"] if need.startswith("penstock")]
        assert all(need.endswith(wanted) for need in ours), ours


def test_without_penstock_bench_its_commands_say_what_is_missing(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The serving image does not hold it."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*install, *(path for name, path in wheels.items() if name != "penstock_bench"), cwd=tmp_path)
    environment = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONSAFEPATH": "1"}
    # The packages of this environment, but not the editable install's entry points.
    code = (
        "import sys; from importlib import metadata; found = metadata.entry_points\n"
        "metadata.entry_points = lambda **asked: [] if asked == {'group': 'penstock.commands'} else found(**asked)\n"
        "from penstock.__main__ import main; sys.argv = ['penstock', 'plan', '--model', 'x']; main()"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install penstock-bench" in done.stderr.replace("\n", " ")
