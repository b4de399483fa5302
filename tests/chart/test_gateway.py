"""The gateway beside the service: what its objects mean together, and its pod as rendered in front of the service's."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from cryptography import x509
from penstock.auth.api_keys import make
from penstock_client import AsyncClient
from penstock_gateway.app import create_app
from penstock_gateway.command import gateway as command
from penstock_gateway.settings import Settings

from bench.machine import free_port
from tests.chart.chart import (
    CHART,
    GATEWAYS,
    Object,
    container,
    gateway_pod,
    is_gateways,
    needs_helm,
    of_kind,
    of_service,
    pod,
    render,
    templates,
)
from tests.chart.kubelet import Container, helm_test, lay_out, until_started
from tests.rpc.secure import Authority

pytestmark = needs_helm
every_gateway = pytest.mark.parametrize("values", GATEWAYS, ids=lambda path: path.stem)
Secrets = dict[str, dict[str, bytes]]


def of_gateway(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in of_kind(objects, kind) if is_gateways(found)]


def box(objects: list[Object]) -> Object:
    (found,) = gateway_pod(objects)["spec"]["containers"]
    return found


def options(objects: list[Object]) -> dict[str, Any]:
    """Return what the command reads of the pod's arguments. Raise click's errors for what it does not take."""
    program = typer.Typer()
    program.command()(command)
    return typer.main.get_command(program).make_context("gateway", list(box(objects)["args"])).params


@every_gateway
def test_should_pass_what_the_command_takes(values: Path) -> None:
    objects = render(values)
    assert box(objects)["command"] == ["python3", "-m", "penstock_gateway"]
    read = options(objects)
    settings = Settings.of(read["limit"])
    (port,) = box(objects)["ports"]
    assert read["listen"] == f"[::]:{port['containerPort']}"
    # The keys of callers pass through: plaintext is said, or there is an authority.
    secure = any(volume["name"] == "tls" for volume in pod(objects)["volumes"]) or "nodes" in values.stem
    assert (read["tls"] is False) is not secure
    assert secure is bool(read["tls"] or read["ca"])
    files = [str(read[name]) for name in ("ca", "certificate", "key") if read[name]]
    mounted = {mount["mountPath"] for mount in box(objects).get("volumeMounts", [])}
    assert {str(Path(file).parent) for file in files} == mounted
    # It is never killed while it drains.
    sleep = box(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert gateway_pod(objects)["spec"]["terminationGracePeriodSeconds"] > sleep + settings.drain_seconds


@every_gateway
def test_should_be_probed_and_scraped_where_it_answers(values: Path) -> None:
    objects = render(values)
    paths = {getattr(route, "path", "") for route in create_app(AsyncClient("127.0.0.1:1")).routes}
    names = {port["name"] for port in box(objects)["ports"]}
    for name, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        asked = box(objects)[name]["httpGet"]
        assert asked["path"] == path
        assert path in paths
        assert asked["port"] in names
    assert box(objects)["livenessProbe"]["failureThreshold"] >= 3
    for monitor, key in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
        for found in of_gateway(objects, monitor):
            (endpoint,) = found["spec"][key]
            assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
            wanted = found["spec"]["selector"]["matchLabels"].items()
            scraped = [s["metadata"] for s in of_kind(objects, "Service") if wanted <= s["metadata"]["labels"].items()]
            assert [one["name"] for one in scraped] == ["try-penstock-gateway"]
    assert "/metrics" in paths


@every_gateway
def test_should_be_found_by_its_own_objects_and_by_no_other(values: Path) -> None:
    objects = render(values)
    labels = gateway_pod(objects)["metadata"]["labels"]
    others = [template["metadata"]["labels"] for template in templates(objects).values()]
    others += [found["metadata"]["labels"] for found in of_kind(objects, "Pod")]
    selectors = [found["spec"]["selector"]["matchLabels"] for found in of_gateway(objects, "Deployment")]
    selectors += [found["spec"]["selector"] for found in of_gateway(objects, "Service")]
    selectors += [found["spec"]["selector"]["matchLabels"] for found in of_gateway(objects, "PodDisruptionBudget")]
    selectors += [found["spec"]["podSelector"]["matchLabels"] for found in of_gateway(objects, "NetworkPolicy")]
    assert len(selectors) >= 3
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in others)
    (spread,) = gateway_pod(objects)["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    # Nor does an object of the service count the gateway's pods.
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for found in of_kind(of_service(objects), kind):
            rule = found["spec"].get("podSelector") or found["spec"]["selector"]
            components = [rule["matchLabels"].get("app.kubernetes.io/component")]
            components += [value for one in rule.get("matchExpressions", []) for value in one["values"]]
            assert "gateway" not in components


@every_gateway
def test_should_reach_the_service_and_nothing_else(values: Path) -> None:
    objects = render(values)
    (policy,) = of_gateway(objects, "NetworkPolicy")
    calls, dns, *others = policy["spec"]["egress"]
    grpc = next(port["containerPort"] for port in container(objects)["ports"] if port["name"] == "grpc")
    assert calls["ports"] == [{"port": grpc, "protocol": "TCP"}]
    (peer,) = calls["to"]
    assert peer["podSelector"]["matchLabels"].items() <= templates(objects)["service"]["metadata"]["labels"].items()
    assert {port["port"] for port in dns["ports"]} == {53, 5353}
    open_ports = [port["port"] for rule in others for port in rule.get("ports", [])]
    assert open_ports == ([4318, 9464] if values.stem == "gateway-exposed" else [])
    # And the service lets it in, whoever else calls.
    service = next(p for p in of_kind(of_service(objects), "NetworkPolicy") if p["spec"]["ingress"][0].get("ports"))
    allowed = [one["podSelector"].get("matchLabels", {}) for one in service["spec"]["ingress"][0]["from"]]
    mine = gateway_pod(objects)["metadata"]["labels"]
    assert any(labels and labels.items() <= mine.items() for labels in allowed)
    # The target is a Service of the release that has this port.
    host, _, port = options(objects)["target"].removeprefix("dns:///").rpartition(":")
    (found,) = [
        s
        for s in of_kind(of_service(objects), "Service")
        if host == f"{s['metadata']['name']}.{s['metadata']['namespace']}.svc"
    ]
    assert int(port) in {one["port"] for one in found["spec"]["ports"] if one["name"] == "grpc"}


def test_should_let_in_only_who_is_named() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}]
    objects = render({"gateway": {"enabled": True, "networkPolicy": {"from": peers}}})
    (policy,) = of_gateway(objects, "NetworkPolicy")
    (rule,) = policy["spec"]["ingress"]
    test = next(p for p in of_kind(objects, "Pod") if "gateway" in p["metadata"]["name"])
    assert rule["from"][:1] == peers
    (own,) = rule["from"][1:]
    assert own["podSelector"]["matchLabels"].items() <= test["metadata"]["labels"].items()
    assert not of_kind(render({"gateway": {"enabled": True}, "networkPolicy": {"enabled": False}}), "NetworkPolicy")


def ways_in(objects: list[Object]) -> list[tuple[str, str, Object]]:
    """Type, path and backend of what HTTPRoute and Ingress lead in."""
    found = []
    for route in of_kind(objects, "HTTPRoute"):
        (rule,) = route["spec"]["rules"]
        assert rule["timeouts"]["request"]
        (backend,) = rule["backendRefs"]
        found += [(m["path"]["type"].removeprefix("Path"), m["path"]["value"], backend) for m in rule["matches"]]
    for ingress in of_kind(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            found += [(p["pathType"], p["path"], p["backend"]["service"]) for p in rule["http"]["paths"]]
    return found


@pytest.mark.parametrize("playground", [False, True])
def test_routes_should_lead_to_the_api_and_never_to_metrics_or_probes(playground: bool) -> None:
    route = {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["a.example"]}
    ingress = {"enabled": True, "hosts": ["a.example", "b.example"]}
    shown = {"exposePlayground": playground, "httpRoute": route, "ingress": ingress}
    objects = render({"gateway": {"enabled": True, **shown}})
    (service,) = of_gateway(objects, "Service")
    ways = ways_in(objects)
    api = {("Prefix", "/v1")}
    page = {("Prefix", "/playground"), ("Exact", "/")} if playground else set()
    assert {(kind, path) for kind, path, _ in ways} == api | page
    for _, _, backend in ways:
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"] in (80, {"name": "http"})
    # What they lead to is all that the application has beside its probes.
    apart = {"/healthz", "/readyz", "/metrics"}
    for path in {getattr(route, "path", "") for route in create_app(AsyncClient("127.0.0.1:1")).routes} - apart:
        led = path == "/" or path.startswith(("/v1/", "/playground/"))
        assert led, f"a new route that neither Ingress nor HTTPRoute leads to: {path}"


def test_an_ingress_should_carry_whole_bodies_and_long_silence() -> None:
    ingress = {"enabled": True, "hosts": ["a.example"], "annotations": {"cert-manager.io/cluster-issuer": "public"}}
    (found,) = of_kind(render({"gateway": {"enabled": True, "ingress": ingress}}), "Ingress")
    annotations = found["metadata"]["annotations"]
    nginx = {name.partition("/")[2]: text for name, text in annotations.items() if name.startswith("nginx.")}
    assert int(nginx["proxy-body-size"].removesuffix("m")) * 2**20 >= Settings().max_body_bytes
    assert int(nginx["proxy-read-timeout"]) > Settings().keep_alive_seconds
    assert nginx["proxy-buffering"] == "off"
    assert annotations["cert-manager.io/cluster-issuer"] == "public"


def test_the_values_should_have_every_bound_of_the_gateway() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["gateway"]["properties"]
    assert schema["limits"]["properties"].keys() == {one.name for one in fields(Settings)} - {"drain_seconds"}
    checks = (CHART / "templates" / "_checks_gateway.tpl").read_text()
    assert f"max_request_memory_bytes | default {Settings().max_request_memory_bytes} " in checks
    assert f"max_body_bytes | default {Settings().max_body_bytes} " in checks
    port = yaml.safe_load((CHART / "values.yaml").read_text())["gateway"]["port"]
    assert f"[::]:{port}" in (CHART.parents[1] / "docker" / "gateway.Dockerfile").read_text()


def test_should_need_no_gpu_and_no_place_of_the_services() -> None:
    placed: Object = {"nodeSelector": {"gpu": "h100"}, "runtimeClassName": "nvidia", "tolerations": [{"key": "gpu"}]}
    objects = render({"preset": "qwen3.5-35b-a3b-fp8", **placed, "gateway": {"enabled": True}})
    assert "gpu" not in str(box(objects)["resources"])
    assert not placed.keys() & gateway_pod(objects)["spec"].keys()
    assert pod(objects)["runtimeClassName"] == "nvidia"


def test_should_never_mount_the_services_own_key() -> None:
    for tls in ({"existingSecret": "pair"}, {"certManager": {"enabled": True, "issuerRef": {"name": "internal"}}}):
        objects = render({"tls": tls, "gateway": {"enabled": True}})
        (volume,) = gateway_pod(objects)["spec"]["volumes"]
        assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
        name = next(v["secret"]["secretName"] for v in pod(objects)["volumes"] if v["name"] == "tls")
        assert volume["secret"]["secretName"] == name
        assert options(objects)["tls_server_name"] == "try-penstock.llm.svc"


def test_an_autoscaler_should_own_the_count() -> None:
    objects = render({"gateway": {"enabled": True, "autoscaling": {"enabled": True}}})
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    (scaled,) = of_gateway(objects, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == scaled["metadata"]["name"]
    assert "replicas" not in scaled["spec"]
    assert box(objects)["resources"]["requests"]["cpu"]


def test_should_export_spans_to_the_services_collector() -> None:
    def told(telemetry: Object) -> dict[str, str]:
        objects = render({"config": {"telemetry": telemetry}, "gateway": {"enabled": True}})
        env = {entry["name"]: entry.get("value", "") for entry in box(objects)["env"]}
        return {name: value for name, value in env.items() if name.startswith("OTEL_EXPORTER")}

    endpoint = {"otlp_endpoint": "http://collector:4317"}
    assert told(endpoint) == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    assert told(endpoint | {"otlp": "http"})["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert told(endpoint | {"otlp": "off"}) == told(endpoint | {"traces": False}) == told({}) == {}


# The pods as rendered, in front of each other.


def plain() -> tuple[Object, Secrets]:
    return {}, {}


def secured() -> tuple[Object, Secrets]:
    """Mutual TLS, with a certificate for the Service's name alone, and API keys."""
    authority, clients = Authority(), Authority()
    server = authority.issue("penstock", x509.DNSName("try-penstock.llm.svc"))
    shown = clients.issue("the-gateway")
    key, entry = make("the-test")
    values: Object = {
        "tls": {"existingSecret": "pair", "mutual": True, "clientCaSecret": "clients"},
        "apiKeys": {"existingSecret": "keys"},
        "tests": {"clientSecret": "shown", "apiKey": {"existingSecret": "key"}},
        "gateway": {"tls": {"caSecret": "authority", "clientSecret": "shown"}},
    }
    return values, {
        "pair": {"tls.crt": server.certificate, "tls.key": server.key},
        "authority": {"ca.crt": authority.pem},
        "clients": {"ca.crt": clients.pem},
        "shown": {"ca.crt": authority.pem, "tls.crt": shown.certificate, "tls.key": shown.key},
        "keys": {"keys.json": json.dumps({"keys": [json.loads(entry.model_dump_json())]}).encode()},
        "key": {"key": key.encode()},
    }


