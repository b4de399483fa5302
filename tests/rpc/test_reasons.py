"""Every reason that the server can send carries the metadata that error_reason.proto promises, read from there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from penstock.auth.api_keys import make
from penstock.auth.identity import ANONYMOUS
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.errors import EngineRefused
from penstock.server.request_context import RequestContext
from penstock.server.server import Server
from penstock.telemetry.hooks import CallHooks, TelemetryHooks
from penstock.types import EngineChunk, EngineRequest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import model_pb2, model_pb2_grpc

from tests.hostile.frames import END_STREAM, HEADERS, WINDOW_UPDATE, Wire, ends, frame, frames
from tests.rpc.conftest import serving
from tests.rpc.killable import POISON, ward
from tests.rpc.secure import bearer, listening, spec, stub

PROTO = Path(__file__).parents[2] / "protos/penstock/v1/error_reason.proto"
KEY, ENTRY = make("team-a")


def promised() -> dict[str, set[str]]:
    """The metadata's keys in the example of each reason."""
    found: dict[str, set[str]] = {}
    text = re.sub(r"\n  // ", " ", PROTO.read_text())
    for reason, metadata in re.findall(r'Example: \{reason: "(\w+)"(?:, metadata: \{(.*?)\})?\}', text):
        found[reason] = set(re.findall(r"(\w+): \"", metadata))
    return found


PROMISED = promised()


class Failing(ScriptedEngine):
    """Raises after some tokens."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__((Reply(answer="abcdefgh"),))
        self._error = error

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        raise self._error()
        yield


@pytest.fixture(autouse=True)
def _a_margin_for_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and server share a busy event loop here: a tenth of the time given, instead of 20 ms."""
    monkeypatch.setattr("penstock.server.request_context._STATUS_SECONDS", 10)
    monkeypatch.setattr("penstock.server.request_context._MAX_STATUS_SECONDS", 10)


def test_the_margin_is_20_ms_more_under_load_and_little_of_short_calls() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.server.request_context._STATUS_SECONDS", 0.02)
        patch.setattr("penstock.server.request_context._MAX_STATUS_SECONDS", 0.25)
        for seconds, lag, margin in ((60, 0, 0.02), (60, 0.05, 0.12), (60, 9, 0.25), (0.1, 9, 0.01)):
            request_context = RequestContext(ANONYMOUS, 100.0, 100.0 + seconds)
            assert request_context.status_margin_seconds(lag) == pytest.approx(margin)
    assert RequestContext(ANONYMOUS, 100.0, None).status_margin_seconds(9) == 0


def a_spec(**fields: Any) -> pb.GenerationSpec:
    made = spec()
    made.MergeFrom(pb.GenerationSpec(**fields))
    return made


def thinking(**fields: Any) -> pb.ThinkingConfig:
    return pb.ThinkingConfig(**fields)


async def drained(server: Server) -> None:
    server.admission.drain()


async def down(server: Server) -> None:
    await server.set_ready(False)


async def nothing(server: Server) -> None: ...


