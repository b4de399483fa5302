"""Traces and logs as a collector receives them: the tree of a call, what happened in it, and what must not leave."""

from __future__ import annotations

import asyncio
import gc
import http.server
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags
from penstock.config.schema import Config, TelemetrySettings
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.errors import ConstraintLost
from penstock.server.server import Server
from penstock.telemetry.otel import exporters, start
from penstock.telemetry.otel.plan import plan_telemetry
from penstock.telemetry.otel.start import Telemetry
from penstock.types import EngineChunk, EngineRequest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.rpc.killable import ward
from tests.rpc.otlp import Collector, attributes, collecting
from tests.rpc.test_stream import spec, stream
from tests.rpc.test_telemetry_metrics import scrape

THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
SLOW = Reply(thought="a thought of some length", answer="an answer that goes on", step_seconds=0.002)
METHOD = "penstock.v1.GenerationService/StreamGenerate"
CHAT = "chat scripted"
LLM_REQUEST = "llm_request"
# Reads a call with a span of its own around it, as a client's process does.
CLIENT = Path(__file__).with_name("traced_client.py")


@asynccontextmanager
async def telling(**settings: Any) -> AsyncIterator[tuple[Telemetry, Collector]]:
    with collecting() as collector:
        wanted = TelemetrySettings(otlp="grpc", otlp_endpoint=collector.endpoint, **settings)
        telemetry = Telemetry(plan_telemetry(wanted, {}), wanted)
        yield telemetry, collector
        await telemetry.close()


@asynccontextmanager
async def recorded(*replies: Reply, engine: ScriptedEngine | None = None, **settings: Any) -> AsyncIterator[Any]:
    """(channel, address, collector) of a service whose telemetry arrives once the block's end closed it."""
    async with telling(**settings) as (telemetry, collector):
        config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
        server = Server(config, telemetry.hooks)
        address = await server.listen()
        await server.serve_with(engine or ScriptedEngine(replies))
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel, address, collector
        await server.drain(0)


class Listening(ScriptedEngine):
    def __init__(self, replies: tuple[Reply, ...]) -> None:
        super().__init__(replies)
        self.headers: list[Any] = []

    async def stream(self, request: EngineRequest) -> Any:
        self.headers.append(request.trace_headers)
        async for chunk in super().stream(request):
            assert isinstance(chunk, EngineChunk)
            yield chunk


def events(span: Span) -> list[str]:
    return [event.name for event in span.events]


async def test_the_whole_tree_of_a_call_hangs_on_the_span_of_a_client_in_another_process() -> None:
    engine = Listening((SLOW,))
    async with recorded(engine=engine) as (_, address, collector):
        command = (sys.executable, str(CLIENT), address, collector.endpoint)
        client = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert await client.wait() == 0, client.stderr and (await client.stderr.read()).decode()
    asking, server, chat = (collector.one(name) for name in ("ask", METHOD, CHAT))
    assert len({span.trace_id for span in collector.spans}) == 1
    assert server.parent_span_id == asking.span_id
    assert chat.parent_span_id == server.span_id
    assert collector.services[asking.span_id] == "a-client"
    assert collector.services[chat.span_id] == "penstock"
    assert (server.kind, chat.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL)
    kinds = [(span.name, attributes(span).get("penstock.run.cause")) for span in collector.children(chat)]
    assert kinds == [
        ("penstock.plan", None),
        ("penstock.queue", None),
        ("penstock.engine_run", "start"),
        ("penstock.thinking", None),
        ("penstock.engine_run", "budget"),
        ("penstock.answer", None),
    ]
    assert events(chat) == ["penstock.first_thought_token", "penstock.budget_reached", "penstock.first_answer_token"]
    # What the engine is handed is the context of the run's own span.
    runs = [span for span in collector.children(chat) if span.name == "penstock.engine_run"]
    assert [h["traceparent"].split("-")[2] for h in engine.headers] == [run.span_id.hex() for run in runs]


