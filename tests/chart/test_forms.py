"""Whatever the values, the chart should render what Kubernetes takes and what the service reads."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from penstock.cli import app
from penstock.config.rendering import to_toml
from penstock.config.sources import load
from typer.testing import CliRunner

from tests.chart.chart import (
    CHART,
    KUBERNETES,
    VALUES,
    Object,
    arguments,
    configuration,
    container,
    helm,
    needs_helm,
    render,
    templates,
)

pytestmark = needs_helm
CRDS = Path(__file__).parent / "crds"

every_values_file = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
every_kubernetes = pytest.mark.parametrize("kubernetes", KUBERNETES)


def validate(found: Object, kubernetes: str) -> None:
    """Strict, and no kind goes unchecked: kubernetes-validate alone would let an unknown one pass."""
    if found["kind"] == "LeaderWorkerSet":
        # Its pod templates are Kubernetes' own, which the small schema below does not repeat.
        for role, template in templates([found]).items():
            of = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": template["spec"]}
            kubernetes_validate.validate(of, kubernetes, strict=True)
    try:
        kubernetes_validate.validate(found, kubernetes, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        name = f"{found['kind'].lower()}-{found['apiVersion'].replace('/', '-')}.json"
        jsonschema.validate(found, json.loads((CRDS / name).read_text()))


@every_kubernetes
@every_values_file
def test_should_render_what_kubernetes_takes(values: Path, kubernetes: str) -> None:
    objects = render(values, kubernetes)
    assert len(objects) >= 5
    for found in objects:
        validate(found, kubernetes)


def test_should_fail_on_a_kind_without_a_schema() -> None:
    with pytest.raises(FileNotFoundError):
        validate({"apiVersion": "example.com/v1", "kind": "Mystery", "metadata": {}}, KUBERNETES[0])


@every_values_file
def test_should_pass_helms_own_lint(values: Path) -> None:
    helm("lint", "--strict", str(CHART), "--values", str(values))


@every_values_file
def test_should_configure_the_service_in_its_own_words(
    values: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pod's own command line, with --check-config: what it passes is accepted, the file above all."""
    # Ports and volumes are the pod's: this machine may have neither.
    monkeypatch.setattr("penstock.cli.serve.preflight", lambda *_: None)
    objects = render(values)
    file = tmp_path / "penstock.toml"
    file.write_text(configuration(objects))
    for rank, role in enumerate(templates(objects)):
        box = container(objects, role)
        assert box["command"] == ["penstock", "serve"]
        given = [a.replace("/etc/penstock/penstock.toml", str(file)) for a in arguments(box, rank)]
        done = CliRunner().invoke(app, ["serve", *given, "--check-config"])
        assert done.exit_code == 0, done.output + str(done.exception)

    told = {"engine.leader_address": "localhost"} if len(templates(objects)) > 1 else {}
    printed = tomllib.loads(to_toml(load(file, {}, told).config))
    for section, keys in tomllib.loads(file.read_text()).items():
        for key, value in keys.items():
            if (section, key) == ("pricing", "tiers"):
                continue  # exact decimals: checked by value above, spelled in two ways
            assert printed[section][key] == value, f"{section}.{key}"


@every_values_file
def test_should_render_every_setting_that_the_values_name(values: Path) -> None:
    wanted = (yaml.safe_load(values.read_text()) or {}).get("config", {})
    rendered = tomllib.loads(configuration(render(values)))
    for section, keys in wanted.items():
        for key, value in keys.items():
            assert rendered[section].get(key) == value, f"{section}.{key}"


def test_should_be_packaged(tmp_path: Path) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.glob("penstock-*.tgz")
    assert "kind: Deployment" in helm("template", "try", str(package))


