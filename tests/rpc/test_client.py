"""Both clients on a real channel: the same calls, the same events, and no call left behind."""

from __future__ import annotations

import asyncio
import socket
from decimal import Decimal
from typing import Any

import grpc
import penstock_client as pc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2 as details
from opentelemetry.sdk.trace import TracerProvider
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.fake_service import ANSWER, THOUGHT, FakeService, events, status, until

KINDS = [pc.Started, *[pc.ThoughtDelta] * 3, pc.ThinkingFinished, *[pc.AnswerDelta] * 3, pc.Finished]


@pytest.fixture
def target(served: tuple[FakeService, str]) -> str:
    return served[1]


@pytest.fixture(params=["sync", "async"])
def collect(request: pytest.FixtureRequest, fake: FakeService, target: str) -> Any:
    """Runs one stream to its end by either client; gives its events and its response."""

    def by_sync(*args: Any, **options: Any) -> tuple[list[pc.Event], pc.Response]:
        with pc.Client(target) as client, client.stream(*args, **options) as stream:
            return list(stream), stream.response

    def by_async(*args: Any, **options: Any) -> tuple[list[pc.Event], pc.Response]:
        async def run() -> tuple[list[pc.Event], pc.Response]:
            async with pc.AsyncClient(target) as client, client.stream(*args, **options) as stream:
                return [event async for event in stream], stream.response

        return asyncio.run(run())

    return by_sync if request.param == "sync" else by_async


def test_stream_gives_typed_events_and_the_growing_response(collect: Any, fake: FakeService) -> None:
    seen, response = collect("What is 17 + 25 + 8?", thinking="thinking", budget=16, flush_interval_seconds=0.5)
    assert [type(event) for event in seen] == KINDS
    assert [event.sequence for event in seen] == list(range(1, 10))
    assert all(event.response is response for event in seen)
    assert (response.thought, response.answer) == ("".join(THOUGHT), "".join(ANSWER))
    assert response.finish_reason == "stop"
    assert response.thinking_outcome is pc.ThinkingOutcome.BUDGET_REACHED
    assert response.usage
    assert response.usage.drafted_tokens is None
    assert response.cost
    assert response.cost.usd == Decimal("0.0000231")
    assert response.timing
    assert response.timing.first_answer_token_seconds is None
    assert response.output_tokens_per_second == pytest.approx(80)
    assert response.effective_settings
    assert response.effective_settings.sampling == {"temperature": 0.5, "top_k": 0}
    [request] = fake.requests
    assert request.flush_interval.ToMilliseconds() == 500
    assert request.spec.thinking == pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=16)


def test_repeated_and_unknown_events_are_passed_over(collect: Any, fake: FakeService) -> None:
    script = events()
    from_the_future = pb.GenerationEvent(sequence=9)
    script[-1].sequence = 10
    fake.script = [*script[:3], script[2], *script[3:-1], from_the_future, script[-1]]
    seen, response = collect("hi")
    assert [type(event) for event in seen] == KINDS
    assert response.thought == "".join(THOUGHT)


@pytest.mark.parametrize("script", [events()[:-1], events()[:2] + events()[3:]])
def test_a_stream_with_a_hole_or_without_an_end_is_broken(collect: Any, fake: FakeService, script: Any) -> None:
    fake.script = script
    with pytest.raises(pc.BrokenStream):
        collect("hi")