LONG = Reply(answer="x" * 500, thought="y" * 500, step_seconds=0.02)
OFF = pb.OutputConfig(json_schema="{}")
CASES: dict[str, dict[str, Any]] = {
    "INVALID_FIELD": {"spec": a_spec(sampling=pb.SamplingConfig(top_p=7))},
    "MISSING_FIELD": {"spec": pb.GenerationSpec()},
    "CONFLICTING_FIELDS": {"spec": a_spec(thinking=thinking(mode=pb.THINKING_MODE_FAST, thinking_budget=5))},
    "LIMIT_EXCEEDED": {"spec": a_spec(output=pb.OutputConfig(candidate_count=500))},
    "BUDGET_DOES_NOT_FIT": {
        "spec": a_spec(thinking=thinking(thinking_budget=900), output=pb.OutputConfig(max_output_tokens=100))
    },
    "CONTEXT_OVERFLOW": {"spec": a_spec(messages=spec("x" * 9000).messages)},
    "FEATURE_OFF": {"spec": a_spec(output=OFF)},
    "MODEL_NOT_FOUND": {"spec": a_spec(model="another")},
    "OVERLOADED": {"settings": {"admission": {"max_queued_calls": 0, "max_running_sequences": 1}}, "beside": True},
    "DEADLINE_PASSED": {"reply": LONG, "timeout": 4.0},
    "DRAINING": {"before": drained},
    "ENGINE_DOWN": {"before": down},
    "ENGINE_REFUSED": {"engine": lambda: Failing(lambda: EngineRefused("no"))},
    "INTERNAL": {"engine": lambda: Failing(lambda: RuntimeError("a secret"))},
    "CALLER_REFUSED": {"settings": {"auth": {"keys": [ENTRY.model_dump(mode="json")]}}, "key": None},
    "GENERATION_NOT_FOUND": {"resume": True},
    "QUOTA_EXCEEDED": {
        "settings": {"auth": {"keys": [ENTRY.model_dump(mode="json")]}, "quotas": {"requests_per_minute": 1}},
        "key": KEY,
        "twice": True,
    },
}
MESSAGES = {
    "INVALID_FIELD": r"spec\.sampling\.top_p: must be in \(0, 1\], got 7",
    "MISSING_FIELD": r"spec\.input: one of messages, text and token_ids must be set, got none",
    "CONFLICTING_FIELDS": r"spec\.thinking\.thinking_budget: must be absent or 0 with THINKING_MODE_FAST, got 5",
    "LIMIT_EXCEEDED": r"spec\.output\.candidate_count: must have at most 8 candidates, got 500",
    "BUDGET_DOES_NOT_FIT": r"must be at most 99 \(max_output_tokens 100 minus an answer reserve of 1\), got 900",
    "CONTEXT_OVERFLOW": r"a prompt of \d+ tokens and at least \d+ tokens of output exceed the window of 4096 by \d+",
    "FEATURE_OFF": r"the scripted engine replays prepared tokens and cannot constrain them",
    "MODEL_NOT_FOUND": r"model must be empty or \S+, got 'another'",
    "OVERLOADED": r"queue limit exceeded: 0 of 0 calls and 0 of \d+ tokens wait, 1 calls run",
    "DEADLINE_PASSED": r"the deadline passed before the answer was complete",
    "DRAINING": r"the server is draining and admits no calls; retry on another server",
    "ENGINE_DOWN": r"the engine is restarting; retry later",
    "ENGINE_REFUSED": r"internal error; the server's log has the cause",
    "INTERNAL": r"internal error; the server's log has the cause",
    "CALLER_REFUSED": r"no credentials were sent: send the metadata `authorization: Bearer <API key or token>`",
    "GENERATION_NOT_FOUND": r"no such generation \(unknown, expired, or wrong resume_token\)",
    "QUOTA_EXCEEDED": r"requests per minute exceeded: 1 are allowed; retry in [\d.]+ s",
    "NOT_IMPLEMENTED": (
        r"^the method must be one of the services in penstock\.v1, got '/penstock\.v1\.GenerationService/Guess'; "
        r"check its name and the version$"
    ),
    "MESSAGE_TOO_LARGE": r"^the message must have at most 65536 bytes, got 100\d{3}; send a smaller one$",
    "POISONOUS_REQUEST": (
        r"^the engine died while it ran this request \(deaths: 2, limit for its caller: 2\); do not send it again$"
    ),
    "CLIENT_TOO_SLOW": r"^the request was not complete within 0\.5 s, the limit; send it again without pauses$",
}
"""What each status says: what was received, what is allowed, what to do."""
# These need more than one call of the generation service.
ELSEWHERE = {"NOT_IMPLEMENTED", "POISONOUS_REQUEST", "CLIENT_TOO_SLOW", "MESSAGE_TOO_LARGE"}
UNREAD = r"the client read no message for 0\.5 s, the limit; read each message as it comes"
NO_WINDOW = (4).to_bytes(2, "big") + bytes(4)  # SETTINGS_INITIAL_WINDOW_SIZE: 0
REFUSED_AFTERWARDS = (
    r"^requests of this caller killed the engine; its requests with these sampling parameters and this kind of "
    r"constraint are refused for another \d+ s; send none before$"
)


