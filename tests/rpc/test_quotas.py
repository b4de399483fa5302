"""Quotas on the wire: what is refused and how, what is told to be left, and what is paid for however a call ends."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from penstock.auth.api_keys import make
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import model_pb2, model_pb2_grpc

from tests.rpc.secure import bearer, channel, listening, spec, stub, until

KEY, ENTRY = make("team-a")
OTHER, OTHER_ENTRY = make("team-b")
PRICES = {"tiers": [{"input_usd_per_million": 1, "output_usd_per_million": 2}]}
INPUT_TICKS, OUTPUT_TICKS = 10_000, 20_000


def config(tmp_path: Path, **quotas: Any) -> dict[str, Any]:
    keys = [entry.model_dump(mode="json") for entry in (ENTRY, OTHER_ENTRY)]
    return {
        "auth": {"keys": keys},
        "pricing": PRICES,
        "quotas": quotas,
        "audit": {"file": str(tmp_path / "audit.jsonl")},
    }


def fast(text: str = "hello", max_tokens: int = 50, **extra: Any) -> pb.GenerationSpec:
    made = spec(text)
    made.thinking.mode = pb.THINKING_MODE_FAST
    made.output.max_output_tokens = max_tokens
    made.MergeFrom(pb.GenerationSpec(**extra))
    return made


async def generate(at: grpc.aio.Channel, key: str = KEY, **extra: Any) -> tuple[pb.GenerateResponse, dict[str, int]]:
    call = stub(at).Generate(pb.GenerateRequest(spec=fast(**extra)), metadata=bearer(key))
    reply = await call
    return reply, left_of(await call.trailing_metadata())


def left_of(trailers: Any) -> dict[str, int]:
    prefix = "x-ratelimit-remaining-"
    return {name.removeprefix(prefix): int(value) for name, value in trailers if name.startswith(prefix)}


def refusal(error: grpc.aio.AioRpcError) -> tuple[Mapping[str, str], float, str]:
    """ErrorInfo's numbers, RetryInfo's seconds, QuotaFailure's subject."""
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, failure, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.QuotaFailure(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status.details:
        for kind in (info, failure, retry):
            detail.Unpack(kind)
    assert info.reason == "QUOTA_EXCEEDED"
    return dict(info.metadata), retry.retry_delay.ToTimedelta().total_seconds(), failure.violations[0].subject


async def refused(at: grpc.aio.Channel, key: str = KEY, **extra: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(at, key, **extra)
    return caught.value


async def attempt(at: grpc.aio.Channel) -> grpc.aio.AioRpcError | None:
    try:
        await generate(at)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_requests_run_out_for_one_caller_and_not_for_another(tmp_path: Path) -> None:
    async with listening(config(tmp_path, requests_per_minute=3)) as (_, address), channel(address) as at:
        assert [(await generate(at))[1] for _ in range(3)] == [{"requests": n} for n in (2, 1, 0)]
        error = await refused(at)
        numbers, seconds, subject = refusal(error)
        assert numbers == {"quota": "requests_per_minute", "limit": "3"}
        assert 0 < seconds <= 20
        assert subject == "caller:team-a"
        assert left_of(error.trailing_metadata()) == {"requests": 0}
        assert (await generate(at, OTHER))[1] == {"requests": 2}


async def test_thought_counts_and_what_is_owed_keeps_the_next_one_out(tmp_path: Path) -> None:
    reply = Reply(thought="t" * 100, answer="a" * 20)
    async with listening(config(tmp_path, tokens_per_minute=200), reply) as (_, address), channel(address) as at:
        request = pb.GenerateRequest(spec=spec())
        request.spec.thinking.mode = pb.THINKING_MODE_THINKING
        call = stub(at).Generate(request, metadata=bearer(KEY))
        usage = (await call).usage
        assert (usage.reasoning_tokens, usage.answer_tokens) == (100, 21)
        assert usage.total_tokens == usage.prompt_tokens + 121
        left = left_of(await call.trailing_metadata())["tokens"]
        assert left == pytest.approx(200 - usage.total_tokens, abs=15)
        refusals = [error for error in [await attempt(at) for _ in range(20)] if error is not None]
        assert {refusal(error)[0]["quota"] for error in refusals} == {"tokens_per_minute"}


async def test_streams_at_once_and_trailers_of_streams(tmp_path: Path) -> None:
    slow = Reply(answer="x" * 40, step_seconds=0.02)
    async with listening(config(tmp_path, concurrent_streams=2), slow) as (_, address), channel(address) as at:
        calls = [stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=fast()), metadata=bearer(KEY)) for _ in range(2)]
        for call in calls:
            await anext(aiter(call))
        assert refusal(await refused(at))[0]["quota"] == "concurrent_streams"
        assert (await generate(at, OTHER))[0].usage.answer_tokens == 41
        for call in calls:
            async for _ in call:
                pass
        assert max([left_of(await call.trailing_metadata())["streams"] for call in calls]) == 2
        assert refusal(await refused(at, output=pb.OutputConfig(candidate_count=3)))[0]["limit"] == "2"


