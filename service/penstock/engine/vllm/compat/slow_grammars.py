"""End requests whose constraint delays all others: the engine computes each mask within the step that all share.

For vLLM 0.32.0, which limits only the time to compile a regular expression: `root ::= root root | "a"` compiles at once
and costs 60 ms per token after 300 tokens. The trial before a request (`engine.vllm.constraints`) finds costs that show
within some hundred tokens; a request with later ones is ended here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from penstock.engine.vllm.constraints.mask_budget import MaskTimeBudget

TOO_SLOW = "penstock:constraint_too_slow"
"""`stop_reason` of a request that was ended here."""


def end_slow_requests() -> None:
    """End a request whose masks cost more than `MaskTimeBudget` allows, with an error.

    The scheduler reports FINISHED_ERROR, as for a token that the grammar does not allow; `TOO_SLOW` distinguishes the
    two.
    Upstream: vllm/v1/structured_output/backend_xgrammar.py `XgrammarGrammar`.
    """
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    if hasattr(XgrammarGrammar.fill_bitmask, "__wrapped__"):
        return
    accept, validate, fill = (
        XgrammarGrammar.accept_tokens,
        XgrammarGrammar.validate_tokens,
        XgrammarGrammar.fill_bitmask,
    )
    accept_all = StructuredOutputManager.accept_tokens

    def accept_tokens(self: Any, request_id: str, tokens: list[int]) -> bool:
        """Advance the grammar; refuse all tokens once the budget is spent."""
        accepted = _timed(self, accept, self, request_id, tokens)
        return bool(accepted) and not _mask_budget(self).is_over

    def validate_tokens(self: Any, tokens: list[int]) -> list[int]:
        """Return the allowed drafts; none once the budget is spent."""
        return [] if _mask_budget(self).is_over else _timed(self, validate, self, tokens)

    def fill_bitmask(self: Any, bitmask: Any, idx: int) -> None:
        """Fill the mask; allow any token once the budget is spent."""
        if _mask_budget(self).is_over:
            bitmask[idx].fill_(-1)  # The request ends with its next token, so any token will do.
        else:
            _timed(self, fill, self, bitmask, idx)

    def accept_of_request(self: Any, request: Any, new_token_ids: list[int]) -> bool:
        """Advance the request's grammar; mark a request that spent its budget with `TOO_SLOW`."""
        accepted = bool(accept_all(self, request, new_token_ids))
        if not accepted and _mask_budget(request.structured_output_request.grammar).is_over:
            request.stop_reason = TOO_SLOW
        return accepted

    fill_bitmask.__wrapped__ = fill  # type: ignore[attr-defined]
    StructuredOutputManager.accept_tokens = accept_of_request
    XgrammarGrammar.accept_tokens, XgrammarGrammar.fill_bitmask = accept_tokens, fill_bitmask
    XgrammarGrammar.validate_tokens = validate_tokens
    for name in ("vllm.v1.core.sched.scheduler", "vllm.v1.structured_output.backend_xgrammar"):
        logging.getLogger(name).addFilter(_without_tokens)
    logging.getLogger("vllm.v1.structured_output").addFilter(_without_draft)


def _timed(grammar: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    began = time.thread_time()
    result = function(*arguments)
    _mask_budget(grammar).spend(time.thread_time() - began)
    return result


def _mask_budget(grammar: Any) -> MaskTimeBudget:
    budget: MaskTimeBudget | None = grammar.__dict__.get("penstock_mask_budget")
    if budget is None:
        budget = grammar.penstock_mask_budget = MaskTimeBudget()
    return budget


def _without_tokens(record: logging.LogRecord) -> bool:
    """Remove refused tokens from vLLM's log records: they are the model's output, which is never logged."""
    if "tokens %s" in str(record.msg) and isinstance(record.args, tuple):
        record.args = tuple("(not logged)" if isinstance(given, int | list) else given for given in record.args)
    return True


def _without_draft(record: logging.LogRecord) -> bool:
    if "draft token %s" in str(record.msg).replace("\n", " ") and isinstance(record.args, tuple):
        record.args = ("(not logged)", *record.args[1:])
    return True
