"""`bench.compare` plans for the machine that it runs on, as the service does: on a GPU host for its GPUs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock.engine.vllm import start
from penstock.engine.vllm.features import Devices

from bench import compare, contenders


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_it_plans_for_the_installed_build(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = dict(os.environ)
    request.addfinalizer(lambda: (os.environ.clear(), os.environ.update(before)))
    devices = Devices("gpu", 1, 80 * 2**30, capability=(9, 0)) if kind == "gpu" else Devices("cpu")
    monkeypatch.setattr(start, "installed_build", lambda _: (kind, "0.32.0"))
    monkeypatch.setattr(start, "find_devices", lambda _: devices)
    setting = compare._setting(tmp_path, "127.0.0.1:1")
    arguments = setting.plan.arguments
    given = "gpu_memory_utilization" if kind == "gpu" else "kv_cache_memory_bytes"
    assert {"gpu_memory_utilization", "kv_cache_memory_bytes"} & set(arguments) == {given}
    streams = (1, 8, 64, 256) if kind == "gpu" else (1, 8, 32, 64)
    assert compare._streams("", setting, quick=False) == streams
    flags = contenders._vllm(setting, 1, [])
    assert f"--{given.replace('_', '-')}" in flags
    assert ("--enforce-eager" in flags) is (kind == "cpu")
    (key,) = contenders._memory(setting)
    assert key == ("engine.gpu_memory_utilization" if kind == "gpu" else "engine.kv_cache_gib")


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_servers_start_one_after_the_other_on_a_gpu(kind: str) -> None:
    done: list[str] = []

    class Server(SimpleNamespace):
        def start(self) -> None:
            done.append(f"start {self.name}")

        def wait(self) -> None:
            done.append(f"wait {self.name}")

        def stop(self) -> None: ...

        def serve(self, _: object) -> None: ...

    arguments = {"gpu_memory_utilization": 0.2} if kind == "gpu" else {}
    setting = SimpleNamespace(plan=SimpleNamespace(arguments=arguments))
    servers: Any = [Server(name=name, label=name, missing="", setting=setting) for name in "ab"]
    with ExitStack() as stack:
        assert compare.started(servers, stack, []) == servers
    expected = (
        ["start a", "wait a", "start b", "wait b"] if kind == "gpu" else ["start a", "start b", "wait a", "wait b"]
    )
    assert done == expected
