"""Run vLLM's scheduler and engine core behind AsyncLLM with prepared tokens instead of a forward pass.

vLLM takes an executor class by name (`distributed_executor_backend`). With this one, the same engine core gives every
front end the same tokens at the same pace:

    vllm serve MODEL --distributed-executor-backend bench.canned.CannedExecutor
    penstock serve --set 'engine.extra_args={"distributed_executor_backend": "bench.canned.CannedExecutor"}'

The environment variable BENCH_CANNED_PACE names a JSON file (`Pace`). It is read again whenever a request reaches an
idle engine. The checkpoint is loaded for its shapes and its tokenizer, and never run.

Steps follow a schedule: a late step does not delay later ones. With speculative decoding, each step has two drafts, of
which one and both are accepted in turns, as with MTP: a step yields two tokens, the next one three.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

PACE_FILE = "BENCH_CANNED_PACE"
EXECUTOR = "bench.canned.CannedExecutor"
_DRAFTS = 2
_SENTENCE = "The quick brown fox jumps over the lazy dog, again and again. "


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a step, and tokens of a thought. The answer after it has as many tokens as the request allows."""

    step_seconds: float = 0.0
    thought_tokens: int = 511

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(file: str) -> Pace:
        return Pace(**json.loads(Path(file).read_text(encoding="utf-8"))) if file else Pace()


@dataclass(slots=True)
class _Request:
    prompt_tokens: int
    thought_tokens: int
    sent: int = 0
    steps: int = 0


class CannedExecutor(UniProcExecutor):
    """A single worker in the engine core's process. It never runs the model."""

    def _init_executor(self) -> None:
        super()._init_executor()
        tokenizer = Tokenizer.from_file(str(Path(self.model_config.tokenizer) / "tokenizer.json"))
        self._text = tokenizer.encode(_SENTENCE, add_special_tokens=False).ids
        self._close = tokenizer.token_to_id("</think>")
        self._requests: dict[str, _Request] = {}
        self._drafts: DraftTokenIds | None = None
        self._pace = Pace()
        self._due = 0.0

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return False

    def compile_or_warm_up_model(self) -> None:
        """Do nothing: the model is never run."""

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        for gone in scheduler_output.finished_req_ids:
            self._requests.pop(gone, None)
        if scheduler_output.total_num_scheduled_tokens:
            self._wait()
        output = self._step(scheduler_output)
        if not non_block:
            return output
        done: Future[ModelRunnerOutput] = Future()
        done.set_result(output)
        return done

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        drafts, self._drafts = self._drafts, None
        return drafts

    def _wait(self) -> None:
        now = time.monotonic()
        if not self._requests:
            self._pace, self._due = Pace.read(os.environ.get(PACE_FILE, "")), now
        self._due += self._pace.step_seconds
        time.sleep(max(0.0, self._due - now))

    def _step(self, scheduled: Any) -> ModelRunnerOutput:
        drafts = scheduled.scheduled_spec_decode_tokens
        rows = {
            name: self._tokens(name, computed + scheduled.num_scheduled_tokens[name], len(drafts.get(name, ())))
            for name, computed in self._computed(scheduled)
        }
        if self.speculative_config is not None:
            sampled = [name for name, row in rows.items() if row]
            self._drafts = DraftTokenIds(sampled, [self._text[:_DRAFTS]] * len(sampled))
        places = {name: place for place, name in enumerate(rows)}
        return ModelRunnerOutput(list(rows), places, list(rows.values()))

    def _computed(self, scheduled: Any) -> Iterator[tuple[str, int]]:
        """Yield each request of the step, and the number of its tokens that were computed before."""
        for new in scheduled.scheduled_new_reqs:
            budget = getattr(new.sampling_params, "thinking_token_budget", None)
            thought = self._pace.thought_tokens if budget is None else min(budget, self._pace.thought_tokens)
            self._requests[new.req_id] = _Request(len(new.prompt_token_ids), thought)
            yield new.req_id, new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)

    def _tokens(self, name: str, computed: int, drafted: int) -> list[int]:
        """Return the request's next tokens; none until its prompt is complete. `computed` counts this step's tokens."""
        request = self._requests[name]
        if computed < request.prompt_tokens + request.sent:
            return []
        count = 1 + min(drafted, 1 + request.steps % 2)
        first = request.sent
        request.sent += count
        request.steps += 1
        return [self._token(request, place) for place in range(first, request.sent)]

    def _token(self, request: _Request, place: int) -> int:
        return int(self._close) if place == request.thought_tokens else int(self._text[place % len(self._text)])
