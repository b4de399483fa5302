"""Test what the service's processes use, and the GPUs beside them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import psutil
import pytest
from penstock_bench.load import gpus
from penstock_bench.load.processes import FRONT_END, GENERATOR, GPU, NotLocal, Watch, find


def test_who_listens_at_loopback_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert find(f"127.0.0.1:{listener.getsockname()[1]}", None).pid == os.getpid()
    assert find("elsewhere.example:1", os.getpid()).pid == os.getpid()


@pytest.mark.parametrize(
    ("target", "pid", "why"),
    [
        ("elsewhere.example:443", None, "is not this machine's loopback"),
        ("127.0.0.1:1", None, "no process that listens at"),
        ("127.0.0.1:x", None, "give it with --pid"),
        ("127.0.0.1:1", 999_999_999, "no process 999999999"),
    ],
)
def test_what_cannot_be_seen_is_said(target: str, pid: int | None, why: str) -> None:
    with pytest.raises(NotLocal, match=why):
        find(target, pid)


async def test_a_window_counts_what_was_used_in_it() -> None:
    with Watch(None).window() as used:
        end = psutil.Process().cpu_times().user + 0.2
        while psutil.Process().cpu_times().user < end:
            pass
    own = used[os.getpid()]
    assert own.role == GENERATOR
    assert own.cpu_seconds > 0.15  # of the 0.2 that the loop above has used
    assert own.memory_gib >= own.memory_at_start_gib > 0.001


def test_gpus_are_read_by_line() -> None:
    text = "0, NVIDIA H200, 71842\n1, NVIDIA H200, 0\n2, NVIDIA GB10, [N/A]\nNo devices were found\n"
    assert gpus.parse(text) == [gpus.Gpu(0, "NVIDIA H200", 71842 / 1024), gpus.Gpu(1, "NVIDIA H200", 0.0)]


async def test_gpus_are_sampled_where_the_drivers_tool_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '1, NVIDIA H200, 2048'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Watch(psutil.Process()).window() as used:
        for _ in range(1200):
            if -2 in used:
                break
            await asyncio.sleep(0.05)
    assert (used[-2].role, used[-2].name, used[-2].memory_gib) == (GPU, "1, NVIDIA H200", 2.0)
    assert used[os.getpid()].role in (FRONT_END, GENERATOR)


async def test_no_tool_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await gpus.read() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert await gpus.read() == []