async def test_attributes_follow_the_conventions_and_hold_no_content() -> None:
    async with recorded(Reply(match="secret", thought="hidden thought", answer="hidden answer")) as (
        channel,
        _,
        collector,
    ):
        await stream(channel, spec("my secret", thinking=THINKING, sampling=pb.SamplingConfig(temperature=0.5, seed=7)))
    chat, server = attributes(collector.one(CHAT)), attributes(collector.one(METHOD))
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.provider.name"] == "penstock"
    assert chat["gen_ai.request.model"] == chat["gen_ai.response.model"] == "scripted"
    assert (chat["gen_ai.request.temperature"], chat["gen_ai.request.seed"]) == (0.5, 7)
    assert chat["gen_ai.request.stream"] is True
    assert chat["gen_ai.response.finish_reasons"] == ["stop"]
    assert chat["gen_ai.usage.reasoning.output_tokens"] == len("hidden thought")
    assert (
        chat["gen_ai.usage.output_tokens"]
        == chat["gen_ai.usage.reasoning.output_tokens"] + chat["penstock.answer.tokens"]
    )
    assert chat["gen_ai.response.time_to_first_chunk"] > 0
    assert server["rpc.system.name"] == "grpc"
    assert server["rpc.method"] == METHOD
    assert server["rpc.response.status_code"] == "OK"
    assert server["server.address"] == "127.0.0.1"
    everything = "".join(str(span) for span in collector.spans) + "".join(str(line) for line in collector.logs)
    assert not any(word in everything for word in ("secret", "hidden"))


async def test_headers_of_strangers_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    headers = {
        "baggage": "a-secret",
        "tracestate": "a-secret",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    with caplog.at_level(logging.DEBUG):
        async with recorded(SLOW) as (channel, _, collector):
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec()), metadata=tuple(headers.items()))
            assert [reply async for reply in call]
    assert collector.one(METHOD).trace_id.hex() == headers["traceparent"].split("-")[1]
    assert "a-secret" not in caplog.text
    assert "a-secret" not in "".join(map(str, [*collector.spans, *collector.logs]))


async def test_content_is_recorded_where_it_is_switched_on() -> None:
    async with recorded(Reply(thought="t", answer="hidden answer"), record_content=True) as (channel, _, collector):
        await stream(channel, spec("my secret", thinking=THINKING))
    chat = attributes(collector.one(CHAT))
    assert "my secret" in chat["gen_ai.input.messages"]
    assert '{"type": "text", "content": "hidden answer"}' in chat["gen_ai.output.messages"]
    assert '{"type": "reasoning", "content": "t"}' in chat["gen_ai.output.messages"]


async def test_after_a_killed_engine_the_continuation_is_in_the_same_trace() -> None:
    async with telling() as (telemetry, collector), ward(SLOW, hooks=telemetry.hooks) as here:
        running = asyncio.create_task(stream(here.channel, spec(thinking=THINKING)))
        while here.engine.chunks < 5:  # noqa: ASYNC110 - the engine's own count
            await asyncio.sleep(0.002)
        await here.engine.kill()
        await running
        await telemetry.close()
    assert len({span.trace_id for span in collector.spans}) == 1
    chat = collector.one(CHAT)
    names = [span.name for span in collector.children(chat) if "plan" not in span.name and "queue" not in span.name]
    assert sorted(names) == [
        "penstock.answer",
        "penstock.engine_run",
        "penstock.engine_run",
        "penstock.thinking",
        "penstock.wait_for_engine",
    ]
    died, went_on = (attributes(span) for span in collector.children(chat) if span.name == "penstock.engine_run")
    assert (died["penstock.run.end"], went_on["penstock.run.cause"]) == ("engine_died", "engine_death")
    assert chat.status.code == Status.STATUS_CODE_UNSET


class LosesConstraint(Listening):
    """Its first run ends as where the engine samples a token that the constraint does not allow."""

    async def stream(self, request: EngineRequest) -> Any:
        is_first, chunks = not self.headers, 0
        async for chunk in super().stream(request):
            if is_first and chunks == 3:
                raise ConstraintLost("as told")
            chunks += 1
            yield chunk


