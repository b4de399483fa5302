"""The pod with mutual TLS and API keys, as rendered: probes, `helm test`, and nobody else."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.auth.api_keys import make

from bench.machine import free_port
from tests.chart.chart import Object, container, needs_helm, pod, render
from tests.chart.kubelet import helm_test, lay_out, probe, until_started
from tests.rpc.secure import Authority

pytestmark = needs_helm
Secrets = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    port = free_port()
    return render(
        {
            "config": {
                "server": {"listen": f"0.0.0.0:{port}", "health_listen": f"0.0.0.0:{free_port()}"},
                "telemetry": {"prometheus_listen": ""},
            },
            "service": {"port": port},
            "tls": {"existingSecret": "pair", "mutual": True, "clientCaSecret": "authority"},
            "apiKeys": {"existingSecret": "keys"},
            "tests": {"clientSecret": "client", "apiKey": {"existingSecret": "key"}},
        }
    )


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    authority, clients = Authority(), Authority()
    server, client = authority.server("penstock"), clients.issue("the-test")
    key, entry = make("the-test")
    return {
        "pair": {"tls.crt": server.certificate, "tls.key": server.key},
        "authority": {"ca.crt": clients.pem},
        "keys": {"keys.json": json.dumps({"keys": [json.loads(entry.model_dump_json())]}).encode()},
        "client": {"ca.crt": authority.pem, "tls.crt": client.certificate, "tls.key": client.key},
        "key": {"key": key.encode()},
    }


@pytest.fixture(scope="module")
def service(
    objects: list[Object], secrets: Secrets, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    box = lay_out(pod(objects), objects, tmp_path_factory.mktemp("pod"), secrets)
    running = box.start({"PENSTOCK_ENGINE_KIND": "scripted"})
    try:
        until_started(container(objects), running, 60)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        running.communicate()


def test_probes_should_be_answered_without_a_certificate(objects: list[Object], service: subprocess.Popen[str]) -> None:
    assert probe(container(objects), "readinessProbe")
    assert probe(container(objects), "livenessProbe")


@pytest.mark.parametrize(
    ("lost", "said_of_it"),
    [("", "thought tokens of at most 8"), ("client", "Unavailable: "), ("key", "CallerRefused: ")],
)
def test_helm_test_should_need_certificate_and_key(
    objects: list[Object], service: subprocess.Popen[str], secrets: Secrets, tmp_path: Path, lost: str, said_of_it: str
) -> None:
    known = dict(secrets)
    if lost == "client":
        known["client"] = {"ca.crt": secrets["client"]["ca.crt"]}
    elif lost == "key":
        known["key"] = {"key": make("the-test")[0].encode()}
    box = helm_test(objects, tmp_path, known)
    box.spec["args"] = [a.replace("--timeout=300", "--timeout=10") for a in box.spec["args"]]
    done = box.start({})
    said, _ = done.communicate(timeout=90)
    assert (done.returncode == 0) is (not lost), said
    assert said_of_it in said
