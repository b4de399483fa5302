"""Servers that play the cases' replies, each a `penstock serve` of its own, and a proxy that cuts connections."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from penstock_bench.load.serving import address_of

from bench.machine import free_port
from tests.conformance.middle import large, middle, stuck
from tests.rpc.proxy import proxied
from tests.rpc.secure import Authority

HERE = Path(__file__).parent
_CUT_BYTES = 600
_START_SECONDS = 60.0
_CALLERS = {"callers": {"watcher": {"permissions": ["diagnostics"]}}}


def load_cases() -> list[dict[str, Any]]:
    files = sorted(path for path in HERE.glob("*.json") if path.name != "servers.json")
    return [case for path in files for case in json.loads(path.read_text(encoding="utf-8"), object_hook=_long)]


def _long(found: dict[str, Any]) -> Any:
    """{"times": 3, "text": "x"} stands for "xxx"."""
    return found["text"] * found["times"] if set(found) == {"times", "text"} else found


@contextmanager
def serving(scratch: Path) -> Iterator[dict[str, str]]:
    """The address of each server by its name; NAME.ca is the path of the certificate that vouches for it."""
    replies = [{"match": f"[{case['name']}]", **case["reply"]} for case in load_cases() if "reply" in case]
    played = scratch / "replies.json"
    played.write_text(json.dumps(replies), encoding="utf-8")
    metrics = f"127.0.0.1:{free_port()}"
    placed = (HERE / "servers.json").read_text(encoding="utf-8")
    placed = placed.replace("{scratch}", scratch.as_posix()).replace("{metrics}", metrics)
    servers: dict[str, Any] = json.loads(placed)
    (scratch / "callers.yaml").write_text(json.dumps(_CALLERS), encoding="utf-8")  # JSON is YAML
    authority = Authority()
    authority.server("localhost").write(scratch)
    (scratch / "ca.crt").write_bytes(authority.pem)
    with ExitStack() as stack:
        waiting = {name: stack.enter_context(_serve(scratch, name, cfg, played)) for name, cfg in servers.items()}
        targets = {
            name: address_of(process, ready, seconds=_START_SECONDS, log=ready.with_suffix(".log"))
            for name, (ready, process) in waiting.items()
        }
        targets["leaving.metrics"] = f"http://{metrics}/metrics"
        targets["secure.ca"] = str(scratch / "ca.crt")
        targets["older"] = stack.enter_context(middle(targets["default"], renames=True))
        targets["lossy"] = stack.enter_context(middle(targets["default"], lost_reply=3))
        targets["stuck"] = stack.enter_context(stuck())
        targets["large"] = stack.enter_context(large())
        targets["flaky"] = stack.enter_context(_flaky(targets["default"]))
        yield targets


@contextmanager
def _serve(
    scratch: Path, name: str, config: dict[str, Any], played: Path
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    engine = {**config.get("engine", {}), "kind": "scripted", "model": str(played)}
    whole = {
        **config,
        "engine": engine,
        # Deltas stay apart, however late its loop is: connections are lost after some bytes.
        "server": {
            **config.get("server", {}),
            "listen": "127.0.0.1:0",
            "drain_seconds": 0,
            "adaptive_flush_seconds": 0,
        },
    }
    file, ready = scratch / f"{name}.yaml", scratch / f"{name}.ready"
    file.write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--ready-file", str(ready)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
    with (scratch / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield ready, process
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def _flaky(server: str) -> Iterator[str]:
    loop, bound, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    target = ""

    async def forward() -> None:
        nonlocal target
        async with proxied(server, cut_bytes=_CUT_BYTES) as proxy:
            target = proxy.target
            bound.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(forward(),))
    thread.start()
    assert bound.wait(60)
    try:
        yield target
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
