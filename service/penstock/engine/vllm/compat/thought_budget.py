"""Keep the budget of a thought with its own request. For vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


def forget_overwritten_rows() -> None:
    """Let a request without a thought budget move to a row whose request had one; otherwise it inherits that budget.

    Model Runner V1 keeps the budget's state by row. Where a request ends, the last request of the batch moves to its
    row, and the state there is replaced only by a state that moves with it. So the engine counts the tokens of an
    answer as those of the ended thought and at the budget forces `</think>`, after every mask: the answer contains the
    marker, and a constraint is broken.
    Upstream: vllm/v1/sample/thinking_budget_state.py `ThinkingBudgetStateHolder.sync_batch`, which clears both rows of
    a swap but not the target of a move; vllm/v1/sample/logits_processor/builtin.py `process_dict_updates` does.
    """
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

    original = Holder.sync_batch
    if hasattr(original, "__wrapped__"):
        return

    def sync_batch(self: Any, batch_update: Any) -> None:
        """Forget the states of rows that a request moves to, then apply the update."""
        for _, target, direction in batch_update.moved if batch_update else ():
            # Its request ended in this step, and no new request took the row: only then a request moves there.
            if direction is MoveDirectionality.UNIDIRECTIONAL:
                self._state.pop(target, None)
        original(self, batch_update)

    sync_batch.__wrapped__ = original  # type: ignore[attr-defined]
    Holder.sync_batch = sync_batch
