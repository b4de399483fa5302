"""Test who may call what, on the wire: keys that come and go while the server runs, and nothing that tells them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from penstock.auth.api_keys import make
from penstock.auth.key_file import change
from penstock.config.schema import Config, TelemetrySettings
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.telemetry.otel.plan import plan_telemetry
from penstock.telemetry.otel.start import Telemetry
from penstock.types import EngineChunk, EngineRequest
from penstock_client import AsyncClient, CallerRefused
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import model_pb2, model_pb2_grpc, routing_pb2, routing_pb2_grpc

from tests.rpc.conftest import serving
from tests.rpc.otlp import attributes, collecting
from tests.rpc.secure import Authority, bearer, channel, count, listening, spec, stub, until

OK, UNKNOWN, DENIED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def new_key(path: Path, caller: str) -> str:
    key, entry = make(caller)
    change(path, lambda entries: (*entries, entry))
    return key


async def test_keys_come_and_go_while_the_server_runs(key_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = new_key(key_path, "team-a")
    async with listening({"auth": {"keys_file": str(key_path)}}) as (_, address), channel(address) as at:
        assert await count(at, key) is OK
        assert await count(at) is UNKNOWN
        second = new_key(key_path, "team-b")
        assert await count(at, make("team-b")[0]) is UNKNOWN

        async def is_in() -> bool:
            return await count(at, second) is OK

        await until(is_in)
        change(key_path, lambda entries: entries[:1])

        async def is_out() -> bool:
            return await count(at, second) is UNKNOWN

        await until(is_out)
        assert await count(at, key) is OK
    assert key not in caplog.text
    assert second not in caplog.text
    assert key[-20:] not in caplog.text


async def test_each_method_needs_its_permission_and_health_needs_none(tmp_path: Path, key_path: Path) -> None:
    key, watcher = new_key(key_path, "team-a"), new_key(key_path, "watcher")
    (tmp_path / "callers.toml").write_text('[callers.watcher]\npermissions = ["diagnostics"]\n')
    auth = {"keys_file": str(key_path), "callers_file": str(tmp_path / "callers.toml")}
    async with listening({"auth": auth}) as (_, address), channel(address) as at:

        async def code(call: Any) -> grpc.StatusCode:
            try:
                await call
            except grpc.aio.AioRpcError as error:
                return error.code()
            return OK

        model, routing = model_pb2_grpc.ModelServiceStub(at), routing_pb2_grpc.RoutingServiceStub(at)
        card, load = model_pb2.GetModelRequest(), routing_pb2.GetExpertLoadRequest()
        assert await count(at, watcher) is DENIED
        assert await code(model.GetModel(card)) is UNKNOWN
        assert await code(model.GetModel(card, metadata=bearer(watcher))) is OK
        assert await code(model.GetModel(card, metadata=bearer(key))) is OK
        assert await code(routing.GetExpertLoad(load, metadata=bearer(key))) is DENIED
        assert await code(routing.GetExpertLoad(load, metadata=bearer(watcher))) not in (DENIED, UNKNOWN)
        health = health_pb2_grpc.HealthStub(at)
        assert await code(health.Check(health_pb2.HealthCheckRequest())) is OK
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(at)
        for shown, expected in ((None, UNKNOWN), (bearer(make("x")[0]), UNKNOWN), (bearer(key), OK)):
            assert await code(anext(aiter(reflection.ServerReflectionInfo(iter([ask]), metadata=shown)))) is expected


async def test_streams_and_bytes_that_are_no_message_meet_the_gate_first(key_path: Path) -> None:
    key = new_key(key_path, "team-a")
    async with listening({"auth": {"keys_file": str(key_path)}}) as (_, address), channel(address) as at:
        raw = at.unary_unary("/penstock.v1.GenerationService/Generate")
        for shown, expected in (
            (None, UNKNOWN),
            (bearer("x"), UNKNOWN),
            (bearer(key), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw(b"\xff\xff", metadata=shown)
            assert caught.value.code() is expected
        big = at.unary_unary("/penstock.v1.GenerationService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await big(b"x" * 3_000_000, metadata=bearer("x"))
        assert caught.value.code() is UNKNOWN

        async def starts() -> AsyncIterator[pb.InteractRequest]:
            yield pb.InteractRequest(start=spec())

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _event in stub(at).Interact(starts()):
                pass
        assert caught.value.code() is UNKNOWN


async def test_the_client_tells_what_happened(key_path: Path) -> None:
    key = new_key(key_path, "team-a")
    async with listening({"auth": {"keys_file": str(key_path)}}, Reply(answer="hi")) as (_, address):
        async with AsyncClient(address, api_key=key) as client:
            assert (await client.generate("hello", thinking="fast")).answer == "hi"
        async with AsyncClient(address, api_key=make("team-a")[0]) as client:
            with pytest.raises(CallerRefused, match="invalid credentials"):
                await client.generate("hello")


async def test_a_certificate_is_an_identity_where_that_is_said(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "callers.toml").write_text(
        '[callers.team-a]\ncertificates = ["spiffe://prod/a"]\n[callers."certificate:guest"]\npermissions = []\n'
    )
    config = {
        "tls": authority.server("s").write(tmp_path) | {"client_ca_file": str(tmp_path / "ca.crt")},
        "auth": {"certificates": True, "callers_file": str(tmp_path / "callers.toml")},
    }
    async with listening(config) as (_, address):
        for pair, expected in (
            (authority.issue("x", x509.UniformResourceIdentifier("spiffe://prod/a")), OK),
            (authority.issue("someone"), OK),
            (authority.issue("guest"), DENIED),
        ):
            async with channel(address, authority, pair) as at:
                assert await count(at) is expected


async def test_another_callers_token_is_refused_as_if_there_were_no_such_generation(key_path: Path) -> None:
    mine, other = new_key(key_path, "team-a"), new_key(key_path, "team-b")
    config = {"auth": {"keys_file": str(key_path)}}
    async with listening(config, Reply(answer="x" * 40, step_seconds=0.02)) as (_, address), channel(address) as at:
        request = pb.StreamGenerateRequest(spec=spec(), resumable=True)
        request.spec.thinking.mode = pb.THINKING_MODE_FAST
        call = stub(at).StreamGenerate(request, metadata=bearer(mine))
        started = (await anext(aiter(call))).event.started
        resume = pb.ResumeRequest(generation_id=started.generation_id, resume_token=started.resume_token)
        nothing = pb.ResumeRequest(generation_id="no-such", resume_token=started.resume_token)

        async def refusal(key: str, asked: pb.ResumeRequest) -> tuple[grpc.StatusCode, str | None, Any]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _event in stub(at).Resume(asked, metadata=bearer(key)):
                    pass
            return caught.value.code(), caught.value.details(), caught.value.trailing_metadata()

        assert await refusal(other, resume) == await refusal(mine, nothing) == await refusal(other, nothing)
        cancel = pb.CancelRequest(generation_id=started.generation_id, resume_token=started.resume_token)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(at).Cancel(cancel, metadata=bearer(other))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        events = [response.event async for response in stub(at).Resume(resume, metadata=bearer(mine))]
        assert events[-1].WhichOneof("event") == "finished"


async def test_callers_do_not_share_cached_prefixes_unless_that_is_said(key_path: Path) -> None:
    one, two = new_key(key_path, "team-a"), new_key(key_path, "team-b")

    class Noting(ScriptedEngine):
        def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
            salts.append(request.cache_salt)
            return super().stream(request)

    salts: list[str | None] = []
    for shared in (False, True):
        settings = {"keys_file": str(key_path), "shared_prefix_cache": shared}
        config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "auth": settings})
        async with serving(Noting(()), config) as (_, at):
            for key in (one, two, one):
                await stub(at).Generate(pb.GenerateRequest(spec=spec()), metadata=bearer(key))
    assert salts[0] == salts[2] != salts[1]
    assert salts[:3] != [None] * 3
    assert salts[3:] == [None] * 3


async def test_telemetry_names_callers_by_bounded_ids_and_never_by_credentials(key_path: Path) -> None:
    key, wrong = new_key(key_path, "team-a"), make("team-a")[0]
    with collecting() as collector:
        wanted = TelemetrySettings(otlp="grpc", otlp_endpoint=collector.endpoint)
        telemetry = Telemetry(plan_telemetry(wanted, {}), wanted)
        auth = {"keys_file": str(key_path)}
        async with listening({"auth": auth}, hooks=telemetry.hooks) as (_, address), channel(address) as at:
            assert await count(at, key) is OK
            assert await count(at, wrong) is UNKNOWN
            bad = pb.CountTokensRequest(spec=pb.GenerationSpec(priority=9))  # type: ignore[arg-type]
            with pytest.raises(grpc.aio.AioRpcError):
                await stub(at).CountTokens(bad, metadata=bearer(key))
        await telemetry.close()
    callers = [
        attributes(span).get("penstock.caller") for span in collector.named("penstock.v1.GenerationService/CountTokens")
    ]
    assert callers == ["team-a", None, "team-a"]
    points = collector.metrics["penstock.refusals"].sum.data_points
    counted = [attributes(point) for point in points if point.as_int or point.as_double]
    labels = sorted((one["reason"], one.get("caller", "")) for one in counted)
    assert labels == [("CALLER_REFUSED", ""), ("INVALID_FIELD", "team-a")]
    everything = f"{collector.spans}{collector.metrics}{collector.logs}"
    assert "team-a" in everything
    for secret in (key, wrong):
        assert secret[-20:] not in everything