def test_every_reason_is_provoked_here() -> None:
    assert set(PROMISED) == set(CASES) | ELSEWHERE
    assert set(MESSAGES) == set(PROMISED)
    assert {"thinking_budget", "max_output_tokens", "answer_reserve"} == PROMISED["BUDGET_DOES_NOT_FIT"]
    assert {"thought_tokens", "answer_tokens", "tool_tokens"} == PROMISED["DEADLINE_PASSED"]


async def provoked(case: dict[str, Any], method: str) -> grpc.aio.AioRpcError:
    settings: dict[str, Any] = {"server": {"listen": "127.0.0.1:0"}} | case.get("settings", {})
    make_engine = case.get("engine", lambda: ScriptedEngine((case.get("reply", Reply(answer="ok")),)))
    async with serving(make_engine(), Config.model_validate(settings)) as (server, at):
        await case.get("before", nothing)(server)
        metadata = bearer(case["key"]) if case.get("key") else None
        what, timeout = case.get("spec", spec()), case.get("timeout")

        async def call() -> None:
            if case.get("resume"):
                async for _ in stub(at).Resume(pb.ResumeRequest(generation_id="g", resume_token="t")):
                    pass
            elif method == "Generate":
                await stub(at).Generate(pb.GenerateRequest(spec=what), metadata=metadata, timeout=timeout)
            else:
                request = pb.StreamGenerateRequest(spec=what, resumable=method == "resumable")
                async for _ in stub(at).StreamGenerate(request, metadata=metadata, timeout=timeout):
                    pass

        if case.get("beside"):
            async with server.admission.permit(_admission_request()):
                return await failure(call())
        if case.get("twice"):
            await call()
        return await failure(call())


def _admission_request() -> Any:
    from penstock.admission.queue import AdmissionRequest
    from penstock.types import Priority

    return AdmissionRequest("other", Priority.NORMAL, 1, 1)


