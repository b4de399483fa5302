"""A kubelet's part, in a directory instead of a container: mounts are directories of it, paths point there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.chart.chart import Object, of_kind


@dataclass(frozen=True)
class Container:
    """One container of a rendered pod, as it would run under `root`."""

    spec: Object
    root: Path

    @property
    def command(self) -> list[str]:
        program, *arguments = [*self.spec["command"], *self.spec.get("args", [])]
        # The image has these on its PATH; here they are beside this interpreter.
        return [str(Path(sys.executable).parent / program), *(self._inside(a) for a in arguments)]

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in self.spec.get("env", []):
            # What the downward API would say, and variables in variables, as the kubelet fills them in.
            text = entry.get("value", f"here-{entry['name'].lower()}")
            text = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), text)
            found[entry["name"]] = self._inside(text)
        return found

    def start(self, extra: Mapping[str, str], errors: IO[str] | None = None) -> subprocess.Popen[str]:
        # Nothing of this machine's environment: a pod has none of it either.
        return subprocess.Popen(
            self.command,
            env={"PATH": os.environ["PATH"], **self.environment, **extra},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=errors or subprocess.STDOUT,
            text=True,
        )

    def _inside(self, text: str) -> str:
        for mount in sorted((m["mountPath"] for m in self.spec["volumeMounts"]), key=len, reverse=True):
            if re.match(rf"{re.escape(mount)}(/|$)", text):
                return str(self.root) + text
        return text


def moved(text: str, box: Object, root: Path) -> str:
    """A file's text with the quoted paths below mounts pointing into `root`."""
    mounts = "|".join(re.escape(m["mountPath"]) for m in box["volumeMounts"])
    return re.sub(rf'"((?:{mounts})/)', rf'"{root}\1', text)


def lay_out(spec: Object, objects: list[Object], root: Path) -> Container:
    """Makes the mounts of a pod's only container: its ConfigMaps as they were rendered, empty directories empty."""
    (box,) = spec["containers"]
    volumes: dict[str, Any] = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in box["volumeMounts"]:
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
            for item in volume["secret"]["items"]:
                (place / item["path"]).write_text("a secret of more than thirty-two bytes")
        else:
            assert "emptyDir" in volume
            place.mkdir(parents=True)
    return Container(box, root)
