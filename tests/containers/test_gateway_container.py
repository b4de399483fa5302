"""The gateway's pod as the chart renders it, in a real container of its image, in front of the scripted service."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import free_port
from tests.chart.chart import ROOT, Object, container, gateway_pod, of_kind, pod, render
from tests.chart.kubelet import lay_out, until_started
from tests.containers.containers import limited, marks, mounted, output_of, podman, secured

pytestmark = [*marks, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def image() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "container-images", "gateway"], check=True)


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    port, http = free_port(), free_port()
    server = {"listen": f"0.0.0.0:{port}", "health_listen": f"0.0.0.0:{free_port()}"}
    gateway = {"enabled": True, "port": http, "service": {"port": http}}
    values = {"config": {"server": server, "telemetry": {"prometheus_listen": ""}}, "service": {"port": port}}
    return render(values | {"gateway": gateway, "tests": {"timeoutSeconds": 60}})


@pytest.fixture(scope="module")
def service(objects: list[Object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    running = lay_out(pod(objects), objects, tmp_path_factory.mktemp("service")).start(
        {"PENSTOCK_ENGINE_KIND": "scripted"}
    )
    try:
        until_started(container(objects), running, 60)
        yield
    finally:
        running.kill()
        running.communicate()


@pytest.fixture
def gateway(image: None, objects: list[Object], service: None, tmp_path: Path) -> Iterator[str]:
    spec = gateway_pod(objects)["spec"]
    (box,) = spec["containers"]
    arguments = [a.replace("dns:///try-penstock-headless.llm.svc:", "127.0.0.1:") for a in box["args"]]
    options = [*secured(spec, box), *limited(box), *mounted(spec, box, objects, tmp_path), *output_of(box)]
    entry = f"--entrypoint={json.dumps(box['command'])}"
    name = podman("run", "--detach", "--network=host", entry, *options, box["image"], *arguments)
    try:
        yield name
    finally:
        with contextlib.suppress(AssertionError):
            podman("rm", "--force", "--time=1", name)


def until_ready(name: str, url: str) -> None:
    until = time.monotonic() + 60
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with contextlib.suppress(OSError), opener.open(f"{url}/readyz", timeout=10) as answer:
            if answer.status == 200:
                return
        assert podman("inspect", "--format={{.State.Running}}", name) == "true", podman("logs", name)
        assert time.monotonic() < until, podman("logs", name)
        time.sleep(0.2)


def test_should_pass_helm_test_be_healthy_and_end_with_zero_on_sigterm(
    gateway: str, objects: list[Object], tmp_path: Path
) -> None:
    spec = gateway_pod(objects)["spec"]
    url = f"http://127.0.0.1:{spec['containers'][0]['ports'][0]['containerPort']}"
    until_ready(gateway, url)
    health = "/usr/local/share/penstock/gateway_health.py"
    assert '"ok"' in podman("exec", gateway, "python3", health, url)

    test = next(found for found in of_kind(objects, "Pod") if found["metadata"]["name"].endswith("-gateway-test"))
    (asking,) = test["spec"]["containers"]
    place = tmp_path / "test"
    place.mkdir()
    for folder in (place, *place.parents[:3]):
        folder.chmod(0o755)
    options = [*secured(test["spec"], asking), *limited(asking), *mounted(test["spec"], asking, objects, place)]
    arguments = [argument.replace("try-penstock-gateway:", "127.0.0.1:") for argument in asking["args"]]
    program, *first = asking["command"]
    entry = f"--entrypoint={program}"
    said = podman("run", "--rm", "--network=host", entry, *options, asking["image"], *first, *arguments)
    assert "thought tokens of at most 8" in said

    podman("stop", f"--time={spec['terminationGracePeriodSeconds']}", gateway, timeout=700)
    assert podman("inspect", "--format={{.State.ExitCode}}", gateway) == "0", podman("logs", gateway)
