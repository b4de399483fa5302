"""Tool calls held by a grammar on the real engine: with thoughts and drafts, cut by deaths, and refused at the door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from penstock.engine.base import Engine
from penstock.errors import BadRequest
from penstock.types import (
    EngineRequest,
    EngineStop,
    FinishReason,
    Message,
    Output,
    Request,
    Role,
    Sampling,
    StructuredKind,
    StructuredOutput,
    Tool,
    ToolCallFormat,
    ToolConstraint,
)

from tests.engine.test_constrained_answers import DRAWS, THOUGHTS, DiesTwice, answer
from tests.unit.tool_call_reader import ReadOutput, read

from .conftest import run

JSON, XML = ToolCallFormat.JSON, ToolCallFormat.XML
BOTH = pytest.mark.parametrize("call_format", [JSON, XML], ids=["json", "xml"])
SHORT = {"type": "string", "minLength": 1, "maxLength": 8}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": closed(city={"enum": ["Zürich", "東京", "São Paulo"]}, unit={"type": "string", "enum": ["C", "F"]}),
    "add": closed(
        numbers={
            "type": "array",
            "items": {"type": "integer", "minimum": -50, "maximum": 50},
            "minItems": 1,
            "maxItems": 3,
        },
        exact={"type": "boolean"},
    ),
    "save": closed(
        note=SHORT,
        where=closed(path=SHORT, line={"type": "integer", "minimum": 1, "maximum": 999}),
        tag={"type": ["string", "null"], "enum": ["a", "b", None]},
    ),
    "find": {
        **closed(item={"$ref": "#/$defs/item"}, at={"type": "string", "format": "date"}),
        "$defs": {"item": {"anyOf": [SHORT, {"type": "null"}]}},
    },
    "now": {},
}
TOOLS = {
    name: Tool(name, parameters_json_schema=json.dumps(schema) if schema else "", strict=True)
    for name, schema in SCHEMAS.items()
}


def tools_of(call_format: ToolCallFormat, *names: str, **fields: Any) -> StructuredOutput:
    fields = {"requires_call": True, "max_calls": 1, **fields}
    constraint = ToolConstraint(call_format, tuple(TOOLS[name] for name in names), **fields)
    return StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=constraint)


def read_answer(engine: Engine, tokens: list[int], call_format: ToolCallFormat) -> ReadOutput:
    """The calls behind the thought, read back; they keep the schemas."""
    assert engine.card.markers is not None
    close = engine.card.markers.close_id
    tokens = tokens[tokens.index(close) + 1 :] if close in tokens else tokens
    text = b"".join(map(engine.tokenizer.token_bytes, tokens)).decode()
    output = read(text, call_format, SCHEMAS)
    for name, arguments in output.calls:
        jsonschema.validate(arguments, SCHEMAS[name] or {"maxProperties": 0})
    return output


@BOTH
@pytest.mark.parametrize("thought", [None, 0, 9], ids=["fast", "no thought", "thought"])
async def test_a_required_call_comes_and_keeps_its_schema(
    engine: Engine,
    thinking_prompt: tuple[int, ...],
    fast_prompt: tuple[int, ...],
    request_for: Callable[..., EngineRequest],
    call_format: ToolCallFormat,
    thought: int | None,
) -> None:
    room = asyncio.Semaphore(8)
    prompt = fast_prompt if thought is None else thinking_prompt

    async def one(names: tuple[str, ...], seed: int) -> str:
        structured = tools_of(call_format, *names)
        async with room:
            await engine.check_constraint(structured, "")
            sampling = Sampling(temperature=1.3, seed=seed)
            request = request_for(prompt, 500, sampling=sampling, thought_budget_tokens=thought, structured=structured)
            tokens, chunks = await run(engine, request)
        assert chunks[-1].stop is EngineStop.EOS
        output = read_answer(engine, tokens, call_format)
        assert output.texts == ["", ""]
        ((name, _),) = output.calls
        assert name in names
        return name

    cases = [*((name,) for name in TOOLS), ("weather", "add", "now"), ("add", "save", "find")]
    called = await asyncio.gather(*(one(names, seed) for names in cases for seed in (1, 2)))
    assert set(called) == set(TOOLS)


NOW = {XML: "<tool_call>\n<function=now>\n</function>\n</tool_call>", JSON: ""}
NOW[JSON] = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


async def goes_on(
    engine: Engine, request: EngineRequest, so_far: str, structured: StructuredOutput
) -> tuple[str, EngineStop | None]:
    """The whole answer of a request that continues an answer of `so_far`."""
    await engine.check_constraint(structured, "")
    ids = tuple(engine.tokenizer.encode_text(so_far))
    prompt = request.prompt_token_ids + ids
    tokens, chunks = await run(
        engine, replace(request, prompt_token_ids=prompt, structured=structured, constrained_prompt_tokens=len(ids))
    )
    # Free text need not be valid UTF-8.
    return b"".join(map(engine.tokenizer.token_bytes, (*ids, *tokens))).decode(errors="replace"), chunks[-1].stop


@BOTH
@pytest.mark.parametrize("requires_call", [True, False])
async def test_the_maximum_of_calls_is_kept(
    engine: Engine,
    fast_prompt: tuple[int, ...],
    request_for: Callable[..., EngineRequest],
    call_format: ToolCallFormat,
    requires_call: bool,
) -> None:
    structured = tools_of(call_format, "now", "weather", requires_call=requires_call, max_calls=3)
    so_far = "\n".join([NOW[call_format], NOW[call_format], "<tool_call>"])
    for seed in (1, 2, 3):
        request = request_for(fast_prompt, 400, sampling=Sampling(temperature=2.0, seed=seed))
        text, stop = await goes_on(engine, request, so_far, structured)
        assert stop is EngineStop.EOS
        output = read(text, call_format, SCHEMAS)
        assert output.texts == ["", "\n", "\n", ""]
        for name, arguments in output.calls:
            jsonschema.validate(arguments, SCHEMAS[name] or {"maxProperties": 0})


@BOTH
@pytest.mark.parametrize("max_calls", [1, None])
async def test_a_call_that_the_model_begins_is_completed(
    engine: Engine,
    fast_prompt: tuple[int, ...],
    request_for: Callable[..., EngineRequest],
    call_format: ToolCallFormat,
    max_calls: int | None,
) -> None:
    """The demo model calls no tool by itself: a continuation stands for an answer that began one."""
    structured = tools_of(call_format, "save", "weather", requires_call=False, max_calls=max_calls)
    free, _ = await goes_on(engine, request_for(fast_prompt, 60), "", structured)
    assert read(free, call_format, SCHEMAS).calls == []
    request = request_for(fast_prompt, 300, sampling=Sampling(temperature=1.3, seed=5))
    text, stop = await goes_on(engine, request, "Let me see. <tool_call>\n", structured)
    call, end, after = text.partition("</tool_call>")
    output = read(call + end, call_format, SCHEMAS)
    assert output.texts == ["Let me see. ", ""]
    ((name, arguments),) = output.calls
    jsonschema.validate(arguments, SCHEMAS[name])
    if max_calls == 1:
        assert (after, stop) == ("", EngineStop.EOS)


@BOTH
@pytest.mark.parametrize("draw", DRAWS)
async def test_a_call_goes_on_after_engine_deaths(engine: Engine, call_format: ToolCallFormat, draw: str) -> None:
    request = Request(
        messages=(Message(Role.USER, "What is 48 + 27 + 36?"),),
        thinking=THOUGHTS["fast"],
        sampling=DRAWS[draw],
        output=Output(structured=tools_of(call_format, "save"), max_tokens=200),
    )
    dies = DiesTwice(engine)
    text, end = await answer(dies, request)
    assert end.finish_reason is FinishReason.STOP
    ((_, arguments),) = read(text, call_format, SCHEMAS).calls
    jsonschema.validate(arguments, SCHEMAS["save"])
    prefixes = [request.constrained_prompt_tokens for request in dies.requests]
    assert len(prefixes) == 3
    assert prefixes[0] == 0 < prefixes[1] < prefixes[2]
    if draw == "greedy":
        assert (await answer(engine, request))[0] == text


@BOTH
async def test_a_tool_that_costs_too_much_is_refused_by_its_field(engine: Engine, call_format: ToolCallFormat) -> None:
    bomb = "^([a-z]{1,9000}){1,9000}$"
    costly = Tool("f", parameters_json_schema=json.dumps(closed(a={"type": "string", "pattern": bomb})), strict=True)
    alone = ToolConstraint(call_format, (costly,), True, 1, indexes=(2,))
    for constraint, field in (
        (alone, "spec.tools[2].parameters_json_schema"),
        (replace(alone, tools=(costly, replace(costly, name="g")), indexes=(2, 3)), "spec.tools"),
    ):
        with pytest.raises(BadRequest) as raised:
            await engine.check_constraint(StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=constraint), "costly")
        (violation,) = raised.value.violations
        assert (violation.field, violation.reason) == (field, "LIMIT_EXCEEDED")
    await engine.check()


def test_the_markers_of_calls_are_written_as_the_tokens_that_the_vocabulary_has_for_them(engine: Engine) -> None:
    """Qwen's vocabulary has them, this model's has not."""
    import xgrammar
    from penstock.config.schema import DEMO_MODEL_DIR
    from penstock.engine.vllm.compat.plain_text import text_tokens
    from penstock.engine.vllm.constraints.tool_calls import structural_tag
    from transformers import AddedToken, AutoTokenizer

    def allowed(written: str, *, special: bool) -> set[int]:
        tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_DIR)
        markers = ["<tool_call>", "</tool_call>"]
        tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in markers])
        compiler = xgrammar.GrammarCompiler(text_tokens(tokenizer, len(tokenizer)), max_threads=1)
        constraint = tools_of(XML, "save").tool_calls
        assert constraint is not None
        matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(structural_tag(constraint)))
        assert matcher.accept_string(written)
        mask = xgrammar.allocate_token_bitmask(1, len(tokenizer))
        matcher.fill_next_token_bitmask(mask, 0)
        bits = int.from_bytes(mask[0].numpy().tobytes(), "little")
        return {place for place, name in enumerate(markers) if bits >> tokenizer.convert_tokens_to_ids(name) & 1}

    in_value = "<tool_call>\n<function=save>\n<parameter=note>\nx"
    rest = '\n</parameter>\n<parameter=where>\n{"path":"x","line":1}\n</parameter>\n<parameter=tag>\na\n</parameter>\n'
    assert allowed("", special=False) == {0}
    assert allowed(in_value, special=False) == set()
    assert allowed(f"{in_value}{rest}</function>\n", special=False) == {1}
    assert allowed("", special=True) == set()  # such a token is no text, so it would be lost