def test_an_error_in_the_middle_is_raised_after_what_came(target: str, fake: FakeService) -> None:
    info = details.ErrorInfo(reason="DEADLINE_PASSED", domain="penstock.v1", metadata={"thought_tokens": "8"})
    fake.script = [*events()[:3], status(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow", [info])]
    with pc.Client(target) as client, client.stream("hi") as stream:
        seen = []
        with pytest.raises(pc.DeadlineExceeded) as caught:
            seen.extend(stream)
        assert stream.response.thought == "".join(THOUGHT[:2])
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == "DEADLINE_PASSED"
    assert caught.value.metadata == {"thought_tokens": "8"}


def test_errors_have_violations_and_delays(collect: Any, fake: FakeService) -> None:
    violation = {"field": "spec.sampling.top_p", "description": "must be in (0, 1]", "reason": "INVALID_FIELD"}
    info = details.ErrorInfo(reason="INVALID_FIELD", domain="penstock.v1")
    fake.error = status(
        grpc.StatusCode.INVALID_ARGUMENT, "bad", [info, details.BadRequest(field_violations=[violation])]
    )
    with pytest.raises(pc.InvalidRequest) as invalid:
        collect("hi", top_p=7)
    assert invalid.value.violations == (pc.FieldViolation(**violation),)

    retry = details.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    info = details.ErrorInfo(reason="OVERLOADED", domain="penstock.v1")
    fake.error = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", [info, retry])
    with pytest.raises(pc.Overloaded) as overloaded:
        collect("hi")
    assert overloaded.value.retry_after_seconds == 1.5


def test_the_callers_trace_goes_along(collect: Any, fake: FakeService) -> None:
    with TracerProvider().get_tracer("user").start_as_current_span("user") as span:
        collect("hi")
        assert f"{span.get_span_context().trace_id:032x}" in fake.metadata["traceparent"]


def fail_at_first_event(stream: pc.Stream) -> None:
    for event in stream:
        event.sequence // 0


async def to_the_end(stream: pc.AsyncStream) -> None:
    async for _ in stream:
        pass


def test_leaving_a_loop_cancels_the_call(target: str, fake: FakeService) -> None:
    fake.hang_after = 3

    def by_break() -> None:
        for event in client.stream("hi"):
            if isinstance(event, pc.ThoughtDelta):
                break

    def by_with() -> None:
        with client.stream("hi") as stream:
            next(stream)

    def by_exception() -> None:
        with pytest.raises(ZeroDivisionError):
            fail_at_first_event(client.stream("hi"))

    with pc.Client(target) as client:
        for calls, leave in enumerate((by_break, by_with, by_exception), 1):
            leave()
            assert until(lambda calls=calls: fake.cancelled == calls), leave.__name__


async def test_leaving_an_async_loop_cancels_the_call(target: str, fake: FakeService) -> None:
    fake.hang_after = 3

    async def cancelled(calls: int) -> bool:
        for _ in range(6000):
            if fake.cancelled == calls:
                return True
            await asyncio.sleep(0.01)
        return False

    async with pc.AsyncClient(target) as client:
        async for event in client.stream("hi"):
            if isinstance(event, pc.ThoughtDelta):
                break
        assert await cancelled(1)
        async with client.stream("hi") as stream:
            await anext(stream)
        assert await cancelled(2)
        asked = len(fake.requests)
        leaving = asyncio.create_task(to_the_end(client.stream("hi")))
        while len(fake.requests) == asked:  # noqa: ASYNC110 - another thread's list
            await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await cancelled(3)


@pytest.mark.slow
def test_the_timeout_is_the_calls_deadline(target: str, fake: FakeService) -> None:
    fake.hang_after = 1
    with pc.Client(target, timeout=2) as client, pytest.raises(pc.DeadlineExceeded):
        list(client.stream("hi"))
    assert until(lambda: fake.cancelled == 1)


def test_unary_calls(target: str, fake: FakeService) -> None:
    with pc.Client(target, api_key="k") as client:
        reply = client.generate("hi")
        assert (reply.thought, reply.answer, reply.finish_reason) == ("".join(THOUGHT), "".join(ANSWER), "stop")
        assert fake.metadata["authorization"] == "Bearer k"
        count = client.count("hi")
        assert (count.window_left_tokens, count.dropped_messages, count.max_usd) == (100, 1, Decimal("0.000002"))
        card = client.model()
        assert card.thinking_modes == ("fast", "thinking", "auto")
        assert card.price_tiers == (pc.PriceTier(None, Decimal("0.4"), Decimal(0), Decimal(4)),)
        assert card.limits["max_messages"] == 9
        assert (card.default_early_exit, card.max_early_exit) == (pc.EarlyExit.MARKER, "probe")
        assert "max_output_tokens" not in card.limits


async def test_unary_calls_of_the_async_client(target: str, fake: FakeService) -> None:
    async with pc.AsyncClient(target) as client:
        assert (await client.generate(text="hi")).answer == "".join(ANSWER)
        assert (await client.count(token_ids=[1, 2])).prompt_tokens == 31
        assert (await client.model()).refused_fields == {"spec.sampling.min_p": "beside MTP"}
        fake.error = status(grpc.StatusCode.UNAVAILABLE, "going", [])
        with pytest.raises(pc.Unavailable):
            await client.model()


def test_nothing_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pc.Client(f"127.0.0.1:{unused.getsockname()[1]}") as client, pytest.raises(pc.Unavailable) as caught:
            client.model(timeout=5)
    assert caught.value.reason == ""


@pytest.mark.slow
def test_reads_are_retried_where_asked(target: str, fake: FakeService) -> None:
    fake.error = status(grpc.StatusCode.UNAVAILABLE, "going", [])
    options = [("grpc.service_config", pc.RETRY_READS_SERVICE_CONFIG)]
    with pc.Client(target, channel_options=options) as client:
        with pytest.raises(pc.Unavailable):
            client.generate("hi")
        assert len(fake.requests) == 1
        with pytest.raises(pc.Unavailable):
            client.model()
        assert len(fake.requests) == 5


async def test_a_status_that_grpc_forgot_is_asked_for_again(target: str) -> None:
    """Where a write meets a call that the server has ended, grpc.aio makes up INTERNAL; see `AsyncInteraction`."""
    lost = pc.ServerFault("Internal error from Core", code=grpc.StatusCode.INTERNAL)
    async with pc.AsyncClient(target) as client:
        interaction = client.interact("hi", thinking="thinking")
        interaction.finish_thinking()
        first = interaction._call
        assert await interaction._go_on(lost) is None
        assert interaction._call is not first
        assert interaction._actions.qsize() >= 2, "the start, and what was asked since"
        first.cancel()
        with pytest.raises(pc.ServerFault):
            await interaction._go_on(lost)


async def test_a_status_that_grpc_forgot_after_the_deadline_is_the_deadline(target: str) -> None:
    lost = pc.ServerFault("Internal error from Core", code=grpc.StatusCode.INTERNAL)
    async with pc.AsyncClient(target) as client:
        interaction = client.interact("hi", thinking="thinking", timeout=60)
        first = interaction._call
        assert await interaction._go_on(lost) is None, "asked again while there is time"
        assert 0 < interaction._call.time_remaining() <= first.time_remaining() + 1, "and not for longer"
        first.cancel()
        interaction._recovery._ends_at = 0.0
        with pytest.raises(pc.DeadlineExceeded) as caught:
            await interaction._go_on(lost)
    assert caught.value.reason == "DEADLINE_PASSED"
    assert caught.value.metadata == {"thought_tokens": "0", "answer_tokens": "0", "tool_tokens": "0"}