async def test_the_days_cost_is_exact_for_calls_that_end_that_are_cut_and_that_never_run(tmp_path: Path) -> None:
    slow = Reply(answer="x" * 100, step_seconds=0.02)
    settings = config(tmp_path, usd_per_day="0.0005", daily_file=str(tmp_path / "quotas.db"))
    async with listening(settings, slow) as (_, address), channel(address) as at:
        reply, left = await generate(at, max_tokens=10)
        cost = reply.usage.prompt_tokens * INPUT_TICKS + 10 * OUTPUT_TICKS
        assert reply.cost.total_usd_ticks == cost
        assert left == {"usd-ticks": 5_000_000 - cost}
        # Too dear at its worst: refused with the numbers, and nothing is charged.
        error = await refused(at, max_tokens=500)
        numbers, seconds, _ = refusal(error)
        assert numbers["quota"] == "usd_per_day"
        assert numbers["left"] == str(5_000_000 - cost)
        assert int(numbers["needed"]) == reply.usage.prompt_tokens * INPUT_TICKS + 500 * OUTPUT_TICKS
        assert 0 < seconds <= 86_400
        assert left_of(error.trailing_metadata()) == left
        # A client that leaves pays for what was made until then, and for no more.
        call = stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=fast(max_tokens=100)), metadata=bearer(KEY))
        answers = 0
        async for response in call:
            answers += response.event.WhichOneof("event") == "answer"
            if answers == 5:
                call.cancel()
                break
        lines: list[dict[str, Any]] = []

        async def is_written() -> bool:
            lines[:] = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
            return any(line.get("outcome") == "cut_short" for line in lines)

        await until(is_written)
        cut = next(line for line in lines if line.get("outcome") == "cut_short")
        assert 5 <= cut["answer_tokens"] < 60
        spent = cut["prompt_tokens"] * INPUT_TICKS + cut["answer_tokens"] * OUTPUT_TICKS
        assert cut["cost_usd_ticks"] == spent
        reply, left = await generate(at, max_tokens=1)
        assert left == {"usd-ticks": 5_000_000 - cost - spent - reply.cost.total_usd_ticks}
        assert (await generate(at, OTHER, max_tokens=1))[1]["usd-ticks"] > 4_000_000


