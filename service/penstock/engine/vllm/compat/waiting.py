"""How the engine's processes wait for each other. For vLLM 0.32.0."""

from __future__ import annotations

import time

# Two such waits a step, beside steps of several milliseconds: no throughput is lost to them that can be measured.
_NAP_SECONDS = 50e-6


def nap_instead_of_spinning() -> None:
    """Lets the engine core and its worker sleep between looks at what they share; each burns a core otherwise.

    One of the two always waits for the other, spinning on `sched_yield`, for a second after their last word. A GPU node
    has cores to spare. Where the cores compute, that core is the worker's, and the front end's: calls that come while
    the engine is busy cost it its own speed (tests/chaos/test_overload.py).
    vLLM's own way to sleep, a longer silence, loses wake-ups when it is taken at every step: its notices go through a
    queue of one.
    Upstream: vllm/distributed/device_communicators/shm_broadcast.py `SpinCondition.wait`.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    if shm_broadcast.sched_yield is not _nap:
        _nap.__wrapped__ = shm_broadcast.sched_yield  # type: ignore[attr-defined]
        shm_broadcast.sched_yield = _nap


def _nap() -> None:
    time.sleep(_NAP_SECONDS)
