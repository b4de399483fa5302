"""Test what parent charts, gateways and platform teams set should reach the objects that it is meant for."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.chart.chart import (
    CHART,
    ROOT,
    VALUES,
    Object,
    configuration,
    container,
    needs_helm,
    of_kind,
    pod,
    render,
    templates,
    workload,
)

pytestmark = needs_helm
UMBRELLA = next(path for path in VALUES if path.stem == "umbrella")


@pytest.fixture(scope="module")
def umbrella() -> list[Object]:
    return render(UMBRELLA)


def test_every_object_should_have_the_labels_annotations_and_namespace(umbrella: list[Object]) -> None:
    own = [found for found in umbrella if not found["metadata"]["name"].endswith(("-site", "-more"))]
    assert len(own) >= 9
    for found in own:
        assert found["metadata"]["namespace"] == "inference"
        assert found["metadata"]["annotations"]["example.com/owner"] == "ml"
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "penstock"
    annotations = templates(umbrella)["service"]["metadata"]["annotations"]
    assert annotations["example.com/owner"] == "ml"
    assert annotations["checksum/config"] != "not this"


def test_images_and_pull_secrets_should_follow_the_parent(umbrella: list[Object]) -> None:
    assert container_named(umbrella, "penstock")["image"] == "registry.example:5000/mirror/penstock:0.1.0-cpu"
    for spec in (pod(umbrella), of_kind(umbrella, "Pod")[0]["spec"]):
        assert [one["name"] for one in spec["imagePullSecrets"]] == ["mine", "plain", "parent", "parent-two"]
    elsewhere = render({"image": {"repository": "quay.io/team/penstock"}, "global": {"imageRegistry": "mirror.local"}})
    assert container(elsewhere)["image"] == "mirror.local/team/penstock:0.1.0-cpu"


def test_one_registry_should_serve_both_images() -> None:
    image = {"registry": "registry.internal:5000/ai", "repository": "quay.io/team/penstock"}
    objects = render({"image": image, "tests": {"image": {"repository": "penstock-client"}}})
    assert container(objects)["image"] == "registry.internal:5000/ai/team/penstock:0.1.0-cpu"
    (test,) = of_kind(objects, "Pod")
    assert test["spec"]["containers"][0]["image"] == "registry.internal:5000/ai/penstock-client:0.1.0"
    parent = render({"image": image, "global": {"imageRegistry": "mirror.local"}})
    assert container(parent)["image"] == "mirror.local/team/penstock:0.1.0-cpu"


def container_named(objects: list[Object], name: str) -> Object:
    (found,) = [one for one in pod(objects)["containers"] if one["name"] == name]
    return found


def test_the_pod_should_take_containers_environment_and_names(umbrella: list[Object]) -> None:
    spec = pod(umbrella)
    assert [one["name"] for one in spec["containers"]] == ["penstock", "sidecar"]
    assert [one["name"] for one in spec["initContainers"]] == ["prepare"]
    assert container_named(umbrella, "penstock")["envFrom"] == [{"configMapRef": {"name": "site"}}]
    assert spec["dnsConfig"]["nameservers"] == ["10.0.0.10"]
    assert spec["hostAliases"][0]["hostnames"] == ["models.internal"]
    assert spec["shareProcessNamespace"] is True
    assert {"try-site", "try-123-more"} <= {found["metadata"]["name"] for found in of_kind(umbrella, "ConfigMap")}


def test_services_and_monitors_should_take_their_fields(umbrella: list[Object]) -> None:
    plain, headless = of_kind(umbrella, "Service")
    assert plain["spec"]["ports"][0]["nodePort"] == 30051
    assert (plain["spec"]["loadBalancerClass"], plain["spec"]["externalTrafficPolicy"]) == (
        "example.com/internal",
        "Local",
    )
    assert plain["spec"]["ipFamilies"] == headless["spec"]["ipFamilies"] == ["IPv6", "IPv4"]
    (endpoint,) = of_kind(umbrella, "ServiceMonitor")[0]["spec"]["endpoints"]
    assert endpoint["scrapeTimeout"] == "10s"
    assert endpoint["relabelings"][0]["targetLabel"] == "cluster"
    assert endpoint["metricRelabelings"][0]["action"] == "drop"


def test_a_section_set_to_null_should_be_its_default() -> None:
    nulls = next(path for path in VALUES if path.stem == "sections-null")
    assert render(nulls) == render({})


def test_openshift_should_be_able_to_choose_the_user() -> None:
    objects = render({"podSecurityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))})
    assert pod(objects)["securityContext"].keys() == {"runAsNonRoot", "seccompProfile", "fsGroupChangePolicy"}


def test_health_and_metrics_should_listen_on_both_families() -> None:
    said = tomllib.loads(configuration(render({})))
    assert said["server"]["health_listen"] == "[::]:50052"
    assert said["telemetry"]["prometheus_listen"] == "[::]:9464"


def test_helm_test_should_be_let_in_wherever_callers_are() -> None:
    objects = render({"networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"team": "web"}}}]}})
    (policy,) = of_kind(objects, "NetworkPolicy")
    calls = policy["spec"]["ingress"][0]["from"]
    (test,) = of_kind(objects, "Pod")
    (allowed,) = [peer["podSelector"]["matchLabels"] for peer in calls if "podSelector" in peer]
    assert allowed.items() <= test["metadata"]["labels"].items()
    assert not allowed.items() <= templates(objects)["service"]["metadata"]["labels"].items()


def test_a_route_to_tls_should_come_with_a_backend_policy() -> None:
    objects = render(next(path for path in VALUES if path.stem == "route-to-tls"))
    (policy,) = of_kind(objects, "BackendTLSPolicy")
    (service,) = [o for o in of_kind(objects, "Service") if not o["metadata"]["name"].endswith("-headless")]
    (target,) = policy["spec"]["targetRefs"]
    assert target["name"] == service["metadata"]["name"]
    assert target["sectionName"] in {port["name"] for port in service["spec"]["ports"]}
    assert policy["spec"]["validation"]["hostname"] == "try-penstock.llm.svc"
    assert not of_kind(render({"grpcRoute": {"enabled": True, "parentRefs": [{"name": "a"}]}}), "BackendTLSPolicy")


def test_a_download_job_should_land_where_the_pod_will() -> None:
    placed: Object = {
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
    }
    values = {
        "preset": "qwen3.5-35b-a3b-fp8",
        "model": {"download": {"enabled": True, "by": "job"}},
        "persistence": {"enabled": True, "existingClaim": "models"},
        **placed,
    }
    objects = render(values)
    job = of_kind(objects, "Job")[0]["spec"]["template"]["spec"]
    for key, value in placed.items():
        assert job[key] == pod(objects)[key] == value


def test_weights_should_have_room_and_time() -> None:
    """Test that what comes from the network lies on the node's disk, with a request and a limit for the cache."""
    for preset, gib in (("qwen3.5-35b-a3b-fp8", 38), ("qwen3.5-397b-a17b-fp8", 400)):
        objects = render({"preset": preset})
        asked = container(objects)["resources"]["requests"]["ephemeral-storage"]
        (cache,) = [v["emptyDir"] for v in pod(objects)["volumes"] if v["name"] == "cache"]
        assert int(asked.removesuffix("Gi")) >= 2 * gib
        assert int(cache["sizeLimit"].removesuffix("Gi")) >= int(asked.removesuffix("Gi"))
    known = render({"preset": "one-gpu", "config": {"engine": {"model": "Qwen/Qwen3.5-35B-A3B-FP8"}}})
    startup = container(known)["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600 + 10 * 38
    claimed = render({"preset": "qwen3.5-35b-a3b-fp8", "persistence": {"enabled": True}})
    assert "ephemeral-storage" not in container(claimed)["resources"]["requests"]


def test_keda_should_authenticate_take_triggers_and_scale_to_zero() -> None:
    objects = render(next(path for path in VALUES if path.stem == "keda-to-zero"))
    (scaled,) = of_kind(objects, "ScaledObject")
    asked, cron = scaled["spec"]["triggers"]
    assert scaled["spec"]["minReplicaCount"] == 0
    assert asked["authenticationRef"] == {"name": "thanos", "kind": "ClusterTriggerAuthentication"}
    assert asked["metadata"]["authModes"] == "bearer"
    assert 'job="llm/try-penstock"' in asked["metadata"]["query"], "a PodMonitor's series have no `service`"
    assert cron["type"] == "cron"
    assert "replicas" not in workload(objects)["spec"]
    rules = [rule["alert"] for rule in of_kind(objects, "PrometheusRule")[0]["spec"]["groups"][0]["rules"]]
    assert "PenstockAbsent" not in rules, "no pod is no alarm there"


def test_rules_should_be_this_releases_own() -> None:
    values: Object = {"prometheusRule": {"enabled": True}, "serviceMonitor": {"enabled": True}}
    (rule,) = of_kind(render(values), "PrometheusRule")
    for one in rule["spec"]["groups"][0]["rules"]:
        selectors = re.findall(r"\b(?:penstock|gen_ai|rpc)_[a-z_]+\b(\{[^}]*\})?|\bup(\{[^}]*\})", one["expr"])
        named = [a or b for a, b in selectors if "rpc_response_status_code" not in (a, b)]
        assert named, one["alert"]
        for selector in named:
            assert 'namespace="llm"' in selector, one["expr"]
            assert 'job=~"try-penstock-headless|llm/try-penstock"' in selector
        assert one["annotations"]["runbook_url"].endswith(f"docs/how-to/runbook.md#{one['alert'].lower()}")


def test_every_alert_should_have_a_section_in_the_runbook() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", rules)
    assert re.findall(r"^## (\w+)$", (ROOT / "docs/how-to/runbook.md").read_text(), re.MULTILINE) == alerts


def test_links_of_the_packaged_chart_should_lead_somewhere() -> None:
    text = (CHART / "README.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith(("https://", "#")) or (CHART / target).exists(), target


def test_images_should_hold_every_extra_that_the_chart_offers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    offered = {"redis"}  # config.quotas.redis_url
    assert offered <= project["optional-dependencies"].keys()
    cpu = (ROOT / "docker" / "cpu.Dockerfile").read_text()
    for extra in offered:
        for package in project["optional-dependencies"][extra]:
            assert f"/^{package}$/d" in cpu, "it would be uninstalled with the development tools"
        assert f"[{extra}]" in (ROOT / "docker" / "gpu.Dockerfile").read_text()
