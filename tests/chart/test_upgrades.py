"""Test what an upgrade finds in the cluster should be kept: Helm's `lookup`, asked of a small API on loopback."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.chart.api_server import api_server
from tests.chart.chart import CHART, Object, helm, is_gateways, needs_helm, of_kind, workload

pytestmark = needs_helm


def live(kind: str, api: str, name: str, spec: dict[str, Any]) -> Object:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "llm"}, "spec": spec}


def rendered(values: Object, *objects: Object, release: str = "try") -> list[Object]:
    with api_server(list(objects)) as address:
        text = helm(
            *("template", release, str(CHART), "--namespace=llm", "--dry-run=server", f"--kube-apiserver={address}"),
            *("--kube-version=1.33.0", "--values=-"),
            values=yaml.safe_dump(values),
        )
    return [found for found in yaml.safe_load_all(text) if found]


SCALED: Object = {"autoscaling": {"enabled": True, "minReplicas": 2}}


@pytest.mark.parametrize(("there", "kept"), [(3, 3), (1, 2)])
def test_switching_autoscaling_on_should_keep_the_replicas_that_are_there(there: int, kept: int) -> None:
    deployment = live("Deployment", "apps/v1", "try-penstock", {"replicas": there})
    assert workload(rendered(SCALED, deployment))["spec"]["replicas"] == kept
    assert "replicas" not in workload(rendered(SCALED))["spec"], "nothing there: the autoscaler begins"
    # Without an autoscaler the values' own count holds.
    assert workload(rendered({"replicaCount": 1}, deployment))["spec"]["replicas"] == 1


def test_gateways_should_keep_their_count_too() -> None:
    def count(there: int) -> int:
        live_one = live("Deployment", "apps/v1", "try-penstock-gateway", {"replicas": there})
        objects = rendered({"gateway": {"enabled": True, "autoscaling": {"enabled": True}}}, live_one)
        (found,) = [one for one in of_kind(objects, "Deployment") if is_gateways(one)]
        return int(found["spec"]["replicas"])

    assert (count(1), count(5)) == (2, 5)


def test_groups_should_keep_their_count_too() -> None:
    there = live("LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1", "try-penstock-nodes", {"replicas": 3})
    values = SCALED | {"preset": "qwen3.5-397b-a17b-fp8-two-nodes"}
    assert workload(rendered(values, there))["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("there", "wanted", "kept"),
    [("810Gi", "86Gi", "810Gi"), ("10Gi", "86Gi", "86Gi"), ("1Ti", "86Gi", "1Ti"), ("500G", "1Ti", "1Ti")],
)
def test_a_claim_should_never_shrink_or_change(there: str, wanted: str, kept: str) -> None:
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "old",
        "resources": {"requests": {"storage": there}},
    }
    values = {"persistence": {"enabled": True, "size": wanted, "storageClass": "new"}}
    (found,) = of_kind(
        rendered(values, live("PersistentVolumeClaim", "v1", "try-penstock-cache", claim)), "PersistentVolumeClaim"
    )
    assert found["spec"] == claim | {"resources": {"requests": {"storage": kept}}}


@pytest.mark.parametrize("release", ["123", "1e3", "true", "a.b.c", "on"])
@pytest.mark.parametrize("values", [{}, {"fullnameOverride": "null"}, {"nameOverride": 7}, {"nameOverride": True}])
def test_names_that_yaml_reads_as_something_else_should_stay_names(release: str, values: Object) -> None:
    objects = rendered(values, release=release)
    for found in objects:
        meta = found["metadata"]
        assert isinstance(meta["name"], str)
        assert all(isinstance(value, str) for value in meta["labels"].values())
    for service in of_kind(objects, "Service"):
        # A DNS label that begins with a letter.
        assert service["metadata"]["name"][0].isalpha()
        assert "." not in service["metadata"]["name"]
        assert all(isinstance(value, str) for value in service["spec"]["selector"].values())