async def test_a_call_without_a_maximum_reserves_the_default_one_which_holds(tmp_path: Path) -> None:
    talkative = Reply(answer="x" * 100)
    settings = config(tmp_path, usd_per_day="0.00025", daily_file=str(tmp_path / "quotas.db"))
    settings["limits"] = {"default_max_output_tokens": 40}
    async with listening(settings, talkative) as (_, address), channel(address) as at:
        model = await model_pb2_grpc.ModelServiceStub(at).GetModel(model_pb2.GetModelRequest(), metadata=bearer(KEY))
        assert model.limits.default_max_output_tokens == 40
        named_none = fast()
        named_none.output.ClearField("max_output_tokens")
        reply = await stub(at).Generate(pb.GenerateRequest(spec=named_none), metadata=bearer(KEY))
        assert reply.effective_settings.max_output_tokens == 40
        assert reply.usage.output_tokens == 40
        assert reply.candidates[0].result.finish_reason == pb.FINISH_REASON_MAX_OUTPUT_TOKENS
        spent = reply.cost.total_usd_ticks
        named_none.thinking.mode = pb.THINKING_MODE_THINKING
        named_none.thinking.thinking_budget = 500
        count = await stub(at).CountTokens(pb.CountTokensRequest(spec=named_none), metadata=bearer(KEY))
        assert count.effective_settings.thinking_budget < count.effective_settings.max_output_tokens == 40
        error = await refused(at, max_tokens=100)
        numbers, _, _ = refusal(error)
        needed = reply.usage.prompt_tokens * INPUT_TICKS + 100 * OUTPUT_TICKS
        assert (numbers["needed"], numbers["left"]) == (str(needed), str(2_500_000 - spent))
        assert Decimal(numbers["needed_usd"]) * 10**10 == needed
        assert Decimal(numbers["left_usd"]) * 10**10 == 2_500_000 - spent
        assert numbers["limit_usd"] == "0.00025"
        assert datetime.fromisoformat(numbers["resets_at"]) > datetime.now(UTC)
        for told in (numbers["needed_usd"], numbers["left_usd"], "0.00025 USD", numbers["resets_at"]):
            assert told in (error.details() or "")


async def test_a_resumable_stream_is_paid_for_once_however_often_it_is_read(tmp_path: Path) -> None:
    slow = Reply(answer="x" * 30, step_seconds=0.01)
    settings = config(tmp_path, usd_per_day="1", requests_per_minute=10, daily_file=str(tmp_path / "quotas.db"))
    async with listening(settings, slow) as (_, address), channel(address) as at:
        request = pb.StreamGenerateRequest(spec=fast(max_tokens=10), resumable=True)
        call = stub(at).StreamGenerate(request, metadata=bearer(KEY))
        started = (await anext(aiter(call))).event.started
        call.cancel()
        resume = pb.ResumeRequest(generation_id=started.generation_id, resume_token=started.resume_token)
        for _ in range(3):
            again = stub(at).Resume(resume, metadata=bearer(KEY))
            events = [response.event async for response in again]
        left = left_of(await again.trailing_metadata())
        assert left["usd-ticks"] == 10**10 - events[-1].finished.cost.total_usd_ticks
        assert left["requests"] == 9, "coming back is no new request"


