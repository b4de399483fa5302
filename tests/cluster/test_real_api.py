"""The chart on a real Kubernetes API: what admission says, and what upgrades do to objects that are there.

No pod need start: nodes without GPUs, or none at all, are enough. Everything is in one namespace with a random name.
"""

from __future__ import annotations

import pytest

from tests.chart.chart import CHART, deployment, of_kind, templates
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster
PRESETS = sorted(path.stem for path in (CHART / "presets").glob("*.yaml"))
NEEDED = {"one-gpu": ["--set=config.engine.model=Qwen/Qwen3-0.6B", "--set=model.sizeGiB=2"]}
GROUPS = "leaderworkersets.leaderworkerset.x-k8s.io"


@pytest.mark.parametrize("preset", PRESETS)
def test_should_install_upgrade_roll_back_and_remove_a_preset(cluster: Cluster, preset: str) -> None:
    if "nodes" in preset and not cluster.has(GROUPS):
        pytest.skip("the cluster has no LeaderWorkerSet")
    release = f"p{PRESETS.index(preset)}"
    given = [str(CHART), f"--set=preset={preset}", *NEEDED.get(preset, [])]
    cluster.helm("install", release, *given, "--dry-run=server")
    cluster.helm("install", release, *given)
    try:
        for template in templates(cluster.manifest(release)).values():
            cluster.admit(template)
        cluster.helm("upgrade", release, *given, "--set=podAnnotations.try=again")
        assert "again" in cluster.helm("get", "manifest", release)
        cluster.helm("rollback", release, "1")
        assert "again" not in cluster.helm("get", "manifest", release)
    finally:
        left = cluster.manifest(release)
        cluster.helm("uninstall", release)
    assert left
    assert all(cluster.is_going(one["kind"], one["metadata"]["name"]) for one in left)


def test_should_keep_the_replicas_when_autoscaling_is_switched_on(cluster: Cluster) -> None:
    given = [str(CHART), "--set=preset=demo-cpu"]
    cluster.helm("install", "scaled", *given, "--set=replicaCount=3")
    try:
        name = deployment(cluster.manifest("scaled"))["metadata"]["name"]
        assert cluster.get("deployment", name)["spec"]["replicas"] == 3
        cluster.helm("upgrade", "scaled", *given, "--set=autoscaling.enabled=true", "--set=autoscaling.minReplicas=1")
        assert cluster.get("deployment", name)["spec"]["replicas"] == 3
    finally:
        cluster.helm("uninstall", "scaled")


def test_should_upgrade_to_a_smaller_claim_by_keeping_the_one_that_is_there(cluster: Cluster) -> None:
    given = [str(CHART), "--set=preset=demo-cpu", "--set=persistence.enabled=true"]
    cluster.helm("install", "claimed", *given, "--set=persistence.size=100Gi")
    try:
        (claim,) = of_kind(cluster.manifest("claimed"), "PersistentVolumeClaim")
        name = claim["metadata"]["name"]
        cluster.helm("upgrade", "claimed", *given, "--set=persistence.size=10Gi")
        assert cluster.get("persistentvolumeclaim", name)["spec"]["resources"]["requests"]["storage"] == "100Gi"
    finally:
        cluster.helm("uninstall", "claimed")


def test_should_be_told_by_admission_what_restricted_forbids(cluster: Cluster) -> None:
    """Show that the namespace enforces it: otherwise the tests above would prove nothing."""
    # An API without controllers makes no default account.
    cluster.kubectl(f"--namespace={cluster.namespace}", "create", "serviceaccount", "root")
    box = {"name": "root", "image": "example.invalid/root", "securityContext": {"privileged": True}}
    with pytest.raises(RuntimeError, match="PodSecurity"):
        cluster.admit({"metadata": {}, "spec": {"serviceAccountName": "root", "containers": [box]}})