CONFIG = ("Deployment/try-penstock", "ConfigMap/try-penstock")
SERVICES = ("Service/try-penstock", "Service/try-penstock-headless")
TEST = ("Pod/try-penstock-test",)
GATEWAY = {f"{kind}/try-penstock-gateway" for kind in ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")}
GATEWAY |= {"NetworkPolicy/try-penstock", "ConfigMap/try-penstock-gateway-test", "Pod/try-penstock-gateway-test"}


def changed(before: Object, after: Object) -> set[str]:
    """Kind and name of what an upgrade from `before` to `after` touches."""
    old, new = ({f"{o['kind']}/{o['metadata']['name']}": o for o in render(v)} for v in (before, after))
    return {name for name in old | new if old.get(name) != new.get(name)}


@pytest.mark.parametrize(
    ("after", "touched"),
    [
        ({}, set()),
        ({"replicaCount": 2}, {"Deployment/try-penstock"}),
        ({"service": {"annotations": {"a": "b"}}}, {"Service/try-penstock"}),
        ({"config": {"limits": {"max_candidates": 2}}}, {"Deployment/try-penstock", "ConfigMap/try-penstock"}),
        ({"networkPolicy": {"enabled": False}}, {"NetworkPolicy/try-penstock"}),
        ({"tests": {"budget": 3}}, {"Pod/try-penstock-test"}),
        ({"persistence": {"enabled": True}}, {"Deployment/try-penstock", "PersistentVolumeClaim/try-penstock-cache"}),
        ({"updateStrategy": {"maxSurge": 1}}, {"Deployment/try-penstock"}),
        ({"podMonitor": {"enabled": True}}, {"PodMonitor/try-penstock"}),
        ({"gateway": {"enabled": True}}, GATEWAY),
        ({"gateway": {"limits": {"max_requests": 7}}}, set()),
        ({"prometheusRule": {"enabled": True}}, {"PrometheusRule/try-penstock"}),
        ({"apiKeys": {"existingSecret": "k"}, "tests": {"apiKey": {"existingSecret": "t"}}}, {*CONFIG, *TEST}),
        (
            {"tls": {"existingSecret": "pair"}},
            {*CONFIG, *TEST, *SERVICES},
        ),
    ],
    ids=lambda value: ",".join(sorted(map(str, value))) or "none",
)
def test_an_upgrade_should_touch_only_what_it_means(after: Object, touched: set[str]) -> None:
    assert changed({}, after) == touched


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ["rollout status deployment/try-penstock", "exec deploy/try-penstock", "--target try-penstock:50051"]),
        (
            {"preset": "qwen3.5-397b-a17b-fp8-two-nodes"},
            ["8 GPU(s) on each of 2 nodes", "leaderworkerset/try-penstock-nodes", "exec try-penstock-nodes-0"],
        ),
        (
            {
                "tls": {"existingSecret": "pair"},
                "apiKeys": {"existingSecret": "keys"},
                "tests": {"apiKey": {"existingSecret": "k"}},
            },
            ["--target try-penstock:50051 --tls", "PENSTOCK_API_KEY"],
        ),
        ({"preset": "qwen3.5-35b-a3b-fp8", "replicaCount": 2}, ["NOTE: resumeKey.existingSecret is not set"]),
        (
            {"gateway": {"enabled": True, "ingress": {"enabled": True, "hosts": ["llm.example"]}}},
            [
                "port-forward service/try-penstock-gateway 8080:80",
                "http://llm.example/v1",
                "NOTE: nothing says who calls",
                "NOTE: gateway.ingress.tls is not set",
                "NOTE: gateway.networkPolicy.from is not set",
                "NOTE: gateway.image.repository is penstock-gateway:0.1.0",
            ],
        ),
    ],
    ids=["cpu", "nodes", "tls", "replicas", "gateway"],
)
def test_should_tell_how_to_send_the_first_request(values: Object, said: list[str], tmp_path: Path) -> None:
    # Without a cluster Helm prints no notes: here they are a template like the others.
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text('notes: |\n  {{- tpl (.Files.Get "notes.txt") . | nindent 2 }}\n')
    only = ("--namespace=llm", "--show-only=templates/notes.yaml", "--values=-")
    notes = yaml.safe_load(helm("template", "try", str(chart), *only, values=yaml.safe_dump(values)))["notes"]
    for text in ("penstock generate", "helm -n llm test try", *said):
        assert text in notes