async def test_a_priority_above_the_callers_is_refused(tmp_path: Path) -> None:
    async with listening(config(tmp_path, max_priority="normal")) as (_, address), channel(address) as at:
        await generate(at)
        await generate(at, priority=pb.PRIORITY_LOW)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(at, priority=pb.PRIORITY_HIGH)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_limits_change_while_serving(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text("[callers.team-a]\nrequests_per_minute = 1\n")
    settings = config(tmp_path)
    del settings["quotas"]
    settings["auth"]["callers_file"] = str(path)
    async with listening(settings) as (_, address), channel(address) as at:
        assert (await generate(at))[1] == {"requests": 0}
        await refused(at)
        path.write_text("[callers.team-a]\nconcurrent_streams = 4\n")

        async def is_changed() -> bool:
            try:
                return (await generate(at))[1] == {"streams": 4}
            except grpc.aio.AioRpcError:
                return False

        await until(is_changed)


async def test_the_audit_log_says_who_what_and_how_much_and_no_content(tmp_path: Path) -> None:
    async with listening(config(tmp_path), Reply(answer="the secret answer")) as (_, address), channel(address) as at:
        reply, _ = await generate(at, text="the secret question")
        with pytest.raises(grpc.aio.AioRpcError):
            await generate(at, make("team-a")[0])
        await asyncio.sleep(0)
    text = (tmp_path / "audit.jsonl").read_text()
    assert "secret" not in text
    assert KEY not in text
    generation, good, bad = [json.loads(line) for line in text.splitlines()]
    assert (generation["event"], generation["caller"], generation["outcome"]) == ("generation", "team-a", "stop")
    assert generation["generation_id"] == reply.generation_id
    assert generation["cost_usd_ticks"] == reply.cost.total_usd_ticks
    assert generation["answer_tokens"] == reply.usage.answer_tokens
    assert (good["caller"], good["how"], good["key_id"], good["status"]) == ("team-a", "key", ENTRY.id, "OK")
    assert good["method"] == "/penstock.v1.GenerationService/Generate"
    assert (bad["status"], bad["reason"], "caller" in bad) == ("UNAUTHENTICATED", "CALLER_REFUSED", False)
    assert bad["peer"].startswith("ipv4:127.0.0.1:")
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


async def test_a_server_that_is_stopped_at_once_settles_what_it_cuts(tmp_path: Path) -> None:
    slow, path = Reply(answer="x" * 500, step_seconds=0.02), tmp_path / "quotas.db"
    settings = config(tmp_path, usd_per_day="1", daily_file=str(path))
    async with listening(settings, slow) as (_, address), channel(address) as at:
        request = pb.StreamGenerateRequest(spec=fast(max_tokens=400))
        calls = [stub(at).StreamGenerate(request, metadata=bearer(KEY)) for _ in range(5)]
        for call in calls:
            await anext(aiter(call))
    database = sqlite3.connect(path)
    try:
        assert database.execute("SELECT count(*) FROM flight").fetchone() == (0,)
        (ticks,) = database.execute("SELECT sum(ticks) FROM spent").fetchone()
    finally:
        database.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    cut = [line["cost_usd_ticks"] for line in lines if line["event"] == "generation"]
    assert len(cut) == 5
    assert 0 < ticks == sum(cut) < 5 * 100 * OUTPUT_TICKS


@pytest.mark.slow
async def test_a_drained_stream_is_paid_for_on_each_server_for_what_that_one_made(tmp_path: Path) -> None:
    slow, sign_checkpoint = Reply(answer="x" * 100, step_seconds=0.02), tmp_path / "seal"
    sign_checkpoint.write_bytes(b"k" * 32)

    def server(name: str) -> dict[str, Any]:
        made = config(tmp_path, usd_per_day="1", tokens_per_minute=10_000, daily_file=str(tmp_path / name))
        return made | {"audit": {"file": str(tmp_path / f"{name}.jsonl")}, "resume": {"key_file": str(sign_checkpoint)}}

    async with listening(server("a.db"), slow) as (here, first), listening(server("b.db"), slow) as (_, second):
        async with channel(first) as at:
            call = stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=fast(max_tokens=90)), metadata=bearer(KEY))
            events = [(await call.read()).event for _ in range(10)]
            draining = asyncio.create_task(here.drain(0.01))
            while (response := await call.read()) is not grpc.aio.EOF:
                events.append(response.event)
            await draining
        last = events[-1]
        assert last.finished.results[0].finish_reason == pb.FINISH_REASON_DRAINED
        resume = pb.ResumeRequest(
            generation_id=events[0].started.generation_id,
            resume_token=last.finished.resume_token,
            last_sequence=last.sequence,
        )
        async with channel(second) as at:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _read(stub(at).Resume(resume, metadata=bearer(OTHER)))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            end = (await _read(stub(at).Resume(resume, metadata=bearer(KEY))))[-1].finished
    assert end.usage.answer_tokens == 90
    generations = [
        json.loads(line)
        for name in ("a.db.jsonl", "b.db.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
        if '"generation"' in line
    ]
    costs = [line["cost_usd_ticks"] for line in generations]
    assert len(costs) == 2
    assert min(costs) > 0
    assert sum(costs) == end.cost.total_usd_ticks
    spent = []
    for name in ("a.db", "b.db"):
        database = sqlite3.connect(tmp_path / name)
        spent.append(database.execute("SELECT sum(ticks) FROM spent").fetchone()[0])
        database.close()
    assert spent == costs


async def _read(call: Any) -> list[pb.GenerationEvent]:
    return [response.event async for response in call]
