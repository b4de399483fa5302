"""RoutingService on a real channel: windows, watchers that share what is asked, refusals, engines that are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from penstock.config.schema import Config, SupervisionSettings
from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.engine.scripted import Reply
from penstock.engine.supervisor import SupervisedEngine
from penstock.server.server import Server
from penstock_proto.v1 import routing_pb2 as pb
from penstock_proto.v1 import routing_pb2_grpc

from tests.rpc.conftest import Serve, serving
from tests.rpc.killable import MortalEngine

RANKS = 2


class Routed(MortalEngine):
    """Two layers of four experts; every question about them has cost one more token for expert 1 of each."""

    def __init__(self) -> None:
        super().__init__((Reply(),))
        self.asked = 0

    async def expert_counts(self) -> ExpertCounts:
        await self.check()
        self.asked += 1
        rows = {layer: array("q", [10, 10 + 2 * self.asked, 10, 10]) for layer in (0, 1)}
        return ExpertCounts(2, RANKS, rows)


@asynccontextmanager
async def routed() -> AsyncIterator[tuple[Routed, routing_pb2_grpc.RoutingServiceStub]]:
    engine = Routed()
    async with serving(engine) as (_, channel):
        yield engine, routing_pb2_grpc.RoutingServiceStub(channel)


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=int(value % 1 * 1e9))


async def refused(call: object) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if not detail.Unpack(info):
            detail.Unpack(bad)
    return caught.value.code(), info.reason, [violation.field for violation in bad.field_violations]


async def test_the_load_is_of_the_window() -> None:
    async with routed() as (_, stub):
        await stub.GetExpertLoad(pb.GetExpertLoadRequest())
        load = (await stub.GetExpertLoad(pb.GetExpertLoadRequest(window=seconds(3600)))).load
    assert [layer.layer_index for layer in load.layers] == [0, 1]
    first = load.layers[0]
    assert load.token_count == sum(first.expert_token_counts) // 2 > 0
    assert list(first.expert_token_counts) == [0, 2 * load.token_count, 0, 0]
    assert (first.imbalance, first.normalized_entropy, list(first.hot_experts)) == (4.0, 0.0, [1])
    assert (load.rank_count, first.busiest_rank_share) == (RANKS, 1.0)
    assert load.window.ToTimedelta().total_seconds() > 0


async def test_ranks_as_asked() -> None:
    async with routed() as (_, stub):
        load = (await stub.GetExpertLoad(pb.GetExpertLoadRequest(rank_count=4))).load
        assert load.rank_count == 4
        code, _, fields = await refused(stub.GetExpertLoad(pb.GetExpertLoadRequest(rank_count=5)))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["rank_count"])


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.WatchExpertLoadRequest(window=seconds(0)), ["window"]),
        (pb.WatchExpertLoadRequest(window=seconds(3601)), ["window"]),
        (pb.WatchExpertLoadRequest(window=Duration(seconds=-1)), ["window"]),
        (pb.WatchExpertLoadRequest(interval=seconds(0.05)), ["interval"]),
        (pb.WatchExpertLoadRequest(interval=seconds(3601), rank_count=0), ["interval", "rank_count"]),
    ],
)
async def test_what_is_out_of_range_is_told_all_at_once(request_: pb.WatchExpertLoadRequest, fields: list[str]) -> None:
    async with routed() as (_, stub):
        code, reason, found = await refused(stub.WatchExpertLoad(request_).read())
    assert (code, reason, found) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields)


async def test_an_engine_that_does_not_count_says_so(serve: Serve) -> None:
    stub = routing_pb2_grpc.RoutingServiceStub(await serve(Reply()))
    for call in (
        stub.GetExpertLoad(pb.GetExpertLoadRequest()),
        stub.WatchExpertLoad(pb.WatchExpertLoadRequest()).read(),
    ):
        assert (await refused(call))[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "FEATURE_OFF")


async def test_many_watchers_cost_what_one_does() -> None:
    async with routed() as (engine, stub):
        request = pb.WatchExpertLoadRequest(interval=seconds(0.1))
        calls, began = [stub.WatchExpertLoad(request) for _ in range(40)], time.monotonic()
        seen = await asyncio.gather(*(read(call, 4) for call in calls))
        assert all(len(loads) == 4 for loads in seen)
        # At most twenty questions a second, whoever asks; 160 replies came.
        assert engine.asked < 20 * (time.monotonic() - began) + 20
        for call in calls:
            call.cancel()


async def read(call: grpc.aio.UnaryStreamCall, replies: int) -> list[pb.ExpertLoad]:
    return [(await call.read()).load for _ in range(replies)]


async def test_watchers_beyond_the_limit_are_told_to_come_back() -> None:
    async with routed() as (_, stub):
        calls = [stub.WatchExpertLoad(pb.WatchExpertLoadRequest()) for _ in range(64)]
        await asyncio.gather(*(call.read() for call in calls))
        code, reason, _ = await refused(stub.WatchExpertLoad(pb.WatchExpertLoadRequest()).read())
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        calls[0].cancel()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.WatchExpertLoad(pb.WatchExpertLoadRequest()).read()
                    break
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_watcher_stays_while_the_engine_is_replaced_and_counts_go_on() -> None:
    config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}})
    server = Server(config)
    engines: list[Routed] = []
    may_start = asyncio.Event()
    may_start.set()

    async def start() -> Routed:
        await may_start.wait()
        engines.append(Routed())
        return engines[-1]

    address = await server.listen()
    settings = SupervisionSettings(backoff_seconds=0.01)
    supervised = SupervisedEngine(await start(), start, settings, server.set_ready)
    await server.serve_with(supervised)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = routing_pb2_grpc.RoutingServiceStub(channel)
        call = stub.WatchExpertLoad(pb.WatchExpertLoadRequest(window=seconds(3600), interval=seconds(0.1)))
        before = (await read(call, 3))[-1].token_count
        may_start.clear()
        await engines[0].kill()
        await read(call, 5)
        code, _, _ = await refused(stub.GetExpertLoad(pb.GetExpertLoadRequest()))
        assert code is grpc.StatusCode.UNAVAILABLE
        may_start.set()
        await asyncio.wait_for(supervised.wait_until_available(), 60)
        after = [load.token_count for load in await read(call, 5)]
        assert len(engines) == 2
        assert before <= after[0] < after[-1]
        call.cancel()
    await server.drain(0)
    await supervised.close()
