"""An engine that dies while it encodes an image: every stream goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from penstock.config.schema import Config
from penstock.server.app import start_engine
from penstock.server.server import Server
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from models.small.random_checkpoint import random_checkpoint
from tests.chaos.poison import DIES_ENCODING
from tests.pictures import png


def spec(image: bytes | None, tokens: int) -> pb.GenerationSpec:
    shown = [pb.Part(image=pb.Image(mime_type="image/png", data=image))] if image else []
    return pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=[*shown, pb.Part(text="What is it?")])]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST),
        output=pb.OutputConfig(max_output_tokens=tokens, min_output_tokens=tokens),
    )


@pytest.mark.full
async def test_a_death_while_encoding_an_image_ends_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "dies"
    monkeypatch.setenv(DIES_ENCODING, str(mark))
    config = Config.model_validate(
        {
            "server": {"listen": "127.0.0.1:0"},
            "supervision": {"backoff_seconds": 0.1},
            "engine": {
                "model": str(random_checkpoint(tmp_path)),
                "extra_args": {"worker_cls": "tests.chaos.poison.WorkerThatDiesEncoding"},
            },
        }
    )
    server = Server(config)
    address = await server.listen()
    engine = await start_engine(config, lambda _: None, server.set_ready)
    await server.serve_with(engine)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def stream(asked: pb.GenerationSpec) -> list[pb.GenerationEvent]:
            call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=asked))
            return [reply.event async for reply in call]

        await stream(spec(None, 4))
        mark.touch()
        asked = [spec(None, 400), *(spec(png(96, 64, colour), 16) for colour in ("red", "green", "blue"))]
        found = await asyncio.gather(*map(stream, asked))
    await server.drain(0)
    await engine.close()
    assert not mark.exists(), "the worker died"
    for events, one in zip(found, asked, strict=True):
        finished = events[-1].finished
        assert finished.results[0].finish_reason == pb.FINISH_REASON_MAX_OUTPUT_TOKENS
        assert finished.usage.answer_tokens == one.output.max_output_tokens
    told = [{event.WhichOneof("event") for event in events} & {"interrupted", "continued"} for events in found]
    assert {"interrupted", "continued"} in told
