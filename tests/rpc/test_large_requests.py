"""A large request is planned beside the event loop: nobody waits for somebody else's million tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from penstock.engine_scripted import ByteTokenizer, ScriptedEngine
from penstock.types import Message
from penstock_client.v1 import generation_pb2 as pb
from penstock_client.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from tests.bad_requests import hello
from tests.rpc.conftest import serving

_SECONDS = 1.5


class SlowTokenizer(ByteTokenizer):
    """As slow with anything large as a real one is with a megabyte."""

    def render(self, messages: Sequence[Message], *, thinking: bool) -> list[int]:
        if sum(len(message.content) for message in messages) > 50_000:
            time.sleep(_SECONDS)
        return super().render(messages, thinking=thinking)


@pytest.mark.parametrize("method", ["Generate", "CountTokens"])
async def test_others_are_served_while_a_large_request_is_planned(method: str) -> None:
    engine = ScriptedEngine([], context_window_tokens=200_000)
    engine.tokenizer = SlowTokenizer()
    async with serving(engine) as (_, channel):
        call = getattr(generation_pb2_grpc.GenerationServiceStub(channel), method)
        request = {"Generate": pb.GenerateRequest, "CountTokens": pb.CountTokensRequest}[method]
        large = asyncio.ensure_future(call(request(spec=hello("x" * 100_000))))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest())
        seconds = time.monotonic() - began
        assert not large.done()
        assert seconds < _SECONDS / 2
        await large
