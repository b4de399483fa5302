"""Let the engine's processes sleep while they wait for each other. For vLLM 0.32.0."""

from __future__ import annotations

import time

# A step of several milliseconds has two such waits: the loss of throughput is too small to measure.
_SLEEP_SECONDS = 50e-6


def sleep_instead_of_spinning() -> None:
    """Let the engine core and its worker sleep between checks of their shared memory; otherwise each uses a whole core.

    One of the two always waits for the other and spins on `sched_yield`, for a second after their last message. A GPU
    node has cores to spare. Where the cores compute, that core is missing for the worker and the front end, and calls
    that arrive while the engine is busy slow it down (tests/chaos/test_overload.py). vLLM's own way to sleep after a
    longer silence loses wake-ups if it is used at every step: its notices go through a queue of one.
    Upstream: vllm/distributed/device_communicators/shm_broadcast.py `SpinCondition.wait`.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    if shm_broadcast.sched_yield is not _sleep:
        _sleep.__wrapped__ = shm_broadcast.sched_yield  # type: ignore[attr-defined]
        shm_broadcast.sched_yield = _sleep


def _sleep() -> None:
    time.sleep(_SLEEP_SECONDS)
