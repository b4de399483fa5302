"""Connections end by their age (GOAWAY) while streams run: no call fails for it, and no generation runs twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.interop.conftest import ROOT, serving
from tests.interop.proxies import NAMES, proxy
from tests.rpc.secure import spec

_AGE_SECONDS = 1.0
_SECONDS = 20.0
_WORKERS = 16
_CALL_SECONDS = 120
_EVENTS, _STEP_SECONDS = 9, 0.1
# HAProxy 2.6 now and then loses the trailers of all streams of a connection that ends by its age, of a bare grpc.aio
# server's as well: which server's it is in one run is chance.
_MAX_FAILURES = {"haproxy": _WORKERS}
_FRONTS = [pytest.param("direct"), *(pytest.param(name, marks=pytest.mark.needs(name)) for name in NAMES)]


@contextmanager
def bare_server() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.interop.bare", str(_AGE_SECONDS), str(_EVENTS), str(_STEP_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def stream_on(address: str) -> Counter[str]:
    """Stream with some workers on one channel for a while; return how the calls ended, by status."""
    ends: Counter[str] = Counter()
    until = time.monotonic() + _SECONDS
    request = pb.StreamGenerateRequest(spec=spec("AGED"))

    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def work() -> None:
            while time.monotonic() < until:
                last = None
                try:
                    async for reply in stub.StreamGenerate(request, timeout=_CALL_SECONDS):
                        last = reply.event.WhichOneof("event")
                except grpc.aio.AioRpcError as error:
                    ends[f"{error.code().name}: {error.details()}"] += 1
                else:
                    ends["OK" if last == "finished" else f"ended after {last}"] += 1

        await asyncio.gather(*(work() for _ in range(_WORKERS)))
    return ends


def failures(ends: Counter[str]) -> int:
    return ends.total() - ends["OK"]


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("front", _FRONTS)
async def test_no_call_fails_for_the_age_of_its_connection(front: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(serving(tmp_path, max_connection_age_seconds=_AGE_SECONDS, drain_seconds=60))
        addresses = {"service": service.address, "bare": stack.enter_context(bare_server())}
        if front in NAMES:
            for name, address in addresses.items():
                (tmp_path / name).mkdir()
                addresses[name] = stack.enter_context(proxy(front, address, None, tmp_path / name))
        before = service.holdings()["starts"]
        own, bare = await asyncio.gather(stream_on(addresses["service"]), stream_on(addresses["bare"]))
        starts = service.holdings()["starts"] - before
    print(f"{front}: {dict(own)}, {starts} engine runs; bare grpc.aio {dict(bare)}")
    assert own["OK"] > _WORKERS
    assert own["OK"] <= starts <= own.total(), "a generation ran twice"
    if front in ("direct", "envoy"):
        assert failures(own) == 0
    assert failures(own) <= max(failures(bare), _MAX_FAILURES.get(front, 0))
