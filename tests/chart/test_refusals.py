"""Wrong values should be refused before anything is installed, in a message that names the value."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.chart import KUBERNETES, Refused, needs_helm, render

pytestmark = needs_helm
NO_METRICS = {"config": {"telemetry": {"prometheus_listen": ""}}}
GPU = {"preset": "qwen3.5-35b-a3b-fp8"}
NODES = {"preset": "qwen3.5-397b-a17b-fp8-two-nodes"}
TLS = {"tls": {"existingSecret": "pair"}}
CERTIFIED = {"enabled": True, "issuerRef": {"name": "internal"}}


def server(**keys: Any) -> dict[str, Any]:
    return {"config": {"server": keys}}


def engine(**keys: Any) -> dict[str, Any]:
    return {"config": {"engine": keys}}


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("config.telemetry.prometheus_listen", {"config": {"telemetry": {"prometheus_listen": "[::]:99999"}}}),
    ("config.server.health_listen", server(health_listen="[::]:70000")),
    ("port 99999 in an address", {"config": {"telemetry": {"otlp": "grpc", "otlp_endpoint": "http://c:99999"}}}),
    ("port 0 in an address", {"config": {"telemetry": {"otlp": "grpc", "otlp_endpoint": "http://c:0"}}}),
    ("port 65536 in an address", {"extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:65536"}]}),
    ("terminationGracePeriodSeconds", {"terminationGracePeriodSeconds": 600}),
    ("terminationGracePeriodSeconds", {"terminationGracePeriodSeconds": 625}),
    ("terminationGracePeriodSeconds", {"terminationGracePeriodSeconds": 600, **server(drain_seconds=None)}),
    ("progressDeadlineSeconds", {"progressDeadlineSeconds": 600}),
    ("updateStrategy", {"updateStrategy": {"maxSurge": 0, "maxUnavailable": 0}}),
    ("updateStrategy", {"updateStrategy": {"maxSurge": "0%", "maxUnavailable": 0}}),
    ("podDisruptionBudget.minAvailable", {"podDisruptionBudget": {"minAvailable": 1}}),
    ("podDisruptionBudget.maxUnavailable", {"podDisruptionBudget": {"maxUnavailable": 0}}),
    ("config.engine.device", {"preset": ""}),
    ("config.engine.device", engine(device="auto")),
    ("config.engine.kind", engine(kind="scripted")),
    ("gpu.perNode", {"gpu": {"perNode": 1}}),
    ("gpu.perNode", {"preset": "qwen3.5-397b-a17b-fp8", "gpu": {"perNode": 4}}),
    ("gpu.perNode", GPU | {"gpu": {"perNode": 0}}),
    ("gpu.perNode", GPU | engine(tensor_parallel_size=2)),
    ("gpu.perNode", GPU | engine(tensor_parallel_size=1, data_parallel_size=1) | {"gpu": {"perNode": 4}}),
    ("gpu.perNode", GPU | engine(tensor_parallel_size=3) | {"gpu": {"perNode": 8}}),
    ("extra_args.pipeline_parallel_size", GPU | engine(extra_args={"pipeline_parallel_size": 2})),
    ("config.engine.extra_args.nnodes", GPU | engine(extra_args={"nnodes": 2})),
    ("config.engine.node_rank", NODES | engine(node_rank=1)),
    ("config.engine.leader_address", NODES | engine(leader_address="a")),
    ("gpu.perNode", NODES | {"gpu": {"perNode": 4}}),
    ("gpu.perNode", NODES | engine(nodes=3)),
    ("podDisruptionBudget.minAvailable", NODES | {"replicaCount": 3, "podDisruptionBudget": {"minAvailable": 2}}),
    ("persistence.accessMode", NODES | {"persistence": {"enabled": True}}),
    ("leaderWorkerSet.exclusiveTopology", {"leaderWorkerSet": {"exclusiveTopology": "rack"}}),
    ("rdma.enabled", {"rdma": {"enabled": True}}),
    ("networkPolicy.dns", NODES | {"networkPolicy": {"dns": False}}),
    ("rdma.networks", NODES | {"rdma": {"networks": "ib"}}),
    ("spotNoticeSeconds", {"spotNoticeSeconds": 120}),
    ("tls.existingSecret, tls.certManager.enabled", TLS | {"tls": {"existingSecret": "a", "certManager": CERTIFIED}}),
    ("tls.certManager.issuerRef.name", {"tls": {"certManager": {"enabled": True}}}),
    ("config.tls", TLS | {"config": {"tls": {"certificate_file": "/a", "key_file": "/b"}}}),
    ("tls.mutual", {"tls": {"mutual": True}}),
    ("tls.clientCaSecret", {"tls": {"existingSecret": "a", "clientCaSecret": "b"}}),
    ("tests.clientSecret", {"tls": {"existingSecret": "a", "mutual": True}}),
    ("tests.apiKey.existingSecret", {"apiKeys": {"existingSecret": "a"}}),
    ("config.auth.keys_file", {"apiKeys": {"existingSecret": "a"}, "config": {"auth": {"keys_file": "/k"}}}),
    (
        "config.auth.callers_file",
        {"callers": {"existingConfigMap": "a"}, "config": {"auth": {"callers_file": "/k.toml"}}},
    ),
    ("config.auth.certificates", {"config": {"auth": {"certificates": True}}}),
    ("config.server.health_listen", TLS | server(health_listen="0.0.0.0:50051")),
    ("config.server.health_listen", TLS | server(health_listen="0.0.0.0:9464")),
    ("callers.existingConfigMap", {"callers": {"existingConfigMap": "a"}}),
    ("config.quotas", {"config": {"quotas": {"requests_per_minute": 60}}}),
    ("config.quotas.daily_file", {"replicaCount": 2, "config": {"quotas": {"daily_file": "/cache/a"}}}),
    ("config.quotas.daily_file", {"config": {"quotas": {"daily_file": "/var/lib/a"}}}),
    ("config.audit.file", {"config": {"audit": {"file": "/var/log/audit.jsonl"}}}),
    ("redisPassword.existingSecret", {"redisPassword": {"existingSecret": "a"}}),
    ("inferencePool.endpointPicker.name", {"inferencePool": {"enabled": True}}),
    ("inferencePool.enabled", TLS | {"inferencePool": {"enabled": True, "endpointPicker": {"name": "a"}}}),
    ("autoscaling.targetFirstTokenSeconds", {"autoscaling": {"enabled": True, "targetFirstTokenSeconds": 2}}),
    ("model.download.enabled", {"model": {"download": {"enabled": True}}}),
    ("model.download.enabled", GPU | {"model": {"offline": True, "download": {"enabled": True}}}),
    ("model.download.by", GPU | {"model": {"download": {"enabled": True, "by": "job"}}}),
    ("model.bucket", GPU | {"model": {"bucket": {"existingSecret": "s3"}}}),
    ("gpu.resourceClaimTemplate", {"gpu": {"resourceClaimTemplate": "h100"}}),
    ("config.engine.kv_cache_gib", engine(kv_cache_gib=8)),
    ("resources.limits", GPU | {"resources": {"limits": {"nvidia.com/gpu": 1}}}),
    ("model.existingClaim, model.image", GPU | {"model": {"existingClaim": "a", "image": "b"}}),
    ("config.engine.model", GPU | {"model": {"existingClaim": "weights"}}),
    ("config.engine.model", {"preset": "one-gpu"}),
    ("model.subPath", {"model": {"subPath": "a"}}),
    ("model.offline", GPU | {"model": {"offline": True}}),
    ("persistence.accessMode", {"replicaCount": 2, "persistence": {"enabled": True}}),
    ("updateStrategy.maxSurge", {"updateStrategy": {"maxSurge": 1}, "persistence": {"enabled": True}}),
    ("persistence.existingClaim", {"persistence": {"existingClaim": "cache"}}),
    ("config.server.listen", server(listen="127.0.0.1:50051")),
    ("config.server.listen", server(listen=None)),
    ("config.server.listen", server(listen="0.0.0.0:0")),
    ("config.server.listen", server(listen="0.0.0.0:443")),
    ("config.server.insecure", server(insecure=False)),
    ("config.resume.key_file", {"resumeKey": {"existingSecret": "s"}, "config": {"resume": {"key_file": "/k"}}}),
    ("fullnameOverride", {"fullnameOverride": "vllm"}),
    ("extraEnv: PENSTOCK_ENGINE_MODEL", {"extraEnv": [{"name": "PENSTOCK_ENGINE_MODEL", "value": "x"}]}),
    ("extraEnv: HF_HOME", {"extraEnv": [{"name": "HF_HOME", "value": "/x"}]}),
    ("extraEnv: WANDB_API_KEY", {"extraEnv": [{"name": "WANDB_API_KEY", "value": "x"}]}),
    ("extraArgs: --set", {"extraArgs": ["--set", "a.b=c"]}),
    ("grpcRoute.parentRefs", {"grpcRoute": {"enabled": True}}),
    ("preset", {"preset": "no-such"}),
    ("autoscaling.maxReplicas", {"autoscaling": {"enabled": True, "minReplicas": 5}}),
    ("autoscaling.prometheusAddress", {"autoscaling": {"enabled": True, "by": "keda"}}),
    ("config.telemetry.prometheus_listen", {"autoscaling": {"enabled": True}} | NO_METRICS),
    ("config.telemetry.prometheus_listen", {"serviceMonitor": {"enabled": True}} | NO_METRICS),
    ("config.telemetry.prometheus_listen", {"config": {"telemetry": {"prometheus_listen": "0.0.0.0:50051"}}}),
    ("serviceMonitor.enabled", {"serviceMonitor": {"enabled": True}, "service": {"headless": {"enabled": False}}}),
    ("persistence.accessMode", {"autoscaling": {"enabled": True}, "persistence": {"enabled": True}}),
    (
        "podDisruptionBudget.minAvailable",
        {"autoscaling": {"enabled": True}, "podDisruptionBudget": {"minAvailable": 1}},
    ),
    ("podDisruptionBudget.minAvailable", {"replicaCount": 3, "podDisruptionBudget": {"minAvailable": "100%"}}),
    ("model.sizeGiB", {"preset": "one-gpu", **engine(model="some/model")}),
    ("autoscaling.by", {"autoscaling": {"enabled": True, "by": "keda", "prometheusAddress": "http://p:9090"}}),
    ("autoscaling.minReplicas", {"autoscaling": {"enabled": True, "minReplicas": 0}}),
    ("autoscaling.triggers", {"autoscaling": {"enabled": True, "triggers": [{"type": "cron"}]}}),
    ("shmSize", GPU | {"shmSize": "96Gi"}),
    ("resources.limits.memory", {"resources": {"limits": {"memory": "8000m"}}}),
    ("resources.requests.memory", {"resources": {"requests": {"memory": "16Gi"}}}),
    ("podLabels: app.kubernetes.io/name", {"podLabels": {"app.kubernetes.io/name": "mine"}}),
    ("commonLabels: app.kubernetes.io/instance", {"commonLabels": {"app.kubernetes.io/instance": "mine"}}),
    ("service.nodePort", {"service": {"nodePort": 30051}}),
    ("service.loadBalancerClass", {"service": {"loadBalancerClass": "a"}}),
    ("service.externalTrafficPolicy", {"service": {"externalTrafficPolicy": "Local"}}),
    (
        "config.telemetry.prometheus_listen",
        {"serviceMonitor": {"enabled": True}, "config": {"telemetry": {"prometheus_listen": "127.0.0.1:9464"}}},
    ),
    ("config.server.health_listen", server(health_listen="127.0.0.1:50052")),
    ("config.server.health_listen", server(health_listen="[::]:50051")),
    ("grpcRoute.backendTls", TLS | {"grpcRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}),
]


def gateway(**keys: Any) -> dict[str, Any]:
    return {"gateway": {"enabled": True, **keys}}


MUTUAL: dict[str, Any] = {"tls": {"existingSecret": "a", "mutual": True}, "tests": {"clientSecret": "b"}}
KEYS: dict[str, Any] = {
    "apiKeys": {"existingSecret": "k"},
    "tests": {"apiKey": {"existingSecret": "t"}, "clientSecret": "b"},
}
WRITTEN: dict[str, Any] = {
    "config": {"server": {"insecure": False}, "tls": {"certificate_file": "/a", "key_file": "/b"}},
    "extraVolumes": [{"name": "tls", "secret": {"secretName": "a"}}],
}
CONTRADICTIONS += [
    ("gateway.httpRoute.enabled", {"gateway": {"httpRoute": {"enabled": True}}}),
    ("gateway.ingress.enabled", {"gateway": {"ingress": {"enabled": True}}}),
    ("gateway.autoscaling.enabled", {"gateway": {"autoscaling": {"enabled": True}}}),
    ("gateway.httpRoute.parentRefs", gateway(httpRoute={"enabled": True})),
    ("gateway.ingress.hosts", gateway(ingress={"enabled": True})),
    ("gateway.ingress.tls", gateway(ingress={"enabled": True, "hosts": ["a.b"], "tls": [{"hosts": ["c.d"]}]})),
    ("gateway.exposePlayground", gateway(exposePlayground=True)),
    ("gateway.tls.caSecret", gateway(tls={"caSecret": "a"})),
    ("gateway.tls.systemCertificates", gateway(tls={"systemCertificates": True})),
    ("gateway.tls.serverName", gateway(tls={"serverName": "a"})),
    ("gateway.tls.clientSecret", gateway(tls={"clientSecret": "a"})),
    ("gateway.tls.caSecret, gateway.tls.sys", TLS | gateway(tls={"caSecret": "a", "systemCertificates": True})),
    ("gateway.tls.clientSecret", TLS | gateway(tls={"clientSecret": "a"})),
    ("gateway.tls.clientSecret", MUTUAL | gateway()),
    (
        "config.auth.certificates",
        MUTUAL | KEYS | {"config": {"auth": {"certificates": True}}} | gateway(tls={"clientSecret": "a"}),
    ),
    ("gateway.tls: with config.tls", WRITTEN | gateway()),
    ("gateway.autoscaling.maxReplicas", gateway(autoscaling={"enabled": True, "minReplicas": 9})),
    ("gateway.resources.requests.cpu", gateway(autoscaling={"enabled": True}, resources={"requests": {"cpu": 0}})),
    ("gateway.resources.limits.memory", gateway(resources={"limits": {"memory": "700Mi"}})),
    ("gateway.resources.limits.memory", gateway(limits={"max_request_memory_bytes": 1073741824})),
    ("gateway.resources.limits.memory", gateway(resources={"limits": {"memory": "2000000000m"}})),
    ("gateway.resources.requests.memory", gateway(resources={"requests": {"memory": "2Gi"}})),
    ("gateway.limits.max_body_bytes", gateway(limits={"max_body_bytes": 536870913})),
    ("gateway.podDisruptionBudget.minAvailable", gateway(podDisruptionBudget={"minAvailable": 2})),
    ("gateway.podDisruptionBudget.minAvailable", gateway(podDisruptionBudget={"minAvailable": "100%"})),
    ("gateway.podDisruptionBudget.maxUnavailable", gateway(podDisruptionBudget={"maxUnavailable": 0})),
    ("gateway.service.nodePort", gateway(service={"nodePort": 30080})),
    ("gateway.service.loadBalancerClass", gateway(service={"loadBalancerClass": "a"})),
    ("gateway.podLabels: app.kubernetes.io/component", gateway(podLabels={"app.kubernetes.io/component": "service"})),
    ("gateway.extraEnv: PENSTOCK_API_KEY", gateway(extraEnv=[{"name": "PENSTOCK_API_KEY", "value": "a"}])),
    ("gateway.extraEnv: PENSTOCK_TARGET", gateway(extraEnv=[{"name": "PENSTOCK_TARGET", "value": "a"}])),
    ("gateway.extraEnv: OTLP_TOKEN", gateway(extraEnv=[{"name": "OTLP_TOKEN", "value": "a"}])),
    ("networkPolicy.dns", gateway() | {"networkPolicy": {"dns": False}}),
]
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("max_request", {"gateway": {"limits": {"max_request": 1}}}),
    ("drain_seconds", {"gateway": {"limits": {"drain_seconds": 1}}}),
    ("max_requests", {"gateway": {"limits": {"max_requests": 0}}}),
    ("port", {"gateway": {"port": 80}}),
    ("timeout", {"gateway": {"httpRoute": {"timeout": "1.5s"}}}),
    ("drainSeconds", {"gateway": {"drainSeconds": 0}}),
    ("hosts", {"gateway": {"ingress": {"hosts": ["https://a.b"]}}}),
    ("apiKey", {"gateway": {"apiKey": "penstock_secret"}}),
    ("targetCpuPercent", {"gateway": {"autoscaling": {"targetCpuPercent": 0.7}}}),
    ("replicas", {"replicas": 2}),
    ("replicaCount", {"replicaCount": "two"}),
    ("contextWindow", {"config": {"engine": {"contextWindow": 1}}}),
    ("mtp", engine(mtp="maybe")),
    ("max_concurrent_requests", engine(max_concurrent_requests=0)),
    ("gpu_memory_utilization", engine(gpu_memory_utilization=1.5)),
    ("metrics", {"config": {"metrics": {}}}),
    ("hfToken", {"model": {"hfToken": "hf_secret"}}),
    ("failureThreshold", {"probes": {"liveness": {"failureThreshold": 1}}}),
    ("shmSize", {"shmSize": "lots"}),
    ("digest", {"image": {"digest": "latest"}}),
    ("accessMode", {"persistence": {"accessMode": "Everywhere"}}),
    ("preStopSeconds", {"preStopSeconds": -1}),
    ("minReplicas", {"autoscaling": {"minReplicas": -1}}),
    ("limits", {"resources": {"limits": {"memory": "8GB"}}}),
    ("requests", {"resources": {"requests": {"cpu": "two"}}}),
    ("ipFamilyPolicy", {"service": {"ipFamilyPolicy": "Both"}}),
    ("by", {"autoscaling": {"by": "both"}}),
    ("nodes", engine(nodes=0)),
    ("by", {"model": {"download": {"by": "magic"}}}),
    ("failureMode", {"inferencePool": {"endpointPicker": {"failureMode": "Maybe"}}}),
    ("targetKvCacheUsage", {"autoscaling": {"targetKvCacheUsage": 80}}),
]


def names(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [f"{number}-{name}" for number, (name, _) in enumerate(cases)]


@pytest.mark.parametrize(("name", "values"), CONTRADICTIONS, ids=names(CONTRADICTIONS))
def test_should_refuse_values_that_contradict_each_other(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        render(values)
    assert f"{name}" in str(refused.value)
    assert "execution error" in str(refused.value), "the chart's own words, not a template's accident"


@pytest.mark.parametrize(("name", "values"), FORMS, ids=names(FORMS))
def test_should_refuse_what_the_schema_does_not_know(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="values don't meet the specifications") as refused:
        render(values)
    assert name in str(refused.value)


def test_should_name_all_mistakes_at_once() -> None:
    with pytest.raises(Refused) as refused:
        render({"updateStrategy": {"maxSurge": 0, "maxUnavailable": 0}, "fullnameOverride": "vllm"})
    assert "updateStrategy" in str(refused.value)
    assert "fullnameOverride" in str(refused.value)


def test_should_refuse_image_volumes_where_kubernetes_has_none() -> None:
    values = {"preset": "one-gpu", "model": {"image": "registry.example/weights:1"}}
    with pytest.raises(Refused, match=r"model\.image"):
        render(values, "1.30.0")
    assert render(values, KUBERNETES[0])


def test_should_refuse_a_kubernetes_without_a_pre_stop_sleep() -> None:
    with pytest.raises(Refused, match="kubeVersion"):
        render({}, "1.29.0")
