"""End a thought in the engine where the model gives the closing marker at least a certain probability. For vLLM 0.32.0.

The service can do so itself (`generation.output_parser`), from the log probabilities of the most likely tokens. It then
starts another run, which computes prompt and thought again, and a token at 0.05 may be the twentieth. Here the marker
is forced in the step that finds it likely, as vLLM forces it at the budget: nothing is computed twice, and the drafts
behind that place are rejected like others.

vLLM takes no logits processors beside speculative decoding on Model Runner V1 (v1/sample/logits_processor/__init__.py),
so its own processor of thinking budgets is extended (v1/sample/thinking_budget_state.py, `ThinkingBudgetStateHolder`),
which knows drafts, moves and async placeholders. Model Runner V2, which GPUs get, has no such holder: there the service
ends the thought.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

EXIT = "penstock_marker_exit"
"""Key in `SamplingParams.extra_args`: the log probability, and the first place of the thought in prompt and output."""
_FORCED = 1e9  # vLLM's own value at a budget
_IN_FLIGHT = 32

_line_ends: frozenset[int] = frozenset()


def extend_thinking_budget() -> None:
    """Let vLLM's holder of thinking budgets read `EXIT`, too."""
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

    synchronize, apply = Holder.sync_batch, Holder.apply_to_logits
    if hasattr(apply, "__wrapped__"):
        return

    def sync_batch(self: Any, batch_update: Any) -> None:
        """Keep the exit of each new request with its budget's state, which moves with the request."""
        synchronize(self, batch_update)
        for _, params, _, output in batch_update.added if batch_update else ():
            if asked := (params.extra_args or {}).get(EXIT):
                # By its list of tokens: the same update may have moved the request to another row.
                for state in self._state.values():
                    if state["output_tok_ids"] is output:
                        state[EXIT] = _Exit(*asked)

    def apply_to_logits(self: Any, logits: Any, predict_bonus_token: bool, spec_token_ids: Any) -> Any:
        """Force what the budgets force, then the marker in the rows behind a line where it is likely enough."""
        logits = apply(self, logits, predict_bonus_token, spec_token_ids)
        rows, thresholds = _rows(self, predict_bonus_token)
        return _force(logits, rows, thresholds, self.think_end_token_ids[0]) if rows else logits

    sync_batch.__wrapped__ = synchronize  # type: ignore[attr-defined]
    apply_to_logits.__wrapped__ = apply  # type: ignore[attr-defined]
    Holder.sync_batch, Holder.apply_to_logits = sync_batch, apply_to_logits


def end_thoughts_behind(runner: Any, line_ends: Collection[int]) -> bool:
    """Take the ids of the tokens that end a line. Return whether this model runner reads `EXIT`."""
    global _line_ends
    _line_ends = frozenset(line_ends)
    holder = getattr(getattr(runner, "input_batch", None), "thinking_budget_state_holder", None)
    # With a closing message the marker alone would not end the thought as it should.
    return holder is not None and holder.is_enabled and len(holder.think_end_token_ids) == 1


class _Exit:
    """The exit of one request. `start` is the thought's first place in prompt and output together."""

    def __init__(self, logprob: float, start: int) -> None:
        self.logprob = logprob
        self._start = start
        self._is_over = False
        self._read = 0

    def may_follow(self, prompt: Sequence[int], output: Sequence[int], drafts: Sequence[int], close_id: int) -> bool:
        """Return whether these tokens are a thought that ends with a line of its own."""
        # The output only grows, but for a few places that steps in flight have taken. A thought that ended stays so.
        self._is_over = self._is_over or close_id in output[self._read :]
        self._read = max(0, len(output) - _IN_FLIGHT)
        if self._is_over or close_id in drafts or len(prompt) + len(output) + len(drafts) <= self._start:
            return False
        return (drafts or output or prompt)[-1] in _line_ends


def _rows(holder: Any, predicts_bonus: bool) -> tuple[list[int], list[float]]:
    """Return the rows of the logits behind a line of a thought, each with its least log probability.

    The rows of a request are its own (without drafts), that behind all drafts (`predicts_bonus`), or those behind none,
    one, and so on of its drafts.
    """
    rows, least = [], []
    for index, state in holder._state.items():
        found, first = state.get(EXIT), holder.cu_num_tokens.get(index)
        if found is None or first is None:
            continue
        drafts = state["spec_token_ids"] if holder.in_spec_mode else []
        prompt, output = state["prompt_tok_ids"] or [], state["output_tok_ids"]
        for row, count in _places(first, len(drafts), has_drafts=holder.in_spec_mode, predicts_bonus=predicts_bonus):
            if found.may_follow(prompt, output, drafts[:count], holder.think_end_token_ids[0]):
                rows.append(row)
                least.append(found.logprob)
    return rows, least


def _places(first: int, drafts: int, *, has_drafts: bool, predicts_bonus: bool) -> Iterator[tuple[int, int]]:
    """Yield each row with the number of drafts before it."""
    if predicts_bonus or not has_drafts:
        yield first, drafts
    else:
        yield from ((first + count, count) for count in range(drafts))


def _force(logits: Any, rows: list[int], least: list[float], close_id: int) -> Any:
    import torch
    from vllm.utils.torch_utils import async_tensor_h2d

    at = async_tensor_h2d(rows, dtype=torch.long, device=logits.device)
    bounds = async_tensor_h2d(least, dtype=torch.float32, device=logits.device)
    likely = logits[at].float().log_softmax(-1)[:, close_id] >= bounds
    forced = logits[at, close_id].masked_fill(likely, _FORCED)
    return logits.index_put_((at, torch.full_like(at, close_id)), forced)
