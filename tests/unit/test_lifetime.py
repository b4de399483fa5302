"""Processes that end with the service that started their engine, without an engine: plain Python processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from penstock.engine.vllm.lifetime import VARIABLE, ServicePipe
from penstock.engine.vllm.processes import kill

_WATCHES = "from penstock.engine.vllm.lifetime import end_with_service; end_with_service();"
_MAX_SECONDS = 60

# Prints the pids of a child and of what that child started; both watch. Then it waits for ever.
SERVICE = f"""
import os, subprocess, sys, time
from penstock.engine.vllm.lifetime import ServicePipe
grandchild = {_WATCHES + " import os, time; print(os.getpid(), flush=True); time.sleep(600)"!r}
child = {_WATCHES!r} + (
    "import os, subprocess, sys, time; print(os.getpid(), flush=True);"
    "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True); time.sleep(600)"
)
pipe = ServicePipe()
os.environ.update(pipe.environment)
subprocess.Popen([sys.executable, "-c", child, grandchild], start_new_session=True, close_fds=False)
time.sleep(600)
"""


@contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A service of `SERVICE` behind `command`, and the two processes below it."""
    with subprocess.Popen([*command, sys.executable, "-c", SERVICE], stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            for _ in range(2):
                service.stdout.readline()
            below = [
                p
                for p in psutil.Process(service.pid).children(recursive=True)
                if p.cmdline()[:2] == [sys.executable, "-c"]
            ]
            yield service, below
        finally:
            service.kill()


def ends(process: psutil.Process) -> bool:
    """A zombie has ended: whether PID 1 reaps it is not ours."""
    until = time.monotonic() + _MAX_SECONDS
    while time.monotonic() < until:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_every_generation_should_end_with_a_service_that_is_killed_stopped_ones_too() -> None:
    with running() as (service, below):
        assert len(below) == 2
        below[1].send_signal(signal.SIGSTOP)
        service.kill()
        assert all(ends(process) for process in below)


@pytest.mark.needs("unshare", "root")
def test_they_should_end_in_a_container_whose_pid_1_is_not_the_service() -> None:
    shell = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; sleep 600', "sh")
    with running(*shell) as (_, below):
        (service,) = [process for process in below if process.cmdline()[-1] == SERVICE]
        service.kill()
        assert all(ends(process) for process in below)


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=_MAX_SECONDS, check=False
    )


def test_closing_the_pipe_should_end_one_engines_processes_and_not_anothers() -> None:
    done = run(
        f"""
        import os, subprocess, sys
        from penstock.engine.vllm.lifetime import VARIABLE, ServicePipe
        def start(pipe):
            code = {_WATCHES + " import time; print(flush=True); time.sleep(600)"!r}
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                                       env=os.environ | pipe.environment)
            process.stdout.readline()
            return process
        first, second = ServicePipe(), ServicePipe()
        old, new = start(first), start(second)
        first.close()
        first.close()
        print(old.wait(60), new.poll())
        new.kill()
        """
    )
    assert done.stdout.split() == ["-9", "None"], done.stderr


def test_a_forked_child_should_neither_hold_the_pipe_nor_outlive_the_service() -> None:
    """It is forked from a process that watches: the kernel's signal goes to that one alone."""
    done = run(
        f"""
        import os, subprocess, sys, time
        from penstock.engine.vllm.lifetime import ServicePipe
        pipe = ServicePipe()
        holder = os.fork()
        if holder == 0:
            time.sleep(20)  # longer than it takes to see that it does not hold the pipe
            os._exit(0)
        forks = {_WATCHES!r} + (
            "import os, time; child = os.fork(); os.write(1, b'%d.' % child) if child else None; time.sleep(600)"
        )
        process = subprocess.Popen([sys.executable, "-c", forks], stdout=subprocess.PIPE,
                                   env=os.environ | pipe.environment)
        import psutil
        child = psutil.Process(int(b"".join(iter(lambda: process.stdout.read(1), b"."))))
        pipe.close()
        print(process.wait(60))
        os.kill(holder, 9)
        try:
            while child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
        except psutil.NoSuchProcess:
            pass
        """
    )
    assert done.stdout.split() == ["-9"], done.stderr


def test_a_trial_of_a_constraint_should_end_with_the_sandbox_that_forked_it() -> None:
    """Both generations: the one that tries, here for ever, and the one that waits for it."""
    code = """
        import os, signal, time
        from penstock.engine.vllm.constraints import sandbox_process as trial
        def never_ends(*_):
            print(os.getppid(), os.getpid(), flush=True)
            time.sleep(600)
        trial._try = never_ends
        if os.fork() == 0:
            trial._watch({"id": 1, "kind": "regex", "spec": "a", "seconds": 600}, None)
        time.sleep(600)
        """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as sandbox:
        try:
            assert sandbox.stdout is not None
            forks = [psutil.Process(int(pid)) for pid in sandbox.stdout.readline().split()]
            assert len(forks) == 2
        finally:
            sandbox.kill()
        assert all(ends(process) for process in forks)


@pytest.mark.parametrize("gone", ["pid", "descriptor", "reused"])
def test_a_process_that_comes_after_the_service_has_gone_should_end_at_once(gone: str) -> None:
    with open(os.devnull) as other:
        name = {
            "pid": "4194303:3:1",
            "descriptor": f"{os.getpid()}:999:1",
            "reused": f"{os.getpid()}:{other.fileno()}:1",
        }
        done = subprocess.run(
            [sys.executable, "-c", _WATCHES + "print('lives')"],
            env=os.environ | {VARIABLE: name[gone]},
            capture_output=True,
            timeout=_MAX_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_nothing_should_happen_where_no_service_is_named_or_in_the_service_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from penstock.engine.vllm import lifetime

    monkeypatch.delenv(VARIABLE, raising=False)
    lifetime.end_with_service()
    pipe = ServicePipe()
    monkeypatch.setenv(VARIABLE, pipe.environment[VARIABLE])
    lifetime.end_with_service()
    pipe.close()
    assert VARIABLE not in os.environ


def test_a_zombie_should_not_be_waited_for() -> None:
    """PID 1 of a container may never reap what its parent left behind."""
    code = "import os, time; child = os.fork(); child or os._exit(0); print(child, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            zombie = psutil.Process(int(parent.stdout.readline()))
            assert ends(zombie)
            with pytest.raises(psutil.TimeoutExpired):
                zombie.wait(0.1)
            kill([zombie], 1e9)  # where it were waited for, the test's own timeout would end this
            assert zombie.status() == psutil.STATUS_ZOMBIE
        finally:
            parent.kill()


def test_a_child_of_multiprocessing_should_be_known_to_have_ended() -> None:
    """vLLM asks multiprocessing, which takes a child for alive whose exit status psutil has read."""
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    assert child.pid is not None
    process = psutil.Process(child.pid)
    kill([process], _MAX_SECONDS)
    assert not process.is_running()
    assert not child.is_alive()
    assert child.exitcode == -signal.SIGKILL
