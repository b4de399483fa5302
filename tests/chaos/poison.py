"""A worker that dies on a certain prompt: loaded by vLLM's own `worker_cls`, in the tests alone."""

from __future__ import annotations

import os
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

POISON_IDS = tuple([7, 13] * 9)
"""A run of token ids that no question makes."""


class PoisonableWorker(CPUWorker):  # type: ignore[misc]
    def execute_model(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.scheduled_new_reqs:
            ids = tuple(request.prompt_token_ids or ())
            if any(ids[at : at + len(POISON_IDS)] == POISON_IDS for at in range(len(ids) - len(POISON_IDS) + 1)):
                os._exit(66)
        return super().execute_model(scheduler_output)
