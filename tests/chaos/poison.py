"""A worker that dies on a certain prompt: loaded by vLLM's own `worker_cls`, in the tests alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

POISON_IDS = tuple([7, 13] * 9)
"""A run of token ids that no question makes."""


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


class PoisonableWorker(BaseWorker):  # type: ignore[misc]
    def execute_model(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.scheduled_new_reqs:
            ids = tuple(request.prompt_token_ids or ())
            if any(ids[at : at + len(POISON_IDS)] == POISON_IDS for at in range(len(ids) - len(POISON_IDS) + 1)):
                os._exit(66)
        return super().execute_model(scheduler_output)
