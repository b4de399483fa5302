"""Convert constraints into what the compiler reads as the caller means it, and refusals into errors."""

from __future__ import annotations

from collections.abc import Callable

from penstock.engine.regex_syntax import RefusedRegexError
from penstock.engine.vllm.constraints.json_schema import RefusedSchemaError, rewritten
from penstock.engine.vllm.constraints.regex import translate
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.engine.vllm.constraints.tool_calls import field_of_all, structural_tag
from penstock.errors import BadRequest, FieldReason, FieldViolation
from penstock.types import StructuredKind, StructuredOutput

GrammarOf = Callable[[StructuredOutput], tuple[str, str]]
"""Returns kind (as in `sandbox_process`) and text of a constraint as vLLM's backend compiles it. Raises BadRequest."""


def field_of(structured: StructuredOutput) -> str:
    """Return the API field of a constraint; of one on tool calls the tool's schema, or all tools."""
    if structured.tool_calls is not None:
        return field_of_all(structured.tool_calls)
    return f"spec.output.{'choices' if structured.choices else structured.kind.value}"


def refusal(structured: StructuredOutput, verdict: int, seconds: float) -> BadRequest:
    """Return the error for a caller whose constraint is refused; `seconds` is the maximum time of a trial."""
    reason: FieldReason
    match verdict:
        case SandboxResult.MALFORMED:
            reason, why = "INVALID_FIELD", "the constraint cannot be compiled"
        case SandboxResult.DEAD_END:
            reason = "INVALID_FIELD"
            why = "some text that the constraint allows cannot be completed, or it allows no text at all"
        case _:
            reason = "LIMIT_EXCEEDED"
            why = (
                f"the constraint is too costly: compiling it takes more than {seconds:g} s or far too much memory, or "
                "it delays every token; make it smaller or less ambiguous"
            )
    return BadRequest(FieldViolation(field_of(structured), why, reason))


def compiled_text(structured: StructuredOutput) -> str:
    """Return a JSON schema, regular expression or grammar in the form that the compiler reads as the caller means it.

    Of tool calls it is a structural tag. Raise BadRequest that names the keyword or part which the compiler does not
    enforce.
    """
    if structured.tool_calls is not None:
        return structural_tag(structured.tool_calls)
    try:
        match structured.kind:
            case StructuredKind.JSON_SCHEMA:
                return rewritten(structured.spec)
            case StructuredKind.REGEX:
                return translate(structured.spec)
            case _:
                return structured.spec
    except (RefusedSchemaError, RefusedRegexError) as error:
        raise BadRequest(FieldViolation(field_of(structured), str(error), "INVALID_FIELD")) from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise refusal(structured, SandboxResult.MALFORMED, 0.0) from error


def grammar_of(structured: StructuredOutput) -> tuple[str, str]:
    """Return kind and text of a constraint for the xgrammar backend. See `GrammarOf`."""
    from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

    match structured.kind:
        case StructuredKind.JSON_SCHEMA:
            return "json", compiled_text(structured)
        case StructuredKind.REGEX:
            return "regex", compiled_text(structured)
        case StructuredKind.GRAMMAR:
            return "lark" if grammar_is_likely_lark(structured.spec) else "ebnf", structured.spec
        case StructuredKind.CHOICE:
            return "ebnf", choice_as_grammar(list(structured.choices))
        case StructuredKind.TOOL_CALLS:
            return "structural_tag", compiled_text(structured)
