"""Test what a pod of this chart should never do, whatever the values."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from penstock.config.schema import Config
from penstock.server.server import _LAST_EVENT_SECONDS, LIVENESS

from tests.chart.chart import (
    DEPLOYED,
    VALUES,
    arguments,
    configuration,
    container,
    deployment,
    is_gateways,
    needs_helm,
    of_kind,
    of_service,
    pod,
    pods,
    render,
    templates,
    workload,
)

pytestmark = needs_helm
every_values_file = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
every_deployment = pytest.mark.parametrize("values", DEPLOYED, ids=lambda path: path.stem)


def config(objects: list[dict[str, Any]]) -> Config:
    """As the first pod reads it: file, and what its command line adds."""
    said = tomllib.loads(configuration(objects))
    for argument in arguments(container(objects)):
        if argument.startswith("--set=engine."):
            key, _, value = argument.removeprefix("--set=engine.").partition("=")
            said["engine"][key] = value
    return Config.model_validate(said)


@every_values_file
def test_should_never_be_killed_while_it_drains(values: Path) -> None:
    objects = render(values)
    sleep = container(objects).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = config(objects).server.drain_seconds
    assert pod(objects)["terminationGracePeriodSeconds"] > sleep + drain + _LAST_EVENT_SECONDS


@every_values_file
def test_should_never_probe_what_the_service_does_not_serve(values: Path) -> None:
    objects = render(values)
    ports = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    server = config(objects).server
    assert server.listen.endswith(f":{ports['grpc']}")
    # A port of its own, with TLS or without, that IPv4 and IPv6 reach.
    assert server.health_listen.endswith(f":{ports['health']}")
    asked = ports["health"]
    for name, service in (("startupProbe", ""), ("readinessProbe", ""), ("livenessProbe", LIVENESS)):
        grpc = container(objects)[name]["grpc"]
        assert (grpc["port"], grpc.get("service", "")) == (asked, service)


@every_values_file
def test_should_never_kill_a_slow_load_or_after_one_missed_probe(values: Path) -> None:
    box = container(render(values))
    assert box["startupProbe"]["periodSeconds"] * box["startupProbe"]["failureThreshold"] >= 600
    assert box["livenessProbe"]["failureThreshold"] >= 3
    assert "initialDelaySeconds" not in box["livenessProbe"] | box["readinessProbe"]


def test_should_give_large_weights_an_hour() -> None:
    box = container(render({"preset": "qwen3.5-397b-a17b-fp8"}))
    assert box["startupProbe"]["periodSeconds"] * box["startupProbe"]["failureThreshold"] >= 3600


@every_deployment
def test_should_never_count_a_load_as_a_failed_update(values: Path) -> None:
    objects = render(values)
    startup = container(objects)["startupProbe"]
    assert deployment(objects)["spec"]["progressDeadlineSeconds"] > startup["periodSeconds"] * (
        startup["failureThreshold"] - 1
    )


TOLD_UPDATES: dict[str, dict[str, Any]] = {
    "surge": {"maxSurge": 1, "maxUnavailable": 0},
    "percent-update": {"maxSurge": "10%", "maxUnavailable": "20%"},
    "nodes-planned-by-the-service": {"maxSurge": 1, "maxUnavailable": 0},
}
"""What `updateStrategy` of these values files makes of an update; all others are silent about it."""


@every_values_file
def test_should_never_need_a_spare_node_unless_told(values: Path) -> None:
    spec = workload(render(values))["spec"]
    wanted = TOLD_UPDATES.get(values.stem, {"maxSurge": 0, "maxUnavailable": 1})
    if "rolloutStrategy" in spec:
        assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == wanted
    elif values.stem in TOLD_UPDATES or spec["strategy"]["type"] != "Recreate":
        assert spec["strategy"]["rollingUpdate"] == wanted


def test_should_never_take_the_last_ready_replica() -> None:
    several = deployment(render({"replicaCount": 2}))["spec"]["strategy"]
    assert several["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    spare = deployment(render({"updateStrategy": {"maxSurge": 1}}))["spec"]["strategy"]
    assert spare["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@every_values_file
def test_should_ask_for_exactly_the_gpus_that_the_engine_shares_out(values: Path) -> None:
    objects = render(values)
    engine = config(objects).engine.model_dump()
    sizes = [f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "data")]
    shared = math.prod(engine.get(size) or engine["extra_args"].get(size, 1) for size in sizes)
    resources = container(objects)["resources"]
    gpus = [int(n) * engine["nodes"] for name, n in resources.get("limits", {}).items() if name.endswith("/gpu")]
    for role in templates(objects):
        assert container(objects, role)["resources"] == resources
    if engine["device"] == "cpu":
        assert gpus == []
    elif "claims" in resources:
        assert [c["name"] for c in pod(objects)["resourceClaims"]] == [c["name"] for c in resources["claims"]]
    else:
        (count,) = gpus
        assert count % shared == 0
        assert count == shared or not (engine.get("tensor_parallel_size") and engine.get("data_parallel_size"))


@every_values_file
def test_should_never_leave_the_restricted_pod_security_standard(values: Path) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, the rules of `restricted`, GPUs too."""
    volumes = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "image", "projected", "downwardAPI", "csi"}
    for spec in pods(render(values)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {key for key, value in spec.items() if value}
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
        assert all(set(volume) - {"name"} <= volumes for volume in spec.get("volumes", []))
        for box in spec["containers"] + spec.get("initContainers", []):
            context = box["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            # Pinned memory for RDMA is the one thing beyond it, and only where asked for.
            beyond = ["IPC_LOCK"] if values.stem == "nodes-pipeline-rdma" and box["name"] == "penstock" else None
            assert context["capabilities"].get("add") == beyond
            assert not context.get("privileged")
            assert not any(port.get("hostPort") for port in box.get("ports", []))


@every_values_file
def test_should_never_write_outside_its_stated_mounts(values: Path) -> None:
    objects = render(values)
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {m["mountPath"] for m in container(objects)["volumeMounts"] if not m.get("readOnly")}
    assert {"/cache", "/tmp", "/dev/shm"} <= writable
    env = {entry["name"]: entry.get("value", "") for entry in container(objects)["env"]}
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert env[name].startswith("/cache")


@every_values_file
def test_should_give_workers_more_shared_memory_than_64_mib(values: Path) -> None:
    (shm,) = [v for v in pod(render(values))["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    assert shm["emptyDir"]["sizeLimit"].endswith("Gi")


@every_values_file
def test_should_never_hold_a_token_or_hear_of_other_services(values: Path) -> None:
    for spec in pods(render(values)):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False


def test_should_never_put_a_secret_into_a_config_map_or_a_value() -> None:
    objects = render({"model": {"token": {"existingSecret": "hf"}}, "resumeKey": {"existingSecret": "seal"}})
    assert not of_kind(objects, "Secret")
    token = next(entry for entry in container(objects)["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hf", "key": "token"}
    key_file = config(objects).resume.key_file
    (mount,) = [m for m in container(objects)["volumeMounts"] if m["name"] == "resume-key"]
    assert str(key_file) == f"{mount['mountPath']}/key"
    (volume,) = [v["secret"] for v in pod(objects)["volumes"] if v["name"] == "resume-key"]
    assert volume["secretName"] == "seal"


@every_values_file
def test_should_select_its_own_pods_and_never_the_test(values: Path) -> None:
    objects = render(values)
    labels = templates(objects)["service"]["metadata"]["labels"]
    spec = workload(objects)["spec"]
    selectors = [spec["selector"]["matchLabels"]] if "selector" in spec else []
    selectors += [o["spec"]["selector"] for o in of_kind(of_service(objects), "Service")]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in of_kind(objects, "InferencePool")]
    # Workers answer nobody: what brings calls must never find them.
    others = [template["metadata"]["labels"] for role, template in templates(objects).items() if role != "service"]
    others += [o["metadata"]["labels"] for o in of_kind(objects, "Pod")]
    others += [o["spec"]["template"]["metadata"]["labels"] for o in of_kind(objects, "Deployment") if is_gateways(o)]
    others += [o["spec"]["template"]["metadata"]["labels"] for o in of_kind(objects, "Job")]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in others)
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for found in of_kind(of_service(objects), kind):
            assert found["spec"][key]["matchLabels"].items() <= labels.items()


@every_values_file
def test_should_say_on_every_service_what_it_speaks(values: Path) -> None:
    objects = render(values)
    spoken = "https" if config(objects).tls.certificate_file else "kubernetes.io/h2c"
    for service in of_kind(of_service(objects), "Service"):
        (port,) = [port for port in service["spec"]["ports"] if port["name"] == "grpc"]
        assert port["appProtocol"] == spoken


def test_a_headless_service_should_name_every_pod() -> None:
    headless = [s for s in of_kind(render({}), "Service") if s["spec"].get("clusterIP") == "None"]
    assert [s["metadata"]["name"] for s in headless] == ["try-penstock-headless"]


def test_should_restart_pods_for_a_new_configuration_and_for_nothing_else() -> None:
    def checksum(values: dict[str, Any]) -> str:
        return deployment(render(values))["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum({}) != checksum({"config": {"thinking": {"auto_budget_tokens": 7}}})
    assert checksum({}) == checksum({"service": {"annotations": {"a": "b"}}})


DNS = (53, 5353)  # 5353 is OpenShift's


def open_ports(values: dict[str, Any]) -> set[int]:
    (policy,) = of_kind(render(values), "NetworkPolicy")
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


def test_should_open_https_only_where_a_model_comes_from_the_network() -> None:
    assert open_ports({}) == {*DNS}
    assert open_ports({"preset": "qwen3.5-35b-a3b-fp8"}) == {*DNS, 443}
    assert open_ports({"preset": "one-gpu", "model": {"existingClaim": "weights"}}) == {*DNS}


def test_should_close_all_egress_where_no_name_is_looked_up() -> None:
    closed = {"networkPolicy": {"dns": False}}
    weights = {"preset": "one-gpu", "model": {"existingClaim": "weights"}}
    for values in (closed, weights | closed):
        (policy,) = of_kind(render(values), "NetworkPolicy")
        assert policy["spec"]["egress"] == []
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert open_ports({"config": {"telemetry": {"otlp_endpoint": "http://10.0.0.7:4317"}}, **closed}) == {4317}


def variable(name: str, value: str) -> dict[str, Any]:
    return {"extraEnv": [{"name": name, "value": value}]}


JWT = {"audience": "penstock"}


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({"config": {"telemetry": {"otlp_endpoint": "http://collector.otel:4317"}}}, {4317}),
        ({"config": {"telemetry": {"otlp_endpoint": "https://otel.example"}}}, {443}),
        ({"config": {"telemetry": {"otlp_endpoint": "http://otel.example/"}}}, {80, 443}),
        (variable("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel.example:4318/v1"), {4318}),
        (variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4319"), {4319}),
        ({"config": {"jwt": JWT | {"issuer": "https://login.example:8443/realms/a"}}}, {8443}),
        ({"config": {"jwt": JWT | {"issuer": "https://a", "jwks_url": "https://keys.example:9443/k"}}}, {9443}),
        ({"config": {"jwt": JWT | {"issuer": "https://login.example"}}}, {443}),
        (variable("HTTPS_PROXY", "http://user:secret@proxy.example:3128"), {3128}),
        (variable("https_proxy", "http://proxy.example"), {80}),
        (
            {"preset": "one-gpu"}
            | {"config": {"engine": {"model": "s3://b/m"}}}
            | {"model": {"bucket": {"endpoint": "http://minio.minio"}}},
            {80, 443},
        ),
        (
            {
                "apiKeys": {"existingSecret": "k"},
                "tests": {"apiKey": {"existingSecret": "t"}},
                "config": {"quotas": {"redis_url": "redis://:p@redis.db:6380/0", "requests_per_minute": 1}},
            },
            {6380},
        ),
    ],
    ids=str,
)
def test_a_network_policy_should_let_out_what_the_same_values_ask_for(values: dict[str, Any], ports: set[int]) -> None:
    assert open_ports(values) == {*DNS, *ports}


def test_what_the_user_says_should_beat_the_preset_even_false_and_zero() -> None:
    objects = render({"model": {"offline": False}, "config": {"server": {"drain_seconds": 0}}, "preStopSeconds": 0})
    assert "HF_HUB_OFFLINE" not in {entry["name"] for entry in container(objects)["env"]}
    assert config(objects).server.drain_seconds == 0
    assert "lifecycle" not in container(objects)


def test_should_know_the_services_default_drain() -> None:
    assert pod(render({"config": {"server": {"drain_seconds": None}}}))["terminationGracePeriodSeconds"] == (
        15 + Config().server.drain_seconds + _LAST_EVENT_SECONDS + 30
    )


def test_should_never_share_compiled_kernels_between_images_or_kinds_of_gpu() -> None:
    def cache(values: dict[str, Any]) -> str:
        return next(e["value"] for e in container(render(values))["env"] if e["name"] == "VLLM_CACHE_ROOT")

    roots = [cache({}), cache({"image": {"tag": "2"}}), cache({"nodeSelector": {"gpu": "h100"}})]
    assert len(set(roots)) == 3


def test_an_autoscaler_should_never_fight_with_a_count_of_replicas() -> None:
    for by in ("hpa", "keda"):
        scaling = {"enabled": True, "by": by, "prometheusAddress": "http://prometheus:9090"}
        objects = render({"autoscaling": scaling, "serviceMonitor": {"enabled": True}, "replicaCount": 3})
        assert "replicas" not in deployment(objects)["spec"]
        assert len(of_kind(objects, "HorizontalPodAutoscaler") + of_kind(objects, "ScaledObject")) == 1
        # With more than one replica to come, an update never takes all.
        assert deployment(objects)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_monitor_should_find_each_pod_once() -> None:
    objects = render({"serviceMonitor": {"enabled": True}})
    (monitor,) = of_kind(objects, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [s for s in of_kind(objects, "Service") if wanted <= s["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in found] == ["try-penstock-headless"]
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in found[0]["spec"]["ports"]}


def test_should_tell_telemetry_where_it_runs() -> None:
    env = {entry["name"]: entry for entry in container(render({}))["env"]}
    named = dict(pair.split("=") for pair in env["OTEL_RESOURCE_ATTRIBUTES"]["value"].split(","))
    assert {"k8s.namespace.name", "k8s.deployment.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"} <= named.keys()
    used = {value[2:-1] for value in named.values() if value.startswith("$(")}
    names = list(env)
    assert all(names.index(name) < names.index("OTEL_RESOURCE_ATTRIBUTES") for name in used)
