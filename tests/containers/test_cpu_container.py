"""The CPU pod as the chart renders it, in a real container with the real engine: probes, `helm test`, a death, SIGTERM.

podman runs no gRPC probes and shares no process namespace with a pause container: the test asks the probes itself, with
the rendered port, service name, period and threshold, and the image's own tini is process 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import free_port
from tests.chart.chart import ROOT, Object, container, of_kind, pod, render
from tests.chart.kubelet import probe
from tests.containers.containers import PODMAN, limited, marks, mounted, output_of, podman, secured

pytestmark = [*marks, pytest.mark.engine, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def images() -> None:
    subprocess.run([ROOT / "scripts" / "container-images", "client", "cpu"], check=True)


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    port = free_port()
    listen = {"listen": f"0.0.0.0:{port}", "health_listen": f"[::]:{free_port()}", "drain_seconds": 20}
    telemetry = {"prometheus_listen": f"[::]:{free_port()}"}
    values = {"config": {"server": listen, "telemetry": telemetry}, "service": {"port": port}}
    return render(values | {"tests": {"timeoutSeconds": 200}})


@pytest.fixture(scope="module")
def service(images: None, objects: list[Object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec, box = pod(objects), container(objects)
    folder = tmp_path_factory.mktemp("pod")
    folder.chmod(0o755)
    options = [*secured(spec, box), *limited(box), *mounted(spec, box, objects, folder), *output_of(box)]
    entry = json.dumps(["tini", "--", *box["command"]])
    name = podman("run", "--detach", "--network=host", f"--entrypoint={entry}", *options, box["image"], *box["args"])
    try:
        yield name
    finally:
        with contextlib.suppress(AssertionError):
            podman("rm", "--force", "--time=1", name)


def until_ready(name: str, box: Object) -> float:
    """Wait as the kubelet does, within the rendered budget; return the seconds."""
    ask = box["startupProbe"]
    began = time.monotonic()
    for _ in range(ask["failureThreshold"]):
        if probe(box, "startupProbe"):
            return time.monotonic() - began
        assert podman("inspect", "--format={{.State.Running}}", name) == "true", podman("logs", name)
        time.sleep(ask["periodSeconds"])
    raise AssertionError(podman("logs", name))


def test_should_start_within_its_budget_and_pass_helm_test(service: str, objects: list[Object], tmp_path: Path) -> None:
    box = container(objects)
    seconds = until_ready(service, box)
    print(f"ready after {seconds:.0f} s")
    assert probe(box, "readinessProbe")
    assert probe(box, "livenessProbe")

    (test,) = of_kind(objects, "Pod")
    (asking,) = test["spec"]["containers"]
    tmp_path.chmod(0o755)
    options = [*secured(test["spec"], asking), *limited(asking), *mounted(test["spec"], asking, objects, tmp_path)]
    arguments = [argument.replace("try-penstock:", "127.0.0.1:") for argument in asking["args"]]
    program, *first = asking["command"]
    image = "penstock-client:0.1.0"
    said = podman("run", "--rm", "--network=host", f"--entrypoint={program}", *options, image, *first, *arguments)
    assert "thought tokens of at most 8" in said


def engine_core(name: str) -> int:
    """Return the host's pid of the engine core, once it is listed."""
    until = time.monotonic() + 60
    while True:
        listed = podman("top", name, "hpid", "args")
        found = [line.split()[0] for line in listed.splitlines() if "EngineCore" in line]
        if found:
            return int(found[0])
        assert time.monotonic() < until, listed
        time.sleep(1)


def test_a_dead_engine_should_be_replaced_and_leave_no_zombie(service: str, objects: list[Object]) -> None:
    os.kill(engine_core(service), 9)
    box = container(objects)
    until = time.monotonic() + 300
    while probe(box, "readinessProbe") and time.monotonic() < until:
        time.sleep(0.1)
    until_ready(service, box)
    assert probe(box, "livenessProbe")
    assert "Z" not in {line.split()[0][0] for line in podman("top", service, "state", "hpid").splitlines()[1:]}


def test_should_drain_and_end_with_zero_on_sigterm(service: str, objects: list[Object]) -> None:
    podman("stop", f"--time={pod(objects)['terminationGracePeriodSeconds']}", service, timeout=700)
    assert podman("inspect", "--format={{.State.ExitCode}}", service) == "0", podman("logs", service)
    logs = subprocess.run([*PODMAN, "logs", service], capture_output=True, text=True, check=True)
    assert "draining" in logs.stdout + logs.stderr
