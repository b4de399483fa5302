"""Test what several nodes, certificates, downloads and gateways should mean, and never should."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from penstock.cli import app
from penstock.engine import download as fetch
from penstock.engine.download import Fetched
from typer.testing import CliRunner

from tests.chart.chart import (
    VALUES,
    Object,
    configuration,
    container,
    needs_helm,
    of_kind,
    pod,
    pods,
    render,
    templates,
    workload,
)

pytestmark = needs_helm
NODES = [path for path in VALUES if path.stem.startswith("nodes-")]
every_values_file = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
every_group = pytest.mark.parametrize("values", NODES, ids=lambda path: path.stem)
DOWNLOADED: dict[str, Any] = {"preset": "qwen3.5-35b-a3b-fp8", "model": {"download": {"enabled": True}}}


@every_values_file
def test_should_never_render_a_secret(values: Path) -> None:
    objects = render(values)
    assert not of_kind(objects, "Secret")
    for found in of_kind(objects, "ConfigMap"):
        assert not re.search(r"hf_[A-Za-z0-9]{8}|-----BEGIN|penstock_[0-9a-f]{8,32}_", str(found["data"]))
    for spec in pods(objects):
        for box in spec["containers"] + spec.get("initContainers", []):
            for entry in box.get("env", []):
                if re.search(r"(TOKEN|SECRET|PASSWORD|KEY)$", entry["name"]):
                    assert "secretKeyRef" in entry["valueFrom"]


@every_group
def test_workers_should_answer_nobody_and_be_probed_by_nobody(values: Path) -> None:
    objects = render(values)
    worker, leader = container(objects, "worker"), container(objects)
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} & worker.keys()
    # In all else they are the same pod: the same plan must come of it on each node.
    same = {"name", "image", "command", "args", "env", "resources", "volumeMounts", "securityContext"}
    assert {key: worker[key] for key in same} == {key: leader[key] for key in same}
    assert pod(objects, "worker")["terminationGracePeriodSeconds"] >= pod(objects)["terminationGracePeriodSeconds"]


@every_group
def test_a_group_should_be_whole_or_made_anew(values: Path) -> None:
    objects = render(values)
    template = workload(objects)["spec"]["leaderWorkerTemplate"]
    assert template["size"] == tomllib.loads(configuration(objects))["engine"]["nodes"]
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    # The leader is ready once an engine over all nodes has answered: workers must not wait for that.
    assert workload(objects)["spec"]["startupPolicy"] == "LeaderCreated"


@pytest.mark.parametrize("name", ["", "a-name-that-is-as-long-as-names-of-releases-can-be"])
def test_a_group_should_never_take_a_services_name_or_a_name_too_long(name: str) -> None:
    objects = render({"preset": "qwen3.5-397b-a17b-fp8-two-nodes", "fullnameOverride": name})
    group = workload(objects)["metadata"]["name"]
    # Its controller makes a Service of its own name, and StatefulSets `NAME-0` whose revisions become labels.
    assert group not in {service["metadata"]["name"] for service in of_kind(objects, "Service")}
    assert len(f"{group}-00-0123456789") <= 63


@every_group
def test_an_eviction_should_never_touch_two_groups(values: Path) -> None:
    objects = render(values)
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    (rule,) = budget["spec"]["selector"]["matchExpressions"]
    components = {t["metadata"]["labels"]["app.kubernetes.io/component"] for t in templates(objects).values()}
    assert set(rule["values"]) == components == {"service", "worker"}
    assert budget["spec"]["maxUnavailable"] == 1


@every_group
def test_nodes_of_a_group_should_reach_each_other_on_every_port(values: Path) -> None:
    policies = {policy["metadata"]["name"]: policy for policy in of_kind(render(values), "NetworkPolicy")}
    group = next(policy for name, policy in policies.items() if name.endswith("-nodes"))
    assert group["spec"]["ingress"] == [{"from": [{"podSelector": group["spec"]["podSelector"]}]}]
    assert {"to": [{"podSelector": group["spec"]["podSelector"]}]} in group["spec"]["egress"]


@pytest.mark.parametrize("by", ["hpa", "keda"])
@pytest.mark.parametrize("preset", ["qwen3.5-35b-a3b-fp8", "qwen3.5-397b-a17b-fp8-two-nodes"])
def test_an_autoscaler_should_scale_what_is_there(by: str, preset: str) -> None:
    scaling = {"enabled": True, "by": by, "prometheusAddress": "http://prometheus:9090", "targetKvCacheUsage": 0.8}
    objects = render({"preset": preset, "autoscaling": scaling, "podMonitor": {"enabled": True}})
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler") + of_kind(objects, "ScaledObject")
    there = workload(objects)
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": there["apiVersion"],
        "kind": there["kind"],
        "name": there["metadata"]["name"],
    }
    assert "penstock_engine_kv_cache_usage_ratio" in str(scaler["spec"])
    assert "replicas" not in there["spec"]


def test_a_download_should_pass_what_the_command_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def fetched(hub: object, model: str, revision: str, *, verified_stamps: Path | None, **_: object) -> Fetched:
        asked.append((model, revision, verified_stamps is not None))
        return Fetched("c0ffee", 1, 1, 1)

    monkeypatch.setattr(fetch, "fetch", fetched)
    pinned = DOWNLOADED | {"config": {"engine": {"revision": "abc"}}}
    (box,) = pod(render(pinned))["initContainers"]
    done = CliRunner().invoke(app, [*box["command"][1:], *box["args"]])
    assert done.exit_code == 0, done.output
    assert asked == [("Qwen/Qwen3.5-35B-A3B-FP8", "abc", True)]


def test_a_download_should_fill_the_cache_that_the_service_reads() -> None:
    for by in ({}, {"by": "job"}):
        values = DOWNLOADED | {
            "model": {"download": {"enabled": True, **by}, "token": {"existingSecret": "hf"}},
            "persistence": {"enabled": True, "existingClaim": "models"},
        }
        objects = render(values)
        spec = of_kind(objects, "Job")[0]["spec"]["template"]["spec"] if by else pod(objects)
        (box,) = spec["containers"] if by else spec["initContainers"]
        env = {entry["name"]: entry for entry in box["env"]}
        assert env["HF_HOME"] == next(e for e in container(objects)["env"] if e["name"] == "HF_HOME")
        assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "hf"
        (cache,) = [v for v in spec["volumes"] if v["name"] == "cache"]
        assert cache["persistentVolumeClaim"]["claimName"] == "models"
        assert "nvidia.com/gpu" not in str(box["resources"])


def test_a_job_should_come_before_the_pods_that_need_what_it_fetches() -> None:
    claim = {"persistence": {"enabled": True, "existingClaim": "models"}}
    objects = render(DOWNLOADED | {"model": {"download": {"enabled": True, "by": "job"}}} | claim)
    (job,) = of_kind(objects, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # What a hook of that kind runs before is not there yet.
    mine = {f"{o['kind']}/{o['metadata']['name']}" for o in objects if "annotations" not in o["metadata"]}
    used = {
        v["persistentVolumeClaim"]["claimName"] for v in job["spec"]["template"]["spec"]["volumes"] if "pers" in str(v)
    }
    assert not {f"PersistentVolumeClaim/{name}" for name in used} & mine
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    assert not any("configMap" in volume for volume in job["spec"]["template"]["spec"]["volumes"])


def test_a_certificate_should_name_every_service_that_clients_use() -> None:
    certified = {"enabled": True, "issuerRef": {"name": "internal"}}
    objects = render({"tls": {"certManager": certified}})
    (certificate,) = of_kind(objects, "Certificate")
    for service in of_kind(objects, "Service"):
        assert f"{service['metadata']['name']}.llm.svc" in certificate["spec"]["dnsNames"]
    (volume,) = [v["secret"] for v in pod(objects)["volumes"] if v["name"] == "tls"]
    assert volume["secretName"] == certificate["spec"]["secretName"]


def test_certificates_and_keys_should_be_followed_where_they_change() -> None:
    """A file mounted alone (subPath) never changes in a running pod."""
    values: Object = {
        "tls": {"existingSecret": "pair", "mutual": True, "clientCaSecret": "ca"},
        "apiKeys": {"existingSecret": "keys"},
        "callers": {"existingConfigMap": "callers"},
        "tests": {"clientSecret": "client", "apiKey": {"existingSecret": "key"}},
    }
    objects = render(values)
    said = tomllib.loads(configuration(objects))
    files = [*said["tls"].values(), said["auth"]["keys_file"], said["auth"]["callers_file"]]
    mounts = {m["mountPath"]: m for m in container(objects)["volumeMounts"]}
    for file in files:
        mount = mounts[str(Path(file).parent)]
        assert mount["readOnly"] is True
        assert "subPath" not in mount
    assert said["server"]["insecure"] is False


def test_a_route_should_lead_to_the_pool_where_there_is_one() -> None:
    route = {"enabled": True, "parentRefs": [{"name": "public"}]}
    pool = {"enabled": True, "endpointPicker": {"name": "picker"}}
    objects = render({"grpcRoute": route, "inferencePool": pool})
    (backend,) = of_kind(objects, "GRPCRoute")[0]["spec"]["rules"][0]["backendRefs"]
    (found,) = of_kind(objects, "InferencePool")
    assert (backend["group"], backend["kind"]) == (found["apiVersion"].split("/")[0], found["kind"])
    assert backend["name"] == found["metadata"]["name"]
    assert found["spec"]["targetPorts"] == [{"number": 50051}]


def test_a_spot_pod_should_be_gone_within_the_notice() -> None:
    values = {"spotNoticeSeconds": 120, "preStopSeconds": 5, "config": {"server": {"drain_seconds": 100}}}
    objects = render(values)
    sleep = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep + tomllib.loads(configuration(objects))["server"]["drain_seconds"] + 10 <= 120


def test_rdma_should_bring_cards_and_the_right_to_pin_memory_and_nothing_else() -> None:
    values: Object = {"preset": "qwen3.5-397b-a17b-fp8-two-nodes"}
    with_cards = render(values | {"rdma": {"enabled": True, "networks": "ib"}})
    for role, template in templates(with_cards).items():
        box = container(with_cards, role)
        assert box["resources"]["limits"]["rdma/hca"] == box["resources"]["requests"]["rdma/hca"] == "1"
        assert box["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
        assert template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "ib"
    assert "IPC_LOCK" not in str(render(values))


def test_a_group_should_tell_telemetry_what_it_belongs_to() -> None:
    """The leaders of a LeaderWorkerSet are pods of a StatefulSet of its name."""
    objects = render({"preset": "qwen3.5-397b-a17b-fp8-two-nodes"})
    said = next(e["value"] for e in container(objects)["env"] if e["name"] == "OTEL_RESOURCE_ATTRIBUTES")
    assert f"k8s.statefulset.name={workload(objects)['metadata']['name']}," in said
    assert "k8s.deployment.name" not in said


def test_should_be_put_to_sleep_by_hand() -> None:
    assert workload(render({"replicaCount": 0}))["spec"]["replicas"] == 0
