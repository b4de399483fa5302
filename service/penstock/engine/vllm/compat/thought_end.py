"""End a thought at its closing marker alone, for the constraint that begins behind it.

For vLLM 0.32.0, whose parser for Qwen3 ends a thought at `<tool_call>`, too. A model may write that token in a thought
about tools. Where none may be called, the thought goes on there, but vLLM would hold it to the constraint of the
answer, and fail the request at the next token that this does not allow. Where tools may be called, the service closes
the thought in front of the call itself (`generation.output_parser`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.parser.engine.adapters import make_adapters
from vllm.parser.engine.parser_engine_config import ParserState
from vllm.parser.qwen3 import Qwen3Parser, qwen3_config
from vllm.reasoning import ReasoningParserManager

NAME = "penstock_qwen3"
"""What vLLM's `reasoning_parser` names it."""


class ThoughtParser(Qwen3Parser):  # type: ignore[misc] # vLLM's types are not followed
    """vLLM's parser for Qwen3, in which `<tool_call>` is part of a thought."""

    def __init__(self, tokenizer: Any, tools: Any = None, **kwargs: Any) -> None:
        """Take vLLM's own arguments."""
        config = qwen3_config(turn_boundary_tokens=self.TURN_BOUNDARIES)
        begins_call = (ParserState.REASONING, "TOOL_START")
        transitions = {at: transition for at, transition in config.transitions.items() if at != begins_call}
        super().__init__(tokenizer, tools, parser_engine_config=replace(config, transitions=transitions), **kwargs)


ThoughtReasoningParser, _ = make_adapters(ThoughtParser)


def register() -> None:
    """Make the parser known to vLLM by its name."""
    ReasoningParserManager.register_module(NAME, module=ThoughtReasoningParser)
