"""The CPU shape, rendered, should run as it is: command, environment and mounted file, with `helm test` against it.

The scripted engine stands in for the model (one more variable), so that this takes seconds; nothing else is changed but
where the paths point.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.chart.chart import ROOT, Object, container, needs_helm, of_kind, pod, render
from tests.chart.kubelet import Container, lay_out

pytestmark = needs_helm
SERVING = health_pb2.HealthCheckResponse.SERVING


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    port, metrics = free_port(), free_port()
    return render(
        {
            "config": {
                "server": {"listen": f"0.0.0.0:{port}"},
                "telemetry": {"prometheus_listen": f"0.0.0.0:{metrics}"},
            },
            "serviceMonitor": {"enabled": True},
            "service": {"port": port},
            "resumeKey": {"existingSecret": "resume"},
        }
    )


@pytest.fixture(scope="module")
def service(objects: list[Object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    box = lay_out(pod(objects), objects, tmp_path_factory.mktemp("pod"))
    running = box.start({"PENSTOCK_ENGINE_KIND": "scripted"})
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        running.communicate()


def probe(objects: list[Object], name: str) -> bool:
    """As the kubelet does it: one health check, in plaintext, on the container's port."""
    ask = container(objects)[name]["grpc"]
    with grpc.insecure_channel(f"127.0.0.1:{ask['port']}") as channel:
        request = health_pb2.HealthCheckRequest(service=ask.get("service", ""))
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        except grpc.RpcError:
            return False
        return bool(answer.status == SERVING)


def test_should_pass_its_own_probes(objects: list[Object], service: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not probe(objects, "startupProbe"):
        if service.poll() is not None:
            pytest.fail(service.communicate()[0])
        assert time.monotonic() < until
        time.sleep(0.2)
    assert probe(objects, "readinessProbe")
    assert probe(objects, "livenessProbe")


def test_should_be_scraped_where_the_monitor_looks(objects: list[Object], service: subprocess.Popen[str]) -> None:
    (endpoint,) = of_kind(objects, "ServiceMonitor")[0]["spec"]["endpoints"]
    (port,) = [p["containerPort"] for p in container(objects)["ports"] if p["name"] == endpoint["port"]]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{endpoint['path']}", timeout=10) as answer:
        text = answer.read().decode()
    assert 'k8s_container_name="penstock"' in text
    assert 'service_name="try-penstock"' in text
    for name in ("penstock_sequences_running", "penstock_queue_calls"):
        assert f"\n{name}" in text, "the autoscaler asks for it"


def test_the_images_health_check_should_agree_with_the_probe(
    objects: list[Object], service: subprocess.Popen[str]
) -> None:
    port = container(objects)["readinessProbe"]["grpc"]["port"]
    for target, expected in ((f"127.0.0.1:{port}", 0), ("127.0.0.1:1", 1)):
        done = subprocess.run([sys.executable, ROOT / "docker" / "health.py", target], check=False, timeout=30)
        assert done.returncode == expected


def helm_test(objects: list[Object], root: Path) -> Container:
    (test,) = of_kind(objects, "Pod")
    box = lay_out(test["spec"], objects, root)
    # No DNS of a cluster here: the Service's name is this machine.
    box.spec["args"] = [argument.replace("try-penstock:", "127.0.0.1:") for argument in box.spec["args"]]
    return box


def test_should_pass_helm_test(objects: list[Object], service: subprocess.Popen[str], tmp_path: Path) -> None:
    done = helm_test(objects, tmp_path).start({})
    said, _ = done.communicate(timeout=60)
    assert done.returncode == 0, said
    assert "thought tokens of at most 8" in said


def test_should_end_in_time_and_in_peace_on_sigterm(objects: list[Object], service: subprocess.Popen[str]) -> None:
    service.send_signal(signal.SIGTERM)
    said, _ = service.communicate(timeout=30)
    assert service.returncode == 0, said
    assert "draining" in said


def test_helm_test_should_fail_where_nobody_answers(objects: list[Object], tmp_path: Path) -> None:
    box = helm_test(objects, tmp_path)
    box.spec["args"] = ["--target=127.0.0.1:1", "--budget=8", "--timeout=2"]
    done = box.start({})
    done.communicate(timeout=60)
    assert done.returncode != 0
