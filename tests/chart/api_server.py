"""As much of a Kubernetes API as Helm's `lookup` asks for: versions, kinds, and objects by name. Loopback only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_KINDS = {
    "v1": [("persistentvolumeclaims", "PersistentVolumeClaim")],
    "apps/v1": [("deployments", "Deployment")],
    "leaderworkerset.x-k8s.io/v1": [("leaderworkersets", "LeaderWorkerSet")],
}


def _path(version: str) -> str:
    return f"/api/{version}" if version == "v1" else f"/apis/{version}"


def _answers(objects: list[dict[str, Any]]) -> Mapping[str, Any]:
    groups = [version.split("/") for version in _KINDS if "/" in version]
    versions = [{"groupVersion": f"{g}/{v}", "version": v} for g, v in groups]
    found: dict[str, Any] = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": g, "versions": [version], "preferredVersion": version}
                for (g, _), version in zip(groups, versions, strict=True)
            ],
        },
    }
    for version, kinds in _KINDS.items():
        resources = [
            {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
            for plural, kind in kinds
        ]
        found[_path(version)] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": resources,
        }
    plurals = {kind: plural for kinds in _KINDS.values() for plural, kind in kinds}
    for one in objects:
        meta = one["metadata"]
        found[f"{_path(one['apiVersion'])}/namespaces/{meta['namespace']}/{plurals[one['kind']]}/{meta['name']}"] = one
    return found


@contextmanager
def api_server(objects: list[dict[str, Any]]) -> Iterator[str]:
    """The address of a server that has these objects."""
    answers = _answers(objects)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = answers.get(self.path.split("?")[0])
            body = json.dumps(known or {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
            self.send_response(404 if known is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