@pytest.fixture(scope="module", params=[plain, secured])
def shape(request: pytest.FixtureRequest) -> tuple[list[Object], Secrets]:
    values, secrets = request.param()
    port, http = free_port(), free_port()
    ours = {
        "config": {
            "server": {"listen": f"0.0.0.0:{port}", "health_listen": f"[::]:{free_port()}"},
            "telemetry": {"prometheus_listen": ""},
        },
        "service": {"port": port},
        "preStopSeconds": 0,
        "tests": {"timeoutSeconds": 30, **values.pop("tests", {})},
        "gateway": {"enabled": True, "port": http, "service": {"port": http}, **values.pop("gateway", {})},
    }
    return render(values | ours), secrets


@pytest.fixture(scope="module")
def service(
    shape: tuple[list[Object], Secrets], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    objects, secrets = shape
    running = lay_out(pod(objects), objects, tmp_path_factory.mktemp("service"), secrets).start(
        {"PENSTOCK_ENGINE_KIND": "scripted"}
    )
    try:
        until_started(container(objects), running, 60)
        yield running
    finally:
        end(running)


def end(running: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        running.kill()
    with contextlib.suppress(ValueError):  # a failed assertion has read it
        running.communicate()


def started(objects: list[Object], root: Path, secrets: Secrets) -> subprocess.Popen[str]:
    made: Container = lay_out(gateway_pod(objects)["spec"], objects, root, secrets)
    # No DNS of a cluster here: the Service's name is this machine.
    args = [a.replace("dns:///try-penstock-headless.llm.svc:", "127.0.0.1:") for a in made.spec["args"]]
    made.spec["args"] = args
    return made.start({}, read_only=True)


def asked(objects: list[Object], probe: str) -> int:
    """Status of the probe's request; 0 where nobody listens."""
    path, (port,) = box(objects)[probe]["httpGet"]["path"], box(objects)["ports"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port['containerPort']}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return 0


def until(objects: list[Object], probe: str, status: int, running: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while asked(objects, probe) != status:
        assert running.poll() is None, f"ended with {running.returncode}: {running.communicate()[0]}"
        assert time.monotonic() < ends, f"{probe} did not come to {status}"
        time.sleep(0.1)


def test_should_be_ready_pass_helm_test_and_end_in_peace(
    shape: tuple[list[Object], Secrets], service: subprocess.Popen[str], tmp_path: Path
) -> None:
    objects, secrets = shape
    running = started(objects, tmp_path / "gateway", secrets)
    try:
        until(objects, "readinessProbe", 200, running)
        assert asked(objects, "livenessProbe") == 200
        name = "try-penstock-gateway-test"
        test = helm_test(objects, tmp_path / "test", secrets, name).start({})
        said, _ = test.communicate(timeout=90)
        assert test.returncode == 0, said
        assert "model: scripted" in said
        assert "thought tokens of at most 8" in said
        if secrets:
            stranger = secrets | {"key": {"key": make("a-stranger")[0].encode()}}
            refused = helm_test(objects, tmp_path / "stranger", stranger, name).start({})
            said, _ = refused.communicate(timeout=90)
            assert refused.returncode == 1
            assert "401" in said
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=60)
        assert running.returncode == 0, said
    finally:
        end(running)


def test_without_the_service_it_should_be_alive_and_not_ready(
    shape: tuple[list[Object], Secrets], tmp_path: Path
) -> None:
    objects, secrets = shape
    nowhere = json.loads(json.dumps(objects))
    port = free_port()
    box(nowhere)["args"][1] = f"--target=127.0.0.1:{port}"
    running = started(nowhere, tmp_path, secrets)
    try:
        until(nowhere, "livenessProbe", 200, running)
        assert asked(nowhere, "readinessProbe") == 503
        test = helm_test(nowhere, tmp_path / "test", secrets, "try-penstock-gateway-test").start({})
        said, _ = test.communicate(timeout=90)
        assert test.returncode == 1, said
        assert "503" in said
    finally:
        end(running)
