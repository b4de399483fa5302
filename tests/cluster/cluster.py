"""One namespace of a real Kubernetes API that the caller named, by kubectl and helm from PATH."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

KUBECONFIG, CONTEXT = "PENSTOCK_CLUSTER_KUBECONFIG", "PENSTOCK_CLUSTER_CONTEXT"
HOW = "make test-cluster KUBECONFIG=FILE CONTEXT=NAME"
_SECONDS = 120


class NotAllowed(Exception):
    """The tests may not touch a cluster; says what is missing."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Every command names the file and the context, so that a current context is never used by accident."""

    kubeconfig: str
    context: str
    namespace: str

    def kubectl(self, *arguments: str, text: str = "") -> str:
        return _run("kubectl", f"--kubeconfig={self.kubeconfig}", f"--context={self.context}", *arguments, text=text)

    def helm(self, *arguments: str, text: str = "") -> str:
        where = (f"--kubeconfig={self.kubeconfig}", f"--kube-context={self.context}", f"--namespace={self.namespace}")
        return _run("helm", *where, *arguments, text=text)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object of the namespace. Raises RuntimeError where there is none."""
        text = self.kubectl(f"--namespace={self.namespace}", "get", kind, name, "--output=json")
        found: dict[str, Any] = json.loads(text)
        return found

    def is_going(self, kind: str, name: str) -> bool:
        """Say whether the object is gone, or deleted but for what waits for it."""
        where = f"--namespace={self.namespace}"
        text = self.kubectl(where, "get", kind, name, "--ignore-not-found", "--output=json")
        return not text.strip() or "deletionTimestamp" in json.loads(text)["metadata"]

    def has(self, kind: str) -> bool:
        return kind in self.kubectl("api-resources", "--output=name").split()

    def manifest(self, release: str) -> list[dict[str, Any]]:
        return [one for one in yaml.safe_load_all(self.helm("get", "manifest", release)) if one]

    def admit(self, template: Mapping[str, Any]) -> None:
        """Create a pod of this template on the server, but keep nothing. Raises RuntimeError where it is refused."""
        meta = {"name": "admitted", "labels": template["metadata"].get("labels", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        where = f"--namespace={self.namespace}"
        self.kubectl(where, "create", "--dry-run=server", "--filename=-", text=json.dumps(pod))


def chosen(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the file and the context that were named. Raises NotAllowed: there is no default for either."""
    kubeconfig, context = environ.get(KUBECONFIG, ""), environ.get(CONTEXT, "")
    if not kubeconfig or not context:
        raise NotAllowed(f"no cluster was named: {HOW}")
    if missing := [program for program in ("kubectl", "helm") if not shutil.which(program)]:
        raise NotAllowed(f"not on PATH: {' and '.join(missing)}")
    names = _run("kubectl", f"--kubeconfig={kubeconfig}", "config", "get-contexts", "--output=name").split("\n")
    if context not in names:
        raise NotAllowed(f"{kubeconfig} has no context {context!r}; it has {', '.join(filter(None, names)) or 'none'}")
    return kubeconfig, context


@contextmanager
def namespace(kubeconfig: str, context: str) -> Iterator[Cluster]:
    """Make a namespace that enforces the Pod Security Standard `restricted`; delete it at the end."""
    made = Cluster(kubeconfig, context, f"penstock-test-{secrets.token_hex(4)}")
    meta = {"name": made.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    wanted = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
    made.kubectl("create", "--filename=-", text=json.dumps(wanted))
    try:
        yield made
    finally:
        made.kubectl("delete", "namespace", made.namespace, "--wait=false")


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout
