"""A process that ends with the one that started it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from penstock.cli.own_service import ended_with_parent

# Starts the command of its arguments, says its process number, and waits.
PARENT = (
    "import signal, subprocess, sys, time; from penstock.cli.own_service import ended_with_parent;"
    "child = subprocess.Popen(ended_with_parent(sys.argv[1:], signal.SIGTERM));"
    "print(child.pid, flush=True); time.sleep(600)"
)
CHILD = "import time; print('runs', flush=True); time.sleep(600)"


def is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_with_its_parent(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "runs\n"  # after the signal was asked for
        parent.send_signal(number)
    until = time.monotonic() + 60
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def test_the_command_is_run_as_it_is() -> None:
    say = "import os, sys; print(sys.argv[1:], os.getppid()); sys.exit(3)"
    command = ended_with_parent([sys.executable, "-c", say, "a b", ""], signal.SIGTERM)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"['a b', ''] {os.getpid()}\n", "")
