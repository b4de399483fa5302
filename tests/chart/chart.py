"""Renders the chart with the real Helm, and reads what came out."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tooling import program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "penstock"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
DEPLOYED = [path for path in VALUES if not path.stem.startswith("nodes-")]
GATEWAYS = [path for path in VALUES if "gateway" in path.stem]
KUBERNETES = ("1.31.0", "1.37.0")
needs_helm = pytest.mark.needs("helm")

Object = dict[str, Any]


class Refused(Exception):
    """Helm would not render; the text is what it said."""


def helm(*arguments: str, values: str = "") -> str:
    command = [program("helm"), *arguments]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


@functools.cache
def _rendered(values: str, kubernetes: str) -> str:
    return helm(
        "template", "try", str(CHART), "--namespace=llm", f"--kube-version={kubernetes}", "--values=-", values=values
    )


def render(values: Path | Object, kubernetes: str = KUBERNETES[-1]) -> list[Object]:
    """Return what Helm would install, hooks included. Raises Refused."""
    text = values.read_text() if isinstance(values, Path) else yaml.safe_dump(values)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [found for found in yaml.load_all(_rendered(text, kubernetes), loader) if found]


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def is_gateways(found: Object) -> bool:
    """Whether an object is the gateway's, not the service's; the tests' own objects are nobody's."""
    return bool(found["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "gateway")


def of_service(objects: Iterable[Object]) -> list[Object]:
    return [found for found in objects if not is_gateways(found)]


def gateway_pod(objects: Iterable[Object]) -> Object:
    """The gateway's pod template; raises ValueError where there is none."""
    (found,) = [o for o in of_kind(objects, "Deployment") if is_gateways(o)]
    template: Object = found["spec"]["template"]
    return template


def workload(objects: Iterable[Object]) -> Object:
    """The service's Deployment, or with several nodes the LeaderWorkerSet."""
    (found,) = [o for o in of_service(objects) if o["kind"] in ("Deployment", "LeaderWorkerSet")]
    return found


def deployment(objects: Iterable[Object]) -> Object:
    (found,) = of_kind(of_service(objects), "Deployment")
    return found


def templates(objects: Iterable[Object]) -> dict[str, Object]:
    """Pod templates by role: service, and with several nodes worker."""
    spec = workload(objects)["spec"]
    if "template" in spec:
        return {"service": spec["template"]}
    group = spec["leaderWorkerTemplate"]
    return {"service": group["leaderTemplate"], "worker": group["workerTemplate"]}


def pod(objects: Iterable[Object], role: str = "service") -> Object:
    return templates(objects)[role]["spec"]


def container(objects: Iterable[Object], role: str = "service") -> Object:
    """The service's own container, not one beside it."""
    (found,) = [box for box in pod(objects, role)["containers"] if box["name"] == "penstock"]
    return found


def configuration(objects: Iterable[Object]) -> str:
    (text,) = [c["data"]["penstock.toml"] for c in of_kind(objects, "ConfigMap") if "penstock.toml" in c["data"]]
    return text


def pods(objects: Iterable[Object]) -> list[Object]:
    """The specs of all pods, the gateway's, the tests' and the download's too."""
    found = [o["spec"] for o in of_kind(objects, "Pod")]
    found += [o["spec"]["template"]["spec"] for o in of_kind(objects, "Deployment") if is_gateways(o)]
    found += [o["spec"]["template"]["spec"] for o in of_kind(objects, "Job")]
    return [*(template["spec"] for template in templates(objects).values()), *found]


def arguments(box: Object, rank: int = 0) -> list[str]:
    """Return what a container's program is given, with the variables that LeaderWorkerSet sets filled in."""
    told = {"$(LWS_WORKER_INDEX)": str(rank), "$(LWS_LEADER_ADDRESS)": "localhost"}
    found = list(box["args"])
    for name, value in told.items():
        found = [argument.replace(name, value) for argument in found]
    return found
