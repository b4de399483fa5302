"""Every preset of the chart takes a request at its window's edge: on a scripted engine of that card."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from penstock.config.schema import Config
from penstock.engine.scripted import ByteTokenizer, Reply, ScriptedEngine
from penstock.engine.vllm.checkpoint import read_facts
from penstock.engine.vllm.features import Devices, resolve
from penstock.sessions.checkpoints import Checkpoint, sign_checkpoint
from penstock.types import EngineChunk, EngineRequest, Message
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from tests.bad_requests import hello
from tests.rpc.conftest import serving

PRESETS = sorted((Path(__file__).parents[2] / "helm/penstock/presets").glob("*.yaml"))
_KEY = b"k" * 32


class WideTokenizer(ByteTokenizer):
    """Six bytes a token, as scripts far from English have; it only counts."""

    def render(self, messages: Sequence[Message], *, thinking: bool, **options: Any) -> list[int]:
        opening = super().render([], thinking=thinking)
        return [ord("a")] * (sum(len(message.content.encode()) for message in messages) // 6) + opening


class Carded(ScriptedEngine):
    """Answers at once: what it is sent is too long to be searched for replies."""

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        short = replace(request, prompt_token_ids=request.prompt_token_ids[-32:])
        async for chunk in super().stream(short):
            yield chunk


def preset_config(path: Path) -> tuple[Config, int]:
    """The preset's configuration, and the window of the model that it serves."""
    values = yaml.safe_load(path.read_text())
    engine = values["config"]["engine"] | {"leader_address": "leader"}
    config = Config.model_validate({"engine": engine, "server": {"listen": "127.0.0.1:0"}})
    gpus = values.get("gpu", {}).get("perNode", 1)
    devices = Devices(engine["device"], gpus, 80 * 10**9)
    return config, resolve(config.engine, read_facts(config.engine.model), devices).window_tokens


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
async def test_a_request_at_the_windows_edge_is_served(path: Path) -> None:
    config, window = preset_config(path)
    engine = Carded([Reply(answer="ok")], context_window_tokens=window)
    engine.tokenizer = WideTokenizer()
    output = pb.OutputConfig(max_output_tokens=8)
    most = window - 8 - len(engine.tokenizer.render([], thinking=False))
    text = ("woher " * most)[: 6 * most]
    fast = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)
    ids = pb.TokenIds(ids=[ord("a")] * (window - 8))
    async with serving(engine, config) as (_, channel):
        model = await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest())
        assert model.context_window_tokens == window
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        told = await stub.Generate(pb.GenerateRequest(spec=hello(text, output=output, thinking=fast)))
        raw = await stub.Generate(pb.GenerateRequest(spec=pb.GenerationSpec(token_ids=ids, output=output)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Generate(pb.GenerateRequest(spec=hello(text + "woher ", output=output, thinking=fast)))
    assert told.usage.prompt_tokens == raw.usage.prompt_tokens == window - 8
    assert "CONTEXT_OVERFLOW" in str(refused.value.trailing_metadata())
    assert model.answer_reserve >= 128
    assert model.auto_thinking_budget <= window


@pytest.mark.slow
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_drained_conversation_of_the_whole_window_fits_a_message(path: Path) -> None:
    """The most bytes of text that hardly packs, and half a window of ids of the largest vocabulary."""
    config, window = preset_config(path)
    draw = random.Random(3)
    most = config.resolved_limits.max_prompt_bytes
    assert most is not None
    printable = bytes(32 + byte % 95 for byte in range(256))
    spec = hello(draw.randbytes(most).translate(printable).decode()).SerializeToString()
    split = {"context_ids": [draw.randrange(248_320) for _ in range(window // 2)], "held": ""}
    token = sign_checkpoint(Checkpoint("id", "model", spec, 7, {}, ({"split": split},)), _KEY)
    assert token
    assert len(pb.ResumeRequest(resume_token=token).SerializeToString()) < config.max_message_bytes


def test_a_conversation_that_no_message_holds_has_no_token() -> None:
    assert sign_checkpoint(Checkpoint("id", "model", b"x" * (64 * 1024 * 1024), 7, {}, ()), _KEY) == ""


def test_every_preset_is_walked() -> None:
    assert len(PRESETS) >= 7
