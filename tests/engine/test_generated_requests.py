"""Generated valid requests, every pair of parameter values, 1 to 8 at once: each is answered as the proto promises.

No engine is restarted for one. How many were sent, by which seed, and the restarts are in the report of the tests.

By hand: `--generated-requests 5000` with `-m full`; a few hundred of the same row are in every run of the engine tests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf import json_format
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.engine.generated import dimensions, rows, spec_of
from tests.engine.kept import assembled, broken

_SLICE = 200
_SECONDS = 120.0
Record = Callable[[str, object], None]


def specs(engine: Engine, seed: int) -> Iterator[tuple[str, pb.GenerationSpec]]:
    card, an_id = engine.card, engine.tokenizer.encode("a")[0]
    dims = dimensions(card.vocab_size, card.context_window_tokens, an_id, min(card.eos_ids - {0}))
    for row in rows(dims, card.unsupported_fields, seed):
        yield row["method"], spec_of(row, engine.tokenizer, card.markers, an_id)


async def fault(channel: grpc.aio.Channel, engine: Engine, method: str, spec: pb.GenerationSpec) -> str:
    """Return what went wrong with this request; empty where it was answered as the proto promises."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    try:
        if method == "Generate":
            reply = await stub.Generate(pb.GenerateRequest(spec=spec), timeout=_SECONDS)
        else:
            request = pb.StreamGenerateRequest(spec=spec, resumable=method == "resumable")
            reply = assembled([reply.event async for reply in stub.StreamGenerate(request, timeout=_SECONDS)])
        wrong = "; ".join(broken(spec, reply, engine))
    except grpc.aio.AioRpcError as error:
        wrong = f"{error.code().name} {error.details()}"
    except AssertionError as error:
        wrong = f"events: {error}"
    return f"{wrong}: {method} {json_format.MessageToJson(spec, indent=None)}" if wrong else ""


async def faults(channel: grpc.aio.Channel, engine: Engine, count: int, seed: int) -> list[str]:
    """Return those of `count` requests, in crowds of 1 to 8 that start together."""
    found: list[str] = []
    source = itertools.islice(specs(engine, seed), count)
    for crowd in itertools.cycle(range(1, 9)):
        batch = list(itertools.islice(source, crowd))
        if not batch:
            return found
        found += filter(None, await asyncio.gather(*(fault(channel, engine, method, spec) for method, spec in batch)))
        await engine.check()
    raise AssertionError


async def test_every_pair_of_parameters_is_answered(
    engine: Engine, channel: grpc.aio.Channel, record_property: Record
) -> None:
    record_property("requests", _SLICE)
    record_property("seed", 1)
    assert await faults(channel, engine, _SLICE, seed=1) == []


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(("mtp", "seed"), [("on", 2), ("off", 3)])
async def test_thousands_are_answered_without_a_restart(
    request: pytest.FixtureRequest, record_property: Record, mtp: str, seed: int
) -> None:
    from penstock.config.schema import Config
    from penstock.engine.supervisor import SupervisedEngine
    from penstock.server.app import start_engine
    from penstock.server.server import Server

    config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "engine": {"mtp": mtp}})
    server = Server(config)
    address = await server.listen()
    engine = await start_engine(config, print, server.set_ready)
    assert isinstance(engine, SupervisedEngine)
    try:
        await server.serve_with(engine)
        async with grpc.aio.insecure_channel(address) as channel:
            count = request.config.getoption("--generated-requests") // 2
            found = await faults(channel, engine, count, seed)
        record_property("requests", count)
        record_property("seed", seed)
        record_property("engine_restarts", engine.restarts)
        assert (found, engine.restarts) == ([], 0)
    finally:
        await server.drain(0)
        await engine.close()
