"""Writes the bill of materials of this Python, as CycloneDX 1.6 JSON on stdout: every package, version and licence."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from typing import Any


def main() -> int:
    found = {one["purl"]: one for one in map(component, importlib.metadata.distributions())}
    image = {"type": "container", "name": sys.argv[1] if len(sys.argv) > 1 else "penstock"}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": [found[purl] for purl in sorted(found)],
    }
    print(json.dumps(bill, indent=1))
    return 0


def component(package: importlib.metadata.Distribution) -> dict[str, Any]:
    metadata = package.metadata
    name = re.sub(r"[-_.]+", "-", metadata["Name"]).lower()
    said: dict[str, Any] = {
        "type": "library",
        "name": metadata["Name"],
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version.replace('+', '%2B')}",
    }
    if licence := metadata.get("License-Expression"):
        said["licenses"] = [{"expression": licence}]
    elif (licence := metadata.get("License")) and "\n" not in licence:
        said["licenses"] = [{"license": {"name": licence}}]
    return said


if __name__ == "__main__":
    sys.exit(main())