async def test_a_run_after_a_lost_constraint_has_that_cause_and_no_engine_death() -> None:
    async with recorded(engine=LosesConstraint((SLOW,))) as (channel, _, collector):
        await stream(channel, spec())
    runs = [attributes(span) for span in collector.children(collector.one(CHAT)) if span.name == "penstock.engine_run"]
    assert [(run["penstock.run.cause"], run["penstock.run.end"]) for run in runs] == [
        ("start", "constraint_lost"),
        ("constraint_lost", "eos"),
    ]
    assert not collector.named("penstock.wait_for_engine")


@pytest.mark.slow
async def test_errors_and_cancelled_streams_are_not_ok() -> None:
    long = Reply(match="long", thought="x" * 3000, answer="a", step_seconds=0.002)
    async with recorded(long) as (channel, _, collector):
        with pytest.raises(grpc.aio.AioRpcError):
            await stream(channel, spec("a", output=pb.OutputConfig(max_output_tokens=-1)))
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        left = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec("long", thinking=THINKING)))
        await left.read()
        left.cancel()
        late = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec("long", thinking=THINKING)), timeout=2)
        with pytest.raises(grpc.aio.AioRpcError):
            assert [reply async for reply in late]
        await asyncio.sleep(0.2)
    ends = {}
    for span in collector.named(METHOD):
        assert span.status.code == Status.STATUS_CODE_ERROR
        ends[attributes(span)["rpc.response.status_code"]] = attributes(span)["error.type"]
    # The server's own end comes first, unless its event loop is late.
    assert ends.pop("DEADLINE_EXCEEDED") in {"DEADLINE_PASSED", "DEADLINE_EXCEEDED"}
    assert ends == {"INVALID_ARGUMENT": "INVALID_FIELD", "CANCELLED": "CANCELLED"}
    assert all(span.status.code == Status.STATUS_CODE_ERROR for span in collector.named(CHAT))
    assert all(span.end_time_unix_nano for span in collector.spans)


async def test_a_resume_is_linked_to_what_it_resumes() -> None:
    async with recorded(SLOW) as (channel, _, collector):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(thinking=THINKING), resumable=True))
        started = (await call.read()).event.started
        call.cancel()
        resume = pb.ResumeRequest(
            generation_id=started.generation_id, resume_token=started.resume_token, last_sequence=1
        )
        assert [event async for event in stub.Resume(resume)]
    resumed = collector.one("penstock.v1.GenerationService/Resume")
    chat = collector.one(CHAT)
    assert [link.span_id for link in resumed.links] == [chat.span_id]
    # The generation itself was not cut short by its client's leaving.
    assert chat.status.code == Status.STATUS_CODE_UNSET


async def test_a_steer_is_linked_to_what_it_steers() -> None:
    async with recorded(SLOW) as (channel, _, collector):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(thinking=THINKING), resumable=True))
        started = (await call.read()).event.started
        place = {"generation_id": started.generation_id, "resume_token": started.resume_token}
        await stub.Steer(pb.SteerRequest(finish_thinking=pb.FinishThinking(), **place))
        while await call.read() is not grpc.aio.EOF:
            pass
    chat = collector.one(CHAT)
    link = collector.one("penstock.v1.GenerationService/Steer").links[0]
    assert (link.span_id, attributes(link)["penstock.link.kind"]) == (chat.span_id, "steered")


async def test_health_and_reflection_are_not_traced() -> None:
    async with recorded(SLOW) as (channel, _, collector):
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        await stream(channel, spec())
    assert not [span.name for span in collector.spans if "Health" in span.name]


async def test_a_deadline_plan_is_told() -> None:
    async with recorded(SLOW) as (channel, _, collector):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        question = spec("2 and 3 and 4 and 5", thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_AUTO))
        request = pb.StreamGenerateRequest(spec=question)
        assert [event async for event in stub.StreamGenerate(request, timeout=20)]
    plan = next(event for event in collector.one(CHAT).events if event.name == "penstock.deadline_plan")
    # gRPC rounds a timeout up on its way, by up to one percent.
    assert 0 < attributes(plan)["penstock.deadline.seconds"] <= 20.2


