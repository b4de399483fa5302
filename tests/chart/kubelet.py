"""A kubelet's part, in a directory instead of a container: mounts are directories of it, paths point there."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.cli.own_service import ended_with_parent

from tests.chart.chart import Object, arguments, of_kind

# A mount namespace of its own, where nothing but what is below the first argument (and what is mounted apart, such as
# /dev/shm) can be written.
_READ_ONLY = 'mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind / && shift && exec "$@"'


@dataclass(frozen=True)
class Container:
    """One container of a rendered pod, as it would run under `root`."""

    spec: Object
    root: Path
    rank: int = 0
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        program, *first = self.spec["command"]
        given = [*first, *arguments(self.spec, self.rank)]
        # The image has these on its PATH; here they are beside this interpreter.
        return [str(Path(sys.executable).parent / program), *(self._inside(a) for a in given)]

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in self.spec.get("env", []):
            # What the downward API would say, and variables in variables, as the kubelet fills them in.
            text = entry.get("value", f"here-{entry['name'].lower()}")
            if entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") == "status.podIP":
                text = "127.0.0.1"
            if ask := entry.get("valueFrom", {}).get("secretKeyRef"):
                text = self.secrets.get(ask["name"], {}).get(ask["key"], text.encode()).decode()
            text = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), text)
            found[entry["name"]] = self._inside(text)
        return found

    def start(
        self, extra: Mapping[str, str], errors: IO[str] | None = None, read_only: bool = False
    ) -> subprocess.Popen[str]:
        """`read_only`: where this machine can do it, the root file system as the pod's is."""
        command = [*_read_only_root(str(self.root)), *self.command] if read_only else self.command
        # Nothing of this machine's environment, a pod has none of it either, but where Python and its packages are.
        here = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        temporary = {"TMPDIR": self._inside("/tmp")}
        return subprocess.Popen(
            ended_with_parent(command, signal.SIGKILL),  # and its engine with it
            env={**here, **temporary, **self.environment, **extra},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=errors or subprocess.STDOUT,
            text=True,
        )

    def _inside(self, text: str) -> str:
        for mount in sorted((m["mountPath"] for m in self.spec.get("volumeMounts", [])), key=len, reverse=True):
            if found := re.match(rf"(--[a-z-]+=)?({re.escape(mount)}(/.*)?)$", text):
                return f"{found[1] or ''}{self.root}{found[2]}"
        return text


@functools.cache
def can_be_read_only() -> bool:
    return bool(_unshare()) and subprocess.run([*_unshare(), "true"], check=False, capture_output=True).returncode == 0


def _unshare() -> list[str]:
    program = shutil.which("unshare")
    if program is None:
        return []
    return [program, "--mount", *(["--map-root-user"] if os.geteuid() else [])]


def _read_only_root(writable: str) -> list[str]:
    return [*_unshare(), "sh", "-c", _READ_ONLY, "sh", writable] if can_be_read_only() else []


def probe(box: Object, name: str) -> bool:
    """One health check, in plaintext, on the container's port."""
    ask = box[name]["grpc"]
    with grpc.insecure_channel(f"127.0.0.1:{ask['port']}") as channel:
        request = health_pb2.HealthCheckRequest(service=ask.get("service", ""))
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def until_started(box: Object, running: subprocess.Popen[str], within_seconds: float) -> None:
    until = time.monotonic() + within_seconds
    while not probe(box, "startupProbe"):
        assert running.poll() is None, f"ended with {running.returncode}: {running.communicate()[0]}"
        assert time.monotonic() < until, "it did not start in time"
        time.sleep(0.2)


def helm_test(
    objects: list[Object],
    root: Path,
    secrets: Mapping[str, Mapping[str, bytes]] | None = None,
    name: str = "try-penstock-test",
) -> Container:
    (test,) = [found for found in of_kind(objects, "Pod") if found["metadata"]["name"] == name]
    box = lay_out(test["spec"], objects, root, secrets or {})
    # No DNS of a cluster here: the Service's name is this machine.
    box.spec["args"] = [re.sub(r"try-penstock(-gateway)?:", "127.0.0.1:", argument) for argument in box.spec["args"]]
    return box


def moved(text: str, box: Object, root: Path) -> str:
    """A file's text with the quoted paths below mounts pointing into `root`."""
    mounts = "|".join(re.escape(m["mountPath"]) for m in box["volumeMounts"])
    return re.sub(rf'"((?:{mounts})/)', rf'"{root}\1', text)


def lay_out(
    spec: Object,
    objects: list[Object],
    root: Path,
    secrets: Mapping[str, Mapping[str, bytes]] | None = None,
    rank: int = 0,
) -> Container:
    """Makes the mounts of a pod's only container: its ConfigMaps as they were rendered, empty directories empty, and
    Secrets (by name, of keys) as they are given."""
    (box,) = spec["containers"]
    root.mkdir(parents=True, exist_ok=True)
    volumes: dict[str, Any] = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for mount in box.get("volumeMounts", []):
        place = root / mount["mountPath"].lstrip("/")
        volume = volumes[mount["name"]]
        if "configMap" in volume:
            (found,) = [
                c for c in of_kind(objects, "ConfigMap") if c["metadata"]["name"] == volume["configMap"]["name"]
            ]
            if "subPath" in mount:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(moved(found["data"][mount["subPath"]], box, root))
            else:
                place.mkdir(parents=True)
                for name, text in found["data"].items():
                    (place / name).write_text(moved(text, box, root))
        elif "secret" in volume:
            place.mkdir(parents=True)
            content = (secrets or {}).get(volume["secret"]["secretName"], {})
            every = [{"key": key, "path": key} for key in content]
            for item in volume["secret"].get("items", every):
                (place / item["path"]).write_bytes(content.get(item["key"], b"a secret of more than thirty-two bytes"))
        else:
            assert "emptyDir" in volume
            place.mkdir(parents=True)
    return Container(box, root, rank, secrets or {})
