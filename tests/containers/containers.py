"""Runs a rendered pod's container with podman, under the security context that the chart gives it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.chart import Object, of_kind

marks = [
    pytest.mark.full,
    pytest.mark.needs("helm", "podman", "runc", "mmdebstrap", "root"),
]
PODMAN = ("podman", "--runtime", "runc")


def podman(*arguments: str, **options: Any) -> str:
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout.strip()


def secured(spec: Object, box: Object) -> list[str]:
    """The options for what the pod's and the container's security contexts say."""
    of_pod, own = spec["securityContext"], box["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    user = f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}"
    return [
        "--read-only",
        "--read-only-tmpfs=false",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        f"--user={user}",
    ]


def limited(box: Object) -> list[str]:
    memory = box["resources"]["limits"]["memory"].replace("Gi", "g").replace("Mi", "m")
    return [f"--memory={memory}", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]


def mounted(spec: Object, box: Object, objects: list[Object], folder: Path) -> list[str]:
    """ConfigMaps as files, empty directories as empty directories of the pod's group."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    options = []
    for number, mount in enumerate(box.get("volumeMounts", [])):
        volume, place = volumes[mount["name"]], folder / str(number)
        if "configMap" in volume:
            (data,) = [
                o["data"] for o in of_kind(objects, "ConfigMap") if o["metadata"]["name"] == volume["configMap"]["name"]
            ]
            place.mkdir()
            for name, text in data.items():
                (place / name).write_text(text)
                (place / name).chmod(0o644)
            source = place / mount["subPath"] if "subPath" in mount else place
            options.append(f"--volume={source}:{mount['mountPath']}:ro")
        elif volume["emptyDir"].get("medium") == "Memory":
            options.append(f"--shm-size={volume['emptyDir']['sizeLimit'].replace('Gi', 'g')}")
            assert mount["mountPath"] == "/dev/shm"
        else:
            place.mkdir()
            os.chown(place, spec["securityContext"]["runAsUser"], spec["securityContext"]["fsGroup"])
            options.append(f"--volume={place}:{mount['mountPath']}")
    return options


def output_of(box: Object) -> list[str]:
    return [f"--env={entry['name']}={entry.get('value', 'here')}" for entry in box.get("env", [])]
