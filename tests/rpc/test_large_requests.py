"""A large request is planned beside the event loop: nobody waits for somebody else's million tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from penstock.engine.scripted import ByteTokenizer, ScriptedEngine
from penstock.types import Message
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from tests.bad_requests import hello
from tests.rpc.conftest import serving

_SECONDS = 60.0
"""Before a test gives up on an event."""


class WaitingTokenizer(ByteTokenizer):
    """Waits with anything large until it is let on; a real one takes long with a megabyte."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.let_on = threading.Event(), threading.Event()

    def render(self, messages: Sequence[Message], *, thinking: bool, **options: Any) -> list[int]:
        if sum(len(message.content) for message in messages) > 50_000:
            self.entered.set()
            assert self.let_on.wait(_SECONDS)
        return super().render(messages, thinking=thinking, **options)


@pytest.mark.parametrize("method", ["Generate", "CountTokens"])
async def test_others_are_served_while_a_large_request_is_planned(method: str) -> None:
    engine = ScriptedEngine([], context_window_tokens=200_000)
    engine.tokenizer = tokenizer = WaitingTokenizer()
    async with serving(engine) as (_, channel):
        call = getattr(generation_pb2_grpc.GenerationServiceStub(channel), method)
        request = {"Generate": pb.GenerateRequest, "CountTokens": pb.CountTokensRequest}[method]
        large = asyncio.ensure_future(call(request(spec=hello("x" * 100_000))))
        assert await asyncio.to_thread(tokenizer.entered.wait, _SECONDS)
        await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest(), timeout=_SECONDS)
        assert not large.done()
        tokenizer.let_on.set()
        await large
