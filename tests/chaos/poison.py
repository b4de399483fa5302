"""A worker that dies on certain prompts: loaded by vLLM's own `worker_cls`, in the tests alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

POISON_IDS = tuple([7, 13] * 9)
"""A run of token ids that no question makes."""
LATE_POISON_IDS = tuple([7, 17] * 9)
"""Another one, which kills once a run has given `LATE_TOKENS` tokens."""
LATE_TOKENS = 12


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as BaseWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as BaseWorker


DIES_ENCODING = "TESTS_DIES_ENCODING"
"""Environment variable with a file: while it is there, a worker dies as it begins to encode an image, and takes it."""


class WorkerThatDiesEncoding(BaseWorker):  # type: ignore[misc]
    def execute_model(self, scheduler_output: Any) -> Any:
        mark = Path(os.environ[DIES_ENCODING])
        if scheduler_output.scheduled_encoder_inputs and mark.exists():
            mark.unlink()
            os._exit(66)
        return super().execute_model(scheduler_output)


def holds(request: Any, poison: tuple[int, ...]) -> bool:
    ids = tuple(request.prompt_token_ids or ())
    return any(ids[at : at + len(poison)] == poison for at in range(len(ids) - len(poison) + 1))


class PoisonableWorker(BaseWorker):  # type: ignore[misc]
    def execute_model(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.scheduled_new_reqs:
            if holds(request, POISON_IDS):
                os._exit(66)
            if holds(request, LATE_POISON_IDS):
                _late.add(request.req_id)
        running = scheduler_output.scheduled_cached_reqs
        for request_id, tokens in zip(running.req_ids, running.num_output_tokens, strict=True):
            if request_id in _late and tokens >= LATE_TOKENS:
                os._exit(66)
        return super().execute_model(scheduler_output)


_late: set[str] = set()
