"""Continue a constrained answer: its grammar starts after the tokens of the answer that the prompt contains.

For vLLM 0.32.0, whose grammar knows only the tokens that a request samples itself. A continuation would repeat the
answer from its start, and a sampled answer would differ from the first one.
"""

from __future__ import annotations

from typing import Any

PREFIX_TOKENS = "penstock_constraint_prefix_tokens"
"""Key in `SamplingParams.extra_args`: how many of the prompt's last tokens the constraint covers."""


class PrefixRejectedError(ValueError):
    """The constraint does not allow the tokens that the prompt ends with."""


def advance_over_prefix() -> None:
    """Advance a request's new grammar over the last tokens of its prompt, in the thread that compiled it.

    Upstream: vllm/v1/structured_output/__init__.py `StructuredOutputManager._create_grammar`.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    create = StructuredOutputManager._create_grammar
    if hasattr(create, "__wrapped__"):
        return

    def create_grammar(self: Any, request: Any) -> Any:
        """Create the grammar and advance it over the prefix. Raise PrefixRejectedError."""
        grammar = create(self, request)
        for token_id in _prefix(request):
            # One by one: each token gets the time budget that it had when it was sampled (compat.slow_grammars).
            if not grammar.accept_tokens(request.request_id, [token_id]):
                raise PrefixRejectedError(f"the constraint does not allow the answer of {request.request_id} so far")
        return grammar

    create_grammar.__wrapped__ = create  # type: ignore[attr-defined]
    StructuredOutputManager._create_grammar = create_grammar


def _prefix(request: Any) -> list[int]:
    arguments = request.sampling_params.extra_args if request.sampling_params is not None else None
    count = (arguments or {}).get(PREFIX_TOKENS, 0)
    return list(request.prompt_token_ids[-count:]) if count else []
