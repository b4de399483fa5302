"""The CPU shape as it is rendered, with the real engine: nothing added, the root read-only where that can be."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import pytest
from penstock.config.schema import Config

from bench.machine import free_port
from tests.chart.chart import Object, container, needs_helm, pod, render
from tests.chart.kubelet import helm_test, lay_out, probe, until_started

pytestmark = [needs_helm, pytest.mark.engine, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    port = free_port()
    listen = {
        "server": {"listen": f"0.0.0.0:{port}", "health_listen": f"[::]:{free_port()}"},
        "telemetry": {"prometheus_listen": f"[::]:{free_port()}"},
    }
    return render({"config": listen, "service": {"port": port}, "tests": {"timeoutSeconds": 200}})


def test_should_serve_and_pass_helm_test_with_the_real_engine(objects: list[Object], tmp_path: Path) -> None:
    box = lay_out(pod(objects), objects, tmp_path / "pod")
    service = box.start({}, read_only=True)
    try:
        until_started(container(objects), service, 1200)
        assert probe(container(objects), "livenessProbe")
        done = helm_test(objects, tmp_path / "test").start({})
        said, _ = done.communicate(timeout=230)
        assert done.returncode == 0, said
        assert "thought tokens of at most 8" in said
        # What vLLM keeps goes where the chart says.
        assert any((tmp_path / "pod" / "cache").rglob("vllm"))
        service.send_signal(signal.SIGTERM)
        said, _ = service.communicate(timeout=Config().server.drain_seconds)
        assert service.returncode == 0, said
    finally:
        with contextlib.suppress(ProcessLookupError):
            service.kill()
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            service.communicate(timeout=60)
