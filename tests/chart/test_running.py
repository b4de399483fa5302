"""The CPU shape, rendered, should run as it is: command, environment and mounted file, with `helm test` against it.

The scripted engine stands in for the model (one more variable), so that this takes seconds; nothing else is changed but
where the paths point.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import free_port
from tests.chart.chart import ROOT, Object, container, needs_helm, of_kind, pod, render
from tests.chart.kubelet import helm_test, lay_out, probe, until_started

pytestmark = needs_helm


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    port, metrics = free_port(), free_port()
    return render(
        {
            "config": {
                "server": {"listen": f"0.0.0.0:{port}", "health_listen": f"[::]:{free_port()}"},
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


def test_should_pass_its_own_probes(objects: list[Object], service: subprocess.Popen[str]) -> None:
    box = container(objects)
    until_started(box, service, 60)
    assert probe(box, "readinessProbe")
    assert probe(box, "livenessProbe")


def test_should_be_scraped_where_the_monitor_looks(objects: list[Object], service: subprocess.Popen[str]) -> None:
    (endpoint,) = of_kind(objects, "ServiceMonitor")[0]["spec"]["endpoints"]
    (port,) = [p["containerPort"] for p in container(objects)["ports"] if p["name"] == endpoint["port"]]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{endpoint['path']}", timeout=60) as answer:
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
        done = subprocess.run([sys.executable, ROOT / "docker" / "health.py", target], check=False, timeout=120)
        assert done.returncode == expected


def test_should_pass_helm_test(objects: list[Object], service: subprocess.Popen[str], tmp_path: Path) -> None:
    done = helm_test(objects, tmp_path).start({})
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    assert "thought tokens of at most 8" in said


def test_should_end_in_time_and_in_peace_on_sigterm(objects: list[Object], service: subprocess.Popen[str]) -> None:
    service.send_signal(signal.SIGTERM)
    said, _ = service.communicate(timeout=120)
    assert service.returncode == 0, said
    assert "draining" in said


def test_helm_test_should_fail_where_nobody_answers(objects: list[Object], tmp_path: Path) -> None:
    box = helm_test(objects, tmp_path)
    box.spec["args"] = ["--target=127.0.0.1:1", "--budget=8", "--timeout=2"]
    done = box.start({})
    done.communicate(timeout=120)
    assert done.returncode != 0