async def test_log_lines_arrive_with_the_ids_of_their_call() -> None:
    class Broken(ScriptedEngine):
        async def stream(self, request: EngineRequest) -> Any:
            raise ValueError(bytes(i for i in request.prompt_token_ids if i < 256).decode())
            yield

    async with recorded(engine=Broken(())) as (channel, _, collector):
        with pytest.raises(grpc.aio.AioRpcError):
            await stream(channel, spec("secret"))
    (line,) = [log for log in collector.logs if "failed" in log.body.string_value]
    server = collector.one(METHOD)
    assert (line.trace_id, line.span_id) == (server.trace_id, server.span_id)
    assert len(attributes(line)["generation_id"]) == 32
    assert "secret" not in str(line)


async def lost_telemetry(telemetry: Telemetry) -> dict[str, float]:
    """Return the SDK's counts of what was lost, by metric name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(await scrape(telemetry))
        for sample in family.samples
        if sample.labels.get("error_type") and sample.name.startswith("otel_sdk")
    }


@pytest.mark.slow
async def test_an_unreachable_collector_never_blocks_is_logged_once_and_drops_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TelemetrySettings(otlp="grpc", otlp_endpoint="http://127.0.0.1:9", prometheus_listen=":0")
    environ = {
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_BSP_MAX_QUEUE_SIZE": "64",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    not_queued, not_exported = "otel_sdk_processor_span_processed_total", "otel_sdk_exporter_span_exported_total"
    exports: list[bool] = []
    report = exporters.ExporterHealth.report

    def counted(health: exporters.ExporterHealth, ok: bool, endpoint: str) -> None:
        exports.append(ok)
        report(health, ok, endpoint)

    monkeypatch.setattr(exporters.ExporterHealth, "report", counted)
    with caplog.at_level(logging.WARNING):
        telemetry = Telemetry(plan_telemetry(settings, {}), settings)
        config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
        server = Server(config, telemetry.hooks)
        address = await server.listen()
        await server.serve_with(ScriptedEngine(()))
        async with grpc.aio.insecure_channel(address) as channel:
            calls = 0
            lost: dict[str, float] = {}
            # Until exports of logs and of spans have failed, and for more spans than may be kept: six a call.
            async with asyncio.timeout(90):
                while len(exports) < 3 or calls <= 100 or lost.get(not_exported, 0) < 32 or not_queued not in lost:
                    await stream(channel, spec())
                    calls += 1
                    lost = await lost_telemetry(telemetry)
            gc.collect()
            kept = sum(issubclass(type(thing), ReadableSpan) for thing in gc.get_objects())
        await server.drain(0)
        async with asyncio.timeout(60):
            await telemetry.close()
    told = [record for record in caplog.records if "OTLP export" in record.getMessage()]
    assert not any(exports)
    assert [record.getMessage() for record in told] == [
        "OTLP export to http://127.0.0.1:9 is failing; telemetry will be dropped"
    ]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    # Kept are the queue's 64, a batch of 32 under way, and the two spans above each of them.
    assert kept <= 3 * (64 + 32)
    assert lost[not_queued] > 0
    assert lost[not_exported] >= 32


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_collector_that_never_answers_holds_up_neither_calls_nor_the_end(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setattr(start, "_CLOSE_SECONDS", 0.5)
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    collector = await asyncio.start_server(silent, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{collector.sockets[0].getsockname()[1]}"
    settings = TelemetrySettings.model_validate({"otlp": protocol, "otlp_endpoint": endpoint, "logs": False})
    telemetry = Telemetry(plan_telemetry(settings, {}), settings)
    server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}), telemetry.hooks)
    address = await server.listen()
    await server.serve_with(ScriptedEngine(()))
    async with asyncio.timeout(90), grpc.aio.insecure_channel(address) as channel:
        while not connected.is_set():
            await stream(channel, spec())
        for _ in range(20):
            await stream(channel, spec())
        await server.drain(0)
        await telemetry.close()
    collector.close()


def test_the_log_says_that_the_collector_is_back(caplog: pytest.LogCaptureFixture) -> None:
    health = exporters.ExporterHealth()
    with caplog.at_level(logging.WARNING):
        for ok in (True, False, False, True, True):
            health.report(ok, "http://there")
    assert [record.getMessage() for record in caplog.records] == [
        "OTLP export to http://there is failing; telemetry will be dropped",
        "OTLP export to http://there works again",
    ]


async def test_the_engines_spans_follow_their_calls_whatever_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    providers: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", providers.append)
    async with telling(sampling_ratio=0.5) as (_, collector):
        (engines,) = providers
        for number in range(1, 41):
            flags = TraceFlags(number % 2)
            parent = trace.NonRecordingSpan(SpanContext(number, number, is_remote=True, trace_flags=flags))
            engines.get_tracer("vllm").start_span(LLM_REQUEST, trace.set_span_in_context(parent)).end()
    assert {span.parent_span_id[-1] for span in collector.named(LLM_REQUEST)} == set(range(1, 41, 2))


@pytest.mark.parametrize(("ratio", "trusts", "traced"), [(0.0, False, False), (0.0, True, True), (1.0, False, True)])
async def test_the_settings_decide_whether_a_callers_flag_is_followed(ratio: float, trusts: bool, traced: bool) -> None:
    async with recorded(SLOW, sampling_ratio=ratio, trust_caller_sampling=trusts) as (channel, _, collector):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        metadata = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
        request = pb.StreamGenerateRequest(spec=spec())
        assert [reply async for reply in stub.StreamGenerate(request, metadata=metadata)]
    assert bool(collector.spans) is traced


async def test_otlp_over_http() -> None:
    got: dict[str, bytes] = {}

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    settings = TelemetrySettings(otlp="http", otlp_endpoint=f"http://127.0.0.1:{receiver.server_port}")
    telemetry = Telemetry(plan_telemetry(settings, {}), settings)
    server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}), telemetry.hooks)
    address = await server.listen()
    await server.serve_with(ScriptedEngine(()))
    async with grpc.aio.insecure_channel(address) as channel:
        await stream(channel, spec())
    await server.drain(0)
    await telemetry.close()
    receiver.shutdown()
    receiver.server_close()
    assert {"/v1/traces", "/v1/metrics"} <= got.keys()
    sent = trace_service_pb2.ExportTraceServiceRequest.FromString(got["/v1/traces"])
    assert METHOD in {span.name for span in sent.resource_spans[0].scope_spans[0].spans}


@pytest.mark.slow
async def test_what_another_server_drained_is_linked(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    slow = Reply(thought="x" * 300, answer="a", step_seconds=0.005)
    async with telling() as (telemetry, collector):
        async with ward(slow, key_file=key, hooks=telemetry.hooks) as first:
            running = asyncio.create_task(stream(first.channel, spec(thinking=THINKING)))
            while first.engine.chunks < 20:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.005)
            await first.server.drain(0)
            last = (await running)[-1]
        async with ward(slow, key_file=key, hooks=telemetry.hooks) as second:
            request = pb.ResumeRequest(
                generation_id=(await running)[0].started.generation_id,
                resume_token=last.finished.resume_token,
                last_sequence=last.sequence,
            )
            assert [reply async for reply in generation_pb2_grpc.GenerationServiceStub(second.channel).Resume(request)]
        await telemetry.close()
    drained, resumed = sorted(collector.named(CHAT), key=lambda span: span.start_time_unix_nano)
    assert [link.trace_id for link in resumed.links] == [drained.trace_id]
    causes = [attributes(run)["penstock.run.cause"] for run in collector.children(resumed) if "run" in run.name]
    assert causes == ["resume"]
