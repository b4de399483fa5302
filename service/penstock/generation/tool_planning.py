"""Plan tool calls: how many there may be, which grammar holds them, and what reads them."""

from __future__ import annotations

from dataclasses import replace

from penstock.config.schema import LimitSettings
from penstock.engine.base import Tokenizer
from penstock.generation.tool_calls import ToolCallParser
from penstock.types import (
    GenerationPlan,
    ModelCard,
    Request,
    StructuredKind,
    StructuredOutput,
    ToolConfig,
    ToolConstraint,
    ToolMode,
)


def max_tool_calls(request: Request, limits: LimitSettings) -> int:
    """Return how many tool calls a candidate may make; 0 for none."""
    config = request.tools
    if not config.callable_tools:
        return 0
    return limits.max_tool_calls if config.max_calls is None else config.max_calls


def needs_grammar(config: ToolConfig) -> bool:
    """Return whether a grammar must hold the calls: their schemas, that there is one, or which names are allowed."""
    tools = config.callable_tools
    if not tools:
        return False
    if config.mode is not ToolMode.AUTO:
        return True
    return len(tools) < len(config.tools) or any(tool.strict for tool in tools)


def constraint_of(request: Request, card: ModelCard) -> StructuredOutput | None:
    """Return what constrains the answer: the caller's structured output, or the grammar of its tool calls."""
    config = request.tools
    if not needs_grammar(config) or card.tool_call_format is None:
        return request.output.structured
    tools = config.callable_tools
    names = {tool.name for tool in tools}
    indexes = tuple(index for index, tool in enumerate(config.tools) if tool.name in names)
    if config.mode is not ToolMode.AUTO:
        tools = tuple(replace(tool, strict=True) for tool in tools)
    requires_call = config.mode is ToolMode.REQUIRED
    constraint = ToolConstraint(card.tool_call_format, tools, requires_call, config.max_calls, indexes)
    return StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=constraint)


def tool_call_parser(plan: GenerationPlan, card: ModelCard) -> ToolCallParser | None:
    """Return what reads the tool calls of an output; None where none may be made."""
    if not plan.max_tool_calls or card.tool_call_format is None:
        return None
    return ToolCallParser(card.tool_call_format, plan.request.tools.tools, plan.max_tool_calls)


def tool_call_token(tokenizer: Tokenizer) -> int | None:
    """Return the token that begins a tool call; None in vocabularies that spell it in several tokens.

    There a call inside a thought cannot be told from a thought about calls, and is part of the thought.
    """
    ids = tokenizer.encode("<tool_call>")
    return ids[0] if len(ids) == 1 else None
