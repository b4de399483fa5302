"""Tools through both clients: typed events, the history, the loop of `run`, and what it must never execute."""

from __future__ import annotations

import asyncio
import builtins
import functools
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import grpc
import penstock_client as pc
import pydantic
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from penstock_client import tracing
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.fake_service import ANSWER, FakeService, calling, events, numbered, status, tool_call, until

INCOMPLETE = pb.TOOL_CALL_STATUS_INCOMPLETE


@pytest.fixture
def target(served: tuple[FakeService, str], fake: FakeService) -> str:
    return served[1]


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest, target: str) -> Callable[..., pc.Run]:
    """`client.run` by either client."""

    def by_sync(*args: Any, **options: Any) -> pc.Run:
        with pc.Client(target) as client:
            return client.run(*args, **options)

    def by_async(*args: Any, **options: Any) -> pc.Run:
        async def running() -> pc.Run:
            async with pc.AsyncClient(target) as client:
                return await client.run(*args, **options)

        return asyncio.run(running())

    return by_sync if request.param == "sync" else by_async


class Thermometer:
    """A tool that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.tool = pc.tool(self.warmth)

    def warmth(self, city: str, days: int = 1) -> dict[str, Any]:
        """Return the temperature in a city."""
        self.calls.append((city, days))
        return {"city": city, "celsius": 21}


@pytest.fixture
def thermometer() -> Thermometer:
    return Thermometer()


def results_of(message: pb.Message) -> list[tuple[str, str, bool]]:
    parts = [part.tool_result for part in message.parts]
    return [(one.call_id, "".join(text.text for text in one.content), one.is_error) for one in parts]


def test_events_of_calls_are_typed_and_the_reply_grows(target: str, fake: FakeService) -> None:
    fake.script = list(calling(tool_call("warmth", '{"city": "Oslo"}'), tool_call("now", "{}", 1), thought="hm"))
    with pc.Client(target) as client, client.stream("hi") as stream:
        seen, states = [], []
        for event in stream:
            seen.append(event)
            states.append([(call.name, call.arguments_json, str(call.status)) for call in stream.response.tool_calls])
    kinds = [pc.ToolCallStarted, pc.ToolCallArguments, pc.ToolCallArguments, pc.ToolCallFinished]
    assert [type(event) for event in seen] == [pc.Started, pc.ThoughtDelta, *kinds, *kinds, pc.Finished]
    fragments = [one.json_fragment for one in seen if isinstance(one, pc.ToolCallArguments) and one.call_index == 0]
    assert "".join(fragments) == '{"city": "Oslo"}'
    assert states[2:6] == [
        [("warmth", "", "incomplete")],
        [("warmth", '{"city":', "incomplete")],
        [("warmth", '{"city": "Oslo"}', "incomplete")],
        [("warmth", '{"city": "Oslo"}', "complete")],
    ]
    reply = stream.response
    assert reply.finish_reason is pc.FinishReason.TOOL_CALLS
    assert [call.arguments for call in reply.tool_calls] == [{"city": "Oslo"}, {}]
    assert (reply.candidates[0].tool_tokens, reply.usage.tool_tokens if reply.usage else 0) == (16, 16)
    with pc.Client(target) as client:
        assert list(client.stream("hi").text()) == [], "calls are no text"


def test_a_unary_reply_has_its_calls(target: str, fake: FakeService) -> None:
    calls = [tool_call("warmth", '{"city": "Oslo"}'), tool_call("now", '{"zo', 1, INCOMPLETE)]
    fake.candidate = pb.Candidate(thought="hm", answer="", tool_calls=calls)
    with pc.Client(target) as client:
        reply = client.generate("hi")
    assert [call.status for call in reply.tool_calls] == ["complete", "incomplete"]
    assert reply.message.parts == (
        pc.ThoughtPart("hm"),
        pc.ToolCall("call-0", "warmth", '{"city": "Oslo"}'),
        pc.ToolCall("call-1", "now", "{}"),
    )
    with pytest.raises(ValueError, match="Unterminated string"):
        _ = reply.tool_calls[1].arguments
    for wrong in ("[]", '{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"no JSON object|too deep"):
            _ = pc.ToolCall("c", "f", wrong).arguments


def test_a_conversation_takes_calls_and_results(target: str, fake: FakeService) -> None:
    fake.scripts = [list(calling(tool_call("warmth", "{}"), thought="hm"))]
    talk = pc.Conversation("s")
    with pc.Client(target) as client:
        stream = client.stream(talk.ask("one"))
        list(stream)
        talk.add(stream.response).add_results(pc.ToolResult("call-0", "21"))
        stream = client.stream(talk)
        list(stream)
        talk.add(stream.response)
    sent = fake.requests[-1].spec.messages.messages
    assert [message.role for message in sent] == [pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]
    assert [part.WhichOneof("part") for part in sent[2].parts] == ["thought", "tool_call"]
    assert results_of(sent[3]) == [("call-0", "21", False)]
    assert talk[-1] == pc.Message("assistant", "".join(ANSWER)), "the thought of an answer is not kept"
    assert pc.Conversation(keep_thoughts=True).add(stream.response)[0].parts, "unless it is wanted"


def test_run_executes_calls_until_there_is_an_answer(run: Any, fake: FakeService, thermometer: Thermometer) -> None:
    first = tool_call("warmth", '{"city": "Oslo", "days": "2"}'), tool_call("warmth", '{"city": "Rome"}', 1)
    fake.scripts = [list(calling(*first, thought="hm"))]
    seen: list[Any] = []
    done = run(
        "How warm?",
        tools=[thermometer.tool],
        tool_mode="required",
        history="current_turn",
        on_event=lambda event: seen.append(event),
        on_result=lambda call, result: seen.append((call.id, result)),
    )
    assert thermometer.calls == [("Oslo", 2), ("Rome", 1)], "in the order of the calls, arguments converted"
    assert done.answer == done.reply.answer == "".join(ANSWER)
    asked, answered = [request.spec for request in fake.requests]
    assert [tool.name for tool in answered.tools] == ["warmth"]
    assert json.loads(asked.tools[0].parameters_json_schema)["required"] == ["city"]
    assert (asked.tool_config.mode, answered.tool_config.mode) == (pb.TOOL_MODE_REQUIRED, pb.TOOL_MODE_VALIDATED)
    user, assistant, results = answered.messages.messages
    assert (user.content, assistant.role) == ("How warm?", pb.ROLE_ASSISTANT)
    assert [part.WhichOneof("part") for part in assistant.parts] == ["thought", "tool_call", "tool_call"]
    assert results_of(results) == [
        ("call-0", '{"city":"Oslo","celsius":21}', False),
        ("call-1", '{"city":"Rome","celsius":21}', False),
    ]
    assert len(done.turns) == 2
    assert (done.usage.prompt_tokens, done.usage.tool_tokens, done.usage.drafted_tokens) == (40 + 31, 16, None)
    assert done.cost is not None
    assert done.cost.usd == 2 * Decimal("0.0000231")
    assert [entry[0] for entry in seen if isinstance(entry, tuple)] == ["call-0", "call-1"]
    assert sum(isinstance(entry, pc.Finished) for entry in seen) == 2
    assert [pc.build_spec([message]).messages.messages[0].role for message in done.messages] == [
        pb.ROLE_USER,
        pb.ROLE_ASSISTANT,
        pb.ROLE_TOOL,
        pb.ROLE_ASSISTANT,
    ]


def test_what_must_not_be_executed_is_answered(run: Any, fake: FakeService, thermometer: Thermometer) -> None:
    secret = pc.tool(name="secret", parameters={"type": "object"})(lambda: thermometer.calls.append(("secret", 0)))
    fake.scripts = [
        list(
            calling(
                tool_call("nothing", "{}"),
                tool_call("warmth", '{"town": "Oslo"}', 1),
                tool_call("secret", "{}", 2),
                tool_call("warmth", '{"city": "Os', 3, INCOMPLETE),
            )
        )
    ]
    done = run("hi", tools=[thermometer.tool, secret], allowed_tools=["warmth"])
    assert thermometer.calls == []
    sent = fake.requests[-1].spec.messages.messages
    texts = [text for _, text, is_error in results_of(sent[-1]) if is_error]
    assert texts == [
        "no such tool, not executed; the tools are: warmth",
        "invalid arguments, not executed: city: Field required; town: Unexpected keyword argument",
        "no such tool, not executed; the tools are: warmth",
        "the call was cut before its end, and was not executed",
    ]
    assert [part.tool_call.arguments_json for part in sent[-2].parts][-1] == "{}"
    assert done.answer
    nested = pc.tool(lambda: thermometer.calls.append(("nested", 0)))
    fake.scripts = [list(calling(tool_call("<lambda>", '{"a":' * 50_000)))]
    assert run("hi", tools=[nested]).answer, "the model's arguments end no run, however deep they are"
    assert thermometer.calls == []
    fake.scripts = [list(calling(tool_call("warmth", '{"city": "Oslo"}')))]
    run("hi", tools=[thermometer.tool], tool_mode="none")
    assert thermometer.calls == [], "NONE is no permission"


def test_the_text_of_an_exception_stays_here(run: Any, fake: FakeService, caplog: Any) -> None:
    def result(error: Exception, **options: Any) -> tuple[str, str, bool]:
        @pc.tool
        def fails() -> str:
            raise error

        fake.scripts = [list(calling(tool_call("fails", "{}")))]
        run("hi", tools=[fails], **options)
        [told] = results_of(fake.requests[-1].spec.messages.messages[-1])
        return told

    secret = ValueError("postgres://user:secret@db")
    assert result(secret) == ("call-0", "the tool failed: ValueError", True)
    assert result(StopIteration("secret")) == ("call-0", "the tool failed: StopIteration", True)
    assert result(pc.ToolError("no city 'Olso'")) == ("call-0", "no city 'Olso'", True)
    assert result(secret, on_tool_error=lambda call, error: f"{call.name}: {error}") == (
        "call-0",
        f"fails: {secret}",
        True,
    )
    assert "secret" not in caplog.text
    assert "a tool failed: ValueError" in caplog.text

    def ends(call: pc.ToolCall, error: Exception) -> str:
        raise error

    with pytest.raises(ValueError, match="secret"):
        result(secret, on_tool_error=ends)


def test_a_value_that_is_no_json_is_an_error_result(run: Any, fake: FakeService) -> None:
    @pc.tool
    def strange() -> object:
        return object()

    fake.scripts = [list(calling(tool_call("strange", "{}")))]
    run("hi", tools=[strange])
    [(_, text, is_error)] = results_of(fake.requests[-1].spec.messages.messages[-1])
    assert is_error
    assert text.startswith("the tool failed: ")
    assert "0x" not in text


def test_the_limit_of_turns_is_an_error_with_all_turns(run: Any, fake: FakeService, thermometer: Thermometer) -> None:
    fake.script = list(calling(tool_call("warmth", '{"city": "Oslo"}')))
    with pytest.raises(pc.TurnLimitReached, match="after 3 turns") as caught:
        run("hi", tools=[thermometer.tool], max_turns=3)
    assert len(thermometer.calls) == 2, "the last turn's call has nobody to read its result"
    assert caught.value.run is not None
    assert caught.value.run.usage.tool_tokens == 3 * 8
    assert len(caught.value.run.turns) == len(fake.requests) == 3


def test_a_turn_that_fails_leaves_the_turns_before_it(run: Any, fake: FakeService, thermometer: Thermometer) -> None:
    fake.scripts = [list(calling(tool_call("warmth", '{"city": "Oslo"}')))]
    fake.script = [status(grpc.StatusCode.INTERNAL, "no")]
    talk = pc.Conversation().ask("hi")
    with pytest.raises(pc.ServerFault) as caught:
        run(talk, tools=[thermometer.tool])
    assert caught.value.run is not None
    assert len(caught.value.run.turns) == 1
    assert [message.role for message in talk] == ["user", "assistant", "tool"], "the conversation can go on from here"


@pytest.mark.parametrize("after", [2, 4, 5])
def test_no_call_is_executed_twice_over_a_lost_connection(
    run: Any, fake: FakeService, thermometer: Thermometer, after: int
) -> None:
    script: list[Any] = list(calling(tool_call("warmth", '{"city": "Oslo"}')))
    script.insert(after, status(grpc.StatusCode.UNAVAILABLE, "connection reset"))
    fake.scripts = [script]
    seen: list[int] = []
    done = run("hi", tools=[thermometer.tool], on_event=lambda event: seen.append(event.sequence))
    assert thermometer.calls == [("Oslo", 1)]
    assert sum(isinstance(request, pb.ResumeRequest) for request in fake.requests) == 1
    assert seen == [*range(1, 7), *range(1, 10)]
    assert done.answer


def test_tools_that_cannot_be_executed_are_refused_before_anything_is_sent(target: str, fake: FakeService) -> None:
    async def later() -> str:
        return ""

    with pc.Client(target) as client:
        with pytest.raises(TypeError, match="'x' has none"):
            client.run("hi", tools=[pc.Tool("x")])
        with pytest.raises(TypeError, match=r"'later' is async: use AsyncClient\.run"):
            client.run("hi", tools=[later])
        with pytest.raises(ValueError, match="two tools"):
            client.run("hi", tools=[pc.tool(name="x")(lambda: 1), pc.tool(name="x")(lambda: 2)])
        with pytest.raises(ValueError, match="max_turns must be at least 1"):
            client.run("hi", tools=[], max_turns=0)
        with pytest.raises(ValueError, match="remove candidates"):
            client.run("hi", candidates=2)
    assert not fake.requests


async def test_async_tools_run_at_once_and_others_one_by_one(target: str, fake: FakeService) -> None:
    both, inside, most = asyncio.Barrier(2), 0, 0

    @pc.tool
    async def meets() -> str:
        await both.wait()  # nobody returns before two are here
        return "met"

    @pc.tool
    def alone() -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1
        return "alone"

    @pc.tool(name="wrapped")
    @functools.wraps(meets.function)
    def wrapped() -> Any:
        return meets.function()

    names = ("meets", "alone", "alone", "wrapped")
    fake.scripts = [list(calling(*(tool_call(name, "{}", at) for at, name in enumerate(names))))]
    async with pc.AsyncClient(target) as client:
        done = await client.run("hi", tools=[meets, alone, wrapped])
    assert [result.content for result in done.turns[0].results] == ["met", "alone", "alone", "met"]
    assert most == 1


async def test_hooks_of_the_async_client_may_be_async(target: str, fake: FakeService) -> None:
    @pc.tool
    def fails() -> str:
        raise ValueError("secret")

    seen: list[object] = []

    async def on_event(event: pc.Event) -> None:
        await asyncio.sleep(0)
        seen.append(type(event))

    async def on_result(call: pc.ToolCall, result: pc.ToolResult) -> None:
        await asyncio.sleep(0)
        seen.append((call.id, result.content))

    async def on_tool_error(call: pc.ToolCall, error: Exception) -> str:
        await asyncio.sleep(0)
        return f"{call.name} failed"

    script = [list(calling(tool_call("fails", "{}")))]
    fake.scripts = list(script)
    async with pc.AsyncClient(target) as client:
        await client.run("hi", tools=[fails], on_event=on_event, on_result=on_result, on_tool_error=on_tool_error)
        assert ("call-0", "fails failed") in seen
        assert seen.count(pc.Finished) == 2
        fake.scripts = list(script)
        with pytest.raises(TypeError, match="on_tool_error must return a str, got NoneType"):
            await client.run("hi", tools=[fails], on_tool_error=lambda call, error: None)  # type: ignore[arg-type, return-value]


async def test_a_cancelled_task_inside_a_tool_cancels_no_run(target: str, fake: FakeService) -> None:
    @pc.tool
    async def cancels() -> None:
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner

    fake.scripts = [list(calling(tool_call("cancels", "{}")))]
    async with pc.AsyncClient(target) as client:
        done = await client.run("hi", tools=[cancels])
    assert done.turns[0].results == (pc.ToolResult("call-0", "the tool failed: CancelledError", is_error=True),)


def test_text_that_no_message_can_hold_is_replaced(run: Any, fake: FakeService) -> None:
    @pc.tool
    def name() -> str:
        return "a\udcffb"

    fake.scripts = [list(calling(tool_call("name", "{}")))]
    run("hi", tools=[name])
    assert results_of(fake.requests[-1].spec.messages.messages[-1]) == [("call-0", "a?b", False)]


@pytest.mark.slow
async def test_the_deadline_of_a_run_holds_over_tools(target: str, fake: FakeService) -> None:
    ended = asyncio.Event()

    @pc.tool
    async def hangs() -> str:
        try:
            return await asyncio.Event().wait() and ""
        finally:
            ended.set()

    fake.scripts = [list(calling(tool_call("hangs", "{}")))]
    async with pc.AsyncClient(target) as client:
        with pytest.raises(pc.DeadlineExceeded) as caught:
            await client.run("hi", tools=[hangs], timeout=3)
    await ended.wait()
    assert caught.value.metadata == {"thought_tokens": "3", "answer_tokens": "0", "tool_tokens": "8"}


async def test_cancelling_a_run_cancels_its_tools(target: str, fake: FakeService) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @pc.tool
    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    fake.scripts = [list(calling(tool_call("hangs", "{}")))]
    async with pc.AsyncClient(target) as client:
        running = asyncio.create_task(client.run("hi", tools=[hangs]))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await ended.wait()
    assert len(fake.requests) == 1


def test_leaving_a_run_ends_its_stream(target: str, fake: FakeService) -> None:
    fake.hang_after = 3

    def leaves(event: pc.Event) -> None:
        if isinstance(event, pc.ThoughtDelta):
            raise KeyboardInterrupt

    with pc.Client(target) as client, pytest.raises(KeyboardInterrupt):
        client.run("hi", on_event=leaves)
    assert until(lambda: fake.cancelled == 1)


@pytest.fixture
def tool_spans(run: Any, fake: FakeService, thermometer: Thermometer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run two tools, of which one fails, with the content switch at a value; gives their spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert tracing._OTEL is not None
    monkeypatch.setattr(tracing._OTEL[1], "get_tracer", provider.get_tracer)

    @pc.tool
    def fails() -> str:
        raise ValueError("secret")

    def spans(switch: str | None, city: str = "Oslo") -> list[ReadableSpan]:
        monkeypatch.delenv(tracing.CONTENT_SWITCH, raising=False)
        if switch is not None:
            monkeypatch.setenv(tracing.CONTENT_SWITCH, switch)
        arguments = json.dumps({"city": city})
        fake.scripts = [list(calling(tool_call("warmth", arguments), tool_call("fails", "{}", 1)))]
        run("hi", tools=[thermometer.tool, fails])
        return [span for span in exporter.get_finished_spans() if span.name.startswith("execute_tool")]

    return spans


@pytest.mark.parametrize("switch", [None, "", "false", "NO_CONTENT", "EVENT_ONLY", "1"])
def test_tools_have_spans_without_content(tool_spans: Any, switch: str | None) -> None:
    good, bad = tool_spans(switch)
    assert dict(good.attributes or {}) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "warmth",
        "gen_ai.tool.call.id": "call-0",
        "gen_ai.tool.type": "function",
    }
    assert good.name == "execute_tool warmth"
    assert (bad.attributes or {})["error.type"] == "ValueError"
    assert not bad.status.is_ok
    assert "Oslo" not in good.to_json()
    assert "secret" not in bad.to_json()


@pytest.mark.parametrize("switch", ["true", "True", "SPAN_ONLY", "span_and_event"])
def test_spans_of_tools_have_content_where_it_is_switched_on(tool_spans: Any, switch: str) -> None:
    arguments, result = gen_ai_attributes.GEN_AI_TOOL_CALL_ARGUMENTS, gen_ai_attributes.GEN_AI_TOOL_CALL_RESULT
    good, bad = ((span.attributes or {}) for span in tool_spans(switch))
    assert json.loads(str(good[arguments])) == {"city": "Oslo"}
    assert "Oslo" in str(good[result])
    # Of an exception what the model is told of it, and not its text.
    assert (bad[arguments], bad[result]) == ("{}", "the tool failed: ValueError")


def test_the_content_of_a_span_is_bounded(tool_spans: Any) -> None:
    good, _ = tool_spans("true", "x" * 100_000)
    sizes = [len(str(value)) for name, value in (good.attributes or {}).items() if name.startswith("gen_ai.tool.call.")]
    assert max(sizes) == 32_768


class Place(pydantic.BaseModel):
    city: str
    country: str = "NO"


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_is_an_object_of_the_response_format(target: str, fake: FakeService, streamed: bool) -> None:
    def ask(client: pc.Client, answer: str, reason: Any = pb.FINISH_REASON_STOP) -> pc.Response:
        script = [event for event in events() if event.WhichOneof("event") not in ("answer", "thought")]
        script.insert(-1, pb.GenerationEvent(answer=pb.Delta(text=answer, token_count=1)))
        script[-1].finished.results[0].finish_reason = reason
        fake.script = list(numbered(script))
        fake.candidate = pb.Candidate(answer=answer, result=script[-1].finished.results[0])
        if not streamed:
            return client.generate("hi", response_format=Place)
        stream = client.stream("hi", response_format=Place)
        list(stream)
        return stream.response

    with pc.Client(target) as client:
        reply = ask(client, '{"city": "Oslo"}')
        assert reply.parsed == Place(city="Oslo")
        assert reply.parse(dict[str, str]) == {"city": "Oslo"}
        assert json.loads(fake.requests[-1].spec.output.json_schema)["required"] == ["city"]
        cut = ask(client, '{"city": "secr', pb.FINISH_REASON_MAX_OUTPUT_TOKENS)
        with pytest.raises(
            pc.UnparsableAnswer, match="no Place: 1 errors; the output ended by max_output_tokens"
        ) as bad:
            _ = cut.parsed
        assert len(bad.value.errors) == 1
        assert "secr" not in str(bad.value) + str(bad.value.errors)
        with pytest.raises(ValueError, match="no response_format"):
            _ = client.generate("hi").parsed


def test_without_pydantic_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pydantic", "pydantic_core")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] in ("pydantic", "pydantic_core"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)

    def plain(city: str) -> str:
        return city

    for use in (lambda: pc.tool(plain), lambda: pc.build_spec("hi", response_format=Place)):
        with pytest.raises(ImportError, match=r"pip install 'penstock-client\[tools\]'"):
            use()
    by_schema = pc.tool(parameters={"type": "object"})(plain)
    assert by_schema.arguments_of('{"city": "Oslo"}') == {"city": "Oslo"}