async def failure(call: Awaitable[None]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    raise AssertionError("no ErrorInfo")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Generate", "StreamGenerate", "resumable"])
@pytest.mark.parametrize("reason", CASES)
async def test_a_reason_carries_what_the_proto_promises(reason: str, method: str) -> None:
    error = await provoked(CASES[reason], method)
    info = info_of(error)
    assert info.reason == reason
    assert set(info.metadata) >= PROMISED[reason]
    assert all(info.metadata.values())
    assert re.search(MESSAGES[reason], error.details() or ""), error.details()
    assert "secret" not in str(error)
    if reason == "BUDGET_DOES_NOT_FIT":
        assert dict(info.metadata) == {"thinking_budget": "900", "max_output_tokens": "100", "answer_reserve": "1"}
    if reason == "DEADLINE_PASSED":
        assert sum(int(count) for count in info.metadata.values()) > 3


def hold(reason: str, error: grpc.aio.AioRpcError, message: str = "") -> dict[str, str]:
    """Check an error's reason, metadata and message. Return the metadata."""
    info = info_of(error)
    assert info.reason == reason
    assert re.search(message or MESSAGES[reason], error.details() or ""), error.details()
    return dict(info.metadata)


async def test_a_request_that_engines_die_on_is_told_with_their_deaths() -> None:
    async with ward(LONG, max_restarts=20) as here:
        request = pb.GenerateRequest(spec=spec(POISON))
        told = hold("POISONOUS_REQUEST", await failure(stub(here.channel).Generate(request)))
        assert told == {"engine_deaths": "2"}
        await here.supervised.wait_until_available()
        again = hold("POISONOUS_REQUEST", await failure(stub(here.channel).Generate(request)), REFUSED_AFTERWARDS)
        assert set(again) == {"refused_for_seconds"}


async def test_the_scripted_engine_says_the_same_of_a_poisonous_request() -> None:
    settings = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
    async with serving(ScriptedEngine((Reply(fault="poison"),)), settings) as (_, at):
        error = await failure(stub(at).Generate(pb.GenerateRequest(spec=spec())))
    assert hold("POISONOUS_REQUEST", error) == {"engine_deaths": "2"}


@pytest.mark.parametrize("name", ["Guess", "Guess\u00e9\n\x1b" + "x" * 5000])
async def test_an_unknown_method_is_named_in_at_most_100_characters(name: str) -> None:
    settings = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
    async with serving(ScriptedEngine((LONG,)), settings) as (_, at):
        call: Any = at.unary_unary(f"/penstock.v1.GenerationService/{name}")
        error = await failure(call(b""))
    if name == "Guess":
        assert hold("NOT_IMPLEMENTED", error) == {"rpc": "penstock.v1.GenerationService/Guess"}
    else:
        assert (error.details() or "").isprintable()
        assert len(error.details() or "") < 300


async def test_a_message_above_the_limit_of_its_method_is_told_the_limit() -> None:
    settings = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
    async with serving(ScriptedEngine((LONG,)), settings) as (_, at):
        request = model_pb2.GetModelRequest(model="x" * 100_000)
        call: Any = model_pb2_grpc.ModelServiceStub(at).GetModel(request)
        error = await failure(call)
    metadata = hold("MESSAGE_TOO_LARGE", error)
    assert metadata == {"bytes": str(request.ByteSize()), "max_bytes": "65536"}


async def test_a_client_that_sends_no_request_is_told_the_limit() -> None:
    settings = Config.model_validate({"server": {"listen": "127.0.0.1:0", "request_seconds": 0.5}})
    async with serving(ScriptedEngine((LONG,)), settings) as (_, at):
        call = stub(at).Interact()
        error = await failure(call.read())
    assert set(hold("CLIENT_TOO_SLOW", error)) == PROMISED["CLIENT_TOO_SLOW"]


class Ended(TelemetryHooks, CallHooks):
    """Hooks of one call that wait for its end."""

    def __init__(self) -> None:
        self.has_ended = asyncio.Event()

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallHooks:
        return self

    def ended(self, code: str, error: BaseException | None = None) -> None:
        self.has_ended.set()


async def test_a_client_that_reads_no_message_is_told_the_limit() -> None:
    hooks = Ended()
    async with listening({"server": {"slow_reader_seconds": 0.5}}, LONG, hooks=hooks) as (_, address):
        wire = await asyncio.to_thread(Wire, address, NO_WINDOW)
        stream = wire.call(pb.StreamGenerateRequest(spec=spec()).SerializeToString())
        async with asyncio.timeout(60):
            await hooks.has_ended.wait()
        wire.send(frame(WINDOW_UPDATE, 0, stream, (1 << 16).to_bytes(4, "big")))
        got = frames(await asyncio.to_thread(wire.drain, 60, lambda got: ends(got) > 0))
        wire.close()
    [trailers] = [payload for kind, flags, _, payload in got if kind == HEADERS and flags & END_STREAM]
    assert re.search(UNREAD.encode(), trailers), trailers
    assert PROMISED["CLIENT_TOO_SLOW"] == {"seconds"}


@pytest.mark.slow
async def test_what_a_deadline_cut_is_counted_and_the_margin_is_told() -> None:
    settings = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
    async with serving(ScriptedEngine((LONG,)), settings) as (_, at):
        request = pb.StreamGenerateRequest(spec=a_spec(thinking=thinking(mode=pb.THINKING_MODE_THINKING)))
        call, counts = stub(at).StreamGenerate(request, timeout=5.0), [0, 0]

        async def read() -> None:
            async for reply in call:
                event = reply.event
                if event.HasField("started"):
                    margin = event.started.effective_settings.status_margin.ToTimedelta().total_seconds()
                    assert margin == pytest.approx(0.5, rel=0.05)
                counts[0] += event.thought.token_count
                counts[1] += event.answer.token_count

        metadata = info_of(await failure(read())).metadata
        assert int(metadata["thought_tokens"]) >= counts[0] > 0
        assert int(metadata["answer_tokens"]) >= counts[1]
